import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics as sk

from cnn_jax.training.metrics import NAMES, Classification, summarise
from cnn_jax.training.step import cross_entropy, soft_targets


def update(logits, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else mask
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    return Classification.single_from_model_output(
        logits=logits, labels=labels, loss=cross_entropy(logits, labels), mask=jnp.asarray(mask)
    )


@pytest.fixture
def predictions():
    generator = np.random.RandomState(0)
    labels = generator.randint(0, 5, 200).astype(np.int32)
    logits = generator.randn(200, 5).astype(np.float32) * 2
    logits[np.arange(200), labels] += 1
    return logits, labels


def test_equal_scikit_learn(predictions):
    logits, labels = predictions
    values = summarise(update(logits, labels))
    assert set(values) >= set(NAMES)
    predicted = logits.argmax(-1)
    probabilities = np.asarray(jax.nn.softmax(logits))
    claims = probabilities > 0.5
    truth = np.eye(5)[labels] > 0
    expected = {
        "loss": sk.log_loss(labels, probabilities),
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, average="macro"),
        "recall": sk.recall_score(labels, predicted, average="macro"),
        "f1": sk.f1_score(labels, predicted, average="macro"),
        "threshold_precision": sk.precision_score(truth, claims, average="micro"),
        "threshold_recall": sk.recall_score(truth, claims, average="micro"),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-6, err_msg=name)


def test_classes_that_never_occur_are_left_out_as_in_scikit_learn():
    labels = np.array([0, 0, 1, 1], np.int32)
    logits = np.eye(4, dtype=np.float32)[[0, 2, 1, 1]]  # class 2 predicted but absent, class 3 neither
    values = summarise(update(logits, labels))
    for name, score in [("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)]:
        expected = score(labels, logits.argmax(-1), average="macro", zero_division=0)
        np.testing.assert_allclose(values[name], expected, rtol=1e-6, err_msg=name)


def test_merging_and_masking_equal_the_whole(predictions):
    logits, labels = predictions
    whole = summarise(update(logits, labels))
    merged = jax.tree.map(jnp.zeros_like, update(logits, labels))  # as chunks start
    for start in range(0, 200, 70):
        part, names = logits[start : start + 70], labels[start : start + 70]
        padding = 70 - len(part)
        mask = np.arange(70) < len(part)
        padded = np.concatenate([part, np.full((padding, 5), 9, np.float32)])
        merged = merged.merge(update(padded, np.concatenate([names, np.zeros(padding, np.int32)]), mask))
    for name, value in summarise(merged).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-6, err_msg=name)


def test_label_smoothing():
    logits, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])
    log_p = jax.nn.log_softmax(logits)[0]
    expected = -(0.8 + 0.2 / 3) * log_p[0] - 0.2 / 3 * (log_p[1] + log_p[2])
    loss = optax.softmax_cross_entropy(logits, soft_targets(labels, 3, 0.2))[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
