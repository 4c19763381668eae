"""The temperature, the rule for images of no class, and where both are stored."""

import json

import numpy as np
import pytest

from cnn_jax.evaluation import scores
from cnn_jax.inference import calibration
from cnn_jax.inference.calibration import Calibration


def log_probs(count, classes=3, seed=0):
    logits = 3 * np.random.RandomState(seed).standard_normal((count, classes)).astype(np.float32)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_it_is_the_calibration_of_the_evaluation():
    np.testing.assert_allclose(Calibration(1.7)(log_probs(50)), scores.calibrate(log_probs(50), 1.7), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("count", [1, 19, 20, 400])
def test_the_threshold_passes_its_share_of_the_validation_images(classes, count):
    examples = log_probs(count, classes)
    fitted = Calibration(1.3).fitted_to(examples)
    confidence = np.exp(Calibration(1.3)(examples).max(-1))
    assert calibration.PASSING <= (confidence >= fitted.threshold).mean() < calibration.PASSING + 1.01 / count + 1e-9
    assert 1 / classes <= fitted.threshold <= 1


def test_only_the_evaluation_of_this_network_counts(tmp_path):
    file = tmp_path / "evaluation.json"
    assert calibration.read(tmp_path, 7, None) is None
    file.write_text(json.dumps({"step": 7, "seed": None, "temperature": 1.5, "threshold": 0.4}))
    assert calibration.read(tmp_path, 7, None) == Calibration(1.5, 0.4)
    assert calibration.read(tmp_path, 8, None) is calibration.read(tmp_path, 7, 0) is None
    file.write_text(json.dumps({"step": 7, "temperature": 1.5}))  # of an earlier version
    assert calibration.read(tmp_path, 7, None) == Calibration(1.5)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", "7", "{}", "[" * 100_000,
        *(json.dumps({"step": 7} | fields) for fields in (
            {"temperature": 0}, {"temperature": "1"}, {"temperature": True}, {"temperature": float("nan")},
            {"temperature": [1]}, {"temperature": 1, "threshold": 2}, {"temperature": 1, "threshold": "x"},
        )),
    ],
)  # fmt: skip
def test_a_damaged_evaluation_calibrates_nothing(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    assert calibration.read(tmp_path, 7, None) is None
