"""Test-time augmentation against plain numpy; training and inference use the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import rng
from cnn_jax.data.pipeline import Resident
from cnn_jax.inference.classifier import make_scorer
from cnn_jax.models.cnn import CNN
from cnn_jax.training.evaluator import Evaluator
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.metrics import summarise
from cnn_jax.training.step import EvalStep
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import NO_TTA, TTA

MODEL = CNN(10, widths=(4,), convs_per_block=1, hidden=())


def images(count=3, side=6):
    return np.random.RandomState(0).rand(count, side, side, 3).astype(np.float32)


def moved(image, by):
    """Moved by `by` pixels down and right, pixel by pixel, padded by reflection."""
    side = len(image)
    fold = lambda i: -i if i < 0 else 2 * side - 2 - i if i >= side else i  # noqa: E731
    return np.array([[image[fold(y - by), fold(x - by)] for x in range(side)] for y in range(side)])


def predict(batch):
    """Logits that depend on every pixel and its position."""
    weights = jnp.asarray(np.random.RandomState(1).rand(6 * 6 * 3, 4), jnp.float32)
    return jnp.sin(batch.reshape(len(batch), -1) @ weights)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_logits_are_the_weighted_mean_over_views(mirror, shift):
    batch = images()
    parts = [(1.0, batch)]
    if shift:
        parts = [(0.5, batch)] + [(0.25, np.stack([moved(x, by) for x in batch])) for by in (shift, -shift)]
    if mirror:
        parts = [(w / 2, form) for w, x in parts for form in (x, x[:, :, ::-1])]
    expected = sum(weight * np.asarray(predict(jnp.asarray(view))) for weight, view in parts)
    np.testing.assert_allclose(TTA(mirror, shift)(predict, jnp.asarray(batch)), expected, atol=1e-5)


def test_off_by_default_and_for_runs_of_earlier_versions():
    assert not NO_TTA.enabled and TTA.from_config({}) == NO_TTA
    assert TTA(mirror=True).enabled and TTA(shift=1).enabled
    assert TTA.from_config({"epochs": 1, "mirror": True, "shift": 1}) == TTA(True, 1)


def test_evaluation_and_inference_agree():
    pixels = np.random.RandomState(2).randint(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(7, dtype=np.int32)
    variables = MODEL.init(rng.root(0), jnp.zeros((1, 8, 8, 3)), train=False)
    losses = []
    for views in (TTA(True, 1), NO_TTA):
        evaluate = Evaluator(EvalStep(MODEL, ImageInputs(Preprocessing(), tta=views)), 4)
        scored = summarise(evaluate(variables, Resident({"image": jnp.asarray(pixels), "label": jnp.asarray(labels)})))
        served = make_scorer(MODEL, variables, Preprocessing(), views)(pixels)
        losses.append(float(scored["loss"]))
        np.testing.assert_allclose(losses[-1], -np.mean(np.asarray(served)[np.arange(7), labels]), rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-5
