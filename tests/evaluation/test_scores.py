"""Scores equal those of scikit-learn, and calibration is that of Guo et al."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from cnn_jax.evaluation import scores
from cnn_jax.training.metrics import NAMES, Classification, summarise


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def draw(n, classes, seed=0, sharpness=2.0):
    """Predictions that are often right, and labels."""
    generator = np.random.RandomState(seed)
    labels = generator.randint(0, classes, n).astype(np.int32)
    logits = generator.randn(n, classes) * sharpness
    logits[np.arange(n), labels] += 1.5
    return log_softmax(logits).astype(np.float32), labels


def expected(log_probs, labels):
    classes = range(log_probs.shape[1])
    predicted = log_probs.argmax(-1)
    probabilities = np.exp(log_probs.astype(np.float64))
    claims, truth = probabilities > 0.5, np.eye(len(classes))[labels] > 0
    average = {"average": "macro", "zero_division": 0}
    return {
        "loss": sk.log_loss(labels, probabilities / probabilities.sum(-1, keepdims=True), labels=classes),
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, **average),
        "recall": sk.recall_score(labels, predicted, **average),
        "f1": sk.f1_score(labels, predicted, **average),
        "threshold_precision": sk.precision_score(truth, claims, average="micro", zero_division=0),
        "threshold_recall": sk.recall_score(truth, claims, average="micro", zero_division=0),
    }


CASES = {
    "usual": draw(500, 10),
    "few classes": draw(300, 3, seed=1),
    "absent classes": draw(4, 10, seed=2),
    "one example": draw(1, 7, seed=3),
    "all of one class": (draw(50, 6, seed=4)[0], np.full(50, 2, np.int32)),
    "all wrong": (log_softmax(np.eye(5)[[1, 2, 3, 4, 0]] * 9), np.arange(5)),
    "all ties": (np.full((20, 10), -np.log(10)), np.arange(20) % 10),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_scikit_learn(case):
    log_probs, labels = CASES[case]
    values = scores.summarise(log_probs, labels)
    for name, value in expected(log_probs, labels).items():
        assert values[name] == pytest.approx(value, abs=1e-6), name
    assert values["accuracy"] == scores.accuracy(log_probs, labels)
    matrix = scores.confusion_matrix(log_probs, labels)
    classes = np.arange(log_probs.shape[1])
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, log_probs.argmax(-1), labels=classes))
    table = sk.precision_recall_fscore_support(labels, log_probs.argmax(-1), labels=classes, zero_division=0)
    for values, name in zip(table, ("precision", "recall", "f1", "support")):
        np.testing.assert_allclose(
            [row[name] for row in scores.class_table(matrix, tuple("abcdefghij"[: len(classes)]))], values
        )


def test_equal_the_metrics_of_training():
    log_probs, labels = draw(300, 10)
    loss = -log_probs[np.arange(len(labels)), labels]
    outputs = {"logits": log_probs, "labels": labels, "loss": loss, "mask": np.ones(len(labels), bool)}
    counts = Classification.single_from_model_output(**jax.tree.map(jnp.asarray, outputs))
    recorded = summarise(counts)
    for name in NAMES:
        assert scores.summarise(log_probs, labels)[name] == pytest.approx(float(recorded[name]), rel=1e-5), name


def test_top_k():
    log_probs, labels = CASES["usual"]
    for k in (1, 3, 5):
        assert scores.top_k(log_probs, labels, k) == pytest.approx(sk.top_k_accuracy_score(labels, log_probs, k=k))
    assert scores.top_k(*CASES["all ties"], 1) == scores.accuracy(*CASES["all ties"]) == 0.1
    assert scores.top_k(*CASES["all ties"], 5) == 0.5
    assert scores.summarise(*CASES["few classes"])["top5_accuracy"] is None
    assert scores.summarise(*CASES["all wrong"])["top5_accuracy"] is None
    assert scores.summarise(*CASES["one example"])["top5_accuracy"] is not None


def test_interval():
    low, high = scores.interval(81, 100)
    assert (low, high) == (pytest.approx(0.7222, abs=1e-4), pytest.approx(0.8749, abs=1e-4))
    assert scores.interval(0, 3)[0] == 0 and scores.interval(3, 3)[1] == 1


def test_expected_calibration_error_is_that_of_the_definition():
    log_probs, labels = draw(1000, 10)
    confidence, right = np.exp(log_probs.max(-1).astype(np.float64)), log_probs.argmax(-1) == labels
    total = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = scores.calibration_bins(log_probs, labels)
    assert scores.expected_calibration_error(bins) == pytest.approx(total, abs=1e-9)
    assert len(bins) == 15 and sum(row["count"] for row in bins) == 1000
    assert bins[0]["count"] == 0 and bins[0]["confidence"] is None


def test_certainty_is_in_the_last_bin():
    certain = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    bins = scores.calibration_bins(certain, np.array([0, 0]))
    assert bins[-1] == {"lower": 14 / 15, "upper": 1.0, "count": 2, "confidence": 1.0, "accuracy": 0.5}
    assert scores.expected_calibration_error(bins) == 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    generator = np.random.RandomState(0)
    true = log_softmax(generator.randn(20_000, 5) * 2)
    labels = (np.exp(true).cumsum(-1) > generator.rand(20_000, 1)).argmax(-1)
    claimed = log_softmax(true * temperature)
    found = scores.fit_temperature(claimed, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    calibrated = scores.calibrate(claimed, found)
    np.testing.assert_allclose(np.exp(calibrated).sum(-1), 1)
    assert scores.expected_calibration_error(scores.calibration_bins(calibrated, labels)) < 0.02
    for other in (found * 0.99, found * 1.01):
        assert scores.loss(scores.calibrate(claimed, other), labels) > scores.loss(calibrated, labels)


def test_a_temperature_that_does_not_exist_is_the_limit():
    log_probs, labels = CASES["all wrong"]
    assert scores.fit_temperature(log_probs, labels) == pytest.approx(scores.TEMPERATURES[1])


def test_right_predictions_give_no_temperature():
    """Any temperature below 1 would have a lower loss, and claim a certainty that nothing supports."""
    log_probs, _ = CASES["usual"]
    labels = log_probs.argmax(-1)
    assert scores.fit_temperature(log_probs, labels) == 1
    labels[0] = log_probs[0].argmin()  # the first mistake gives one
    assert scores.TEMPERATURES[0] < scores.fit_temperature(log_probs, labels) < 1


def test_calibration_changes_no_prediction():
    log_probs, _ = CASES["usual"]
    np.testing.assert_allclose(scores.calibrate(log_probs, 1.0), log_probs, atol=1e-6)
    np.testing.assert_array_equal(scores.calibrate(log_probs, 3.0).argmax(-1), log_probs.argmax(-1))


def test_mistakes_and_confusions():
    log_probs = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]))
    labels = np.array([1, 1, 1, 0])
    assert scores.worst_mistakes(log_probs, labels, 9).tolist() == [0, 3, 2]
    assert scores.worst_mistakes(log_probs, labels, 1).tolist() == [0]
    matrix = scores.confusion_matrix(log_probs, labels)
    assert scores.confusions(matrix, 9) == [(1, 0, 2), (0, 1, 1)]
    assert scores.confusions(np.diag([3, 4]), 9) == []
