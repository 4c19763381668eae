"""Classification scores: pure NumPy functions of log-probabilities and labels.

The conventions are those of `cnn_jax.training.metrics`, which counts on the device during training: the class with the
highest probability is the prediction (the first of several equal ones), and a division by zero gives zero.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

BINS = 15  # of the expected calibration error, as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)  # the range in which it is fitted

LogProbs = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Counts = Int[np.ndarray, "classes classes"]


def summarise(log_probs: LogProbs, labels: Labels) -> dict[str, Any]:
    """Returns the scalar scores of at least one example, under the names that training records.

    In addition to `cnn_jax.training.metrics.NAMES`: `accuracy_interval` (see `interval`), `top5_accuracy` (None for
    five classes or fewer) and `expected_calibration_error`.
    """
    matrix = confusion_matrix(log_probs, labels)
    correct, many = int(np.trace(matrix)), log_probs.shape[1] > 5
    return {
        "loss": loss(log_probs, labels),
        "accuracy": correct / len(labels),
        "accuracy_interval": interval(correct, len(labels)),
        **macro(matrix),
        **threshold(log_probs, labels),
        "top5_accuracy": top_k(log_probs, labels, 5) if many else None,
        "expected_calibration_error": expected_calibration_error(calibration_bins(log_probs, labels)),
    }


def loss(log_probs: LogProbs, labels: Labels) -> float:
    """Returns the mean cross-entropy, in nats."""
    return float(-_of_label(log_probs.astype(np.float64), labels).mean())


def accuracy(log_probs: LogProbs, labels: Labels) -> float:
    """Returns the share of examples whose most probable class is their label."""
    return float((log_probs.argmax(-1) == labels).mean())


def interval(successes: int, n: int, z: float = 1.96) -> list[float]:
    """Returns the 95% confidence interval of a proportion (Wilson 1927)."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def top_k(log_probs: LogProbs, labels: Labels, k: int) -> float:
    """Returns the share of examples whose label is among the `k` most probable classes; ties go to the first class."""
    order = np.argsort(-log_probs, axis=-1, kind="stable")[:, :k]
    return float((order == labels[:, None]).any(-1).mean())


def confusion_matrix(log_probs: LogProbs, labels: Labels) -> Counts:
    """Returns the number of examples per true class (row) and predicted class (column)."""
    classes = log_probs.shape[1]
    pairs = labels.astype(np.int64) * classes + log_probs.argmax(-1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: Counts) -> dict[str, np.ndarray]:
    """Returns precision, recall, F1 and support of every class, each `[classes]`, from a confusion matrix."""
    hits, predicted, actual = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, actual),
        "f1": _ratio(2 * hits, predicted + actual),
        "support": actual,
    }


def macro(matrix: Counts, predicted: bool = True) -> dict[str, float]:
    """Returns precision, recall and F1, averaged over the classes that occur.

    Args:
      matrix: see `confusion_matrix`.
      predicted: also over classes that do not occur but are predicted; all their scores are 0.
    """
    seen = matrix.sum(1) + predicted * matrix.sum(0) > 0
    scores = per_class(matrix)
    return {name: float(scores[name][seen].mean()) for name in ("precision", "recall", "f1")}


def class_table(matrix: Counts, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns one row per class: name, precision, recall, f1, support."""
    scores = {name: values.tolist() for name, values in per_class(matrix).items()}
    return [{"name": name} | {key: scores[key][i] for key in scores} for i, name in enumerate(class_names)]


def threshold(log_probs: LogProbs, labels: Labels) -> dict[str, float]:
    """Returns precision and recall of the predictions with a probability above 0.5, micro-averaged."""
    above = log_probs > math.log(0.5)
    hits, predicted = _of_label(above, labels).sum(), above.sum()
    return {
        "threshold_precision": float(hits / max(predicted, 1)),
        "threshold_recall": float(hits / len(labels)),
    }


def calibration_bins(log_probs: LogProbs, labels: Labels, count: int = BINS) -> list[dict[str, Any]]:
    """Bins the predictions by confidence, the largest probability, into bins of equal width.

    Returns:
      Per bin its `lower` (excluded) and `upper` edge, the `count` of predictions, and their mean `confidence` and
      `accuracy` (None in an empty bin). A model is calibrated if the two agree in every bin.
    """
    confidence = np.exp(log_probs.max(-1).astype(np.float64))
    correct = log_probs.argmax(-1) == labels
    edges = np.linspace(0, 1, count + 1)
    of_bin = np.clip(np.digitize(confidence, edges, right=True), 1, count)
    bins = []
    for number in range(1, count + 1):
        members = of_bin == number
        size = int(members.sum())
        bins.append(
            {
                "lower": float(edges[number - 1]),
                "upper": float(edges[number]),
                "count": size,
                "confidence": float(confidence[members].mean()) if size else None,
                "accuracy": float(correct[members].mean()) if size else None,
            }
        )
    return bins


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean absolute difference of confidence and accuracy, weighted by bin count (Guo et al. 2017)."""
    total = sum(row["count"] for row in bins)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["count"]) / total


def fit_temperature(log_probs: LogProbs, labels: Labels) -> float:
    """Returns the temperature that minimises the loss of the calibrated probabilities.

    It is fitted on validation examples: networks are overconfident on their training examples, and the test examples
    must not be used for fitting. Source: Guo et al. 2017, arXiv:1706.04599.

    The loss is convex in 1/T, so its derivative, mean(E_p[log p] - log p[label]), has one root, which is found by
    bisection within `TEMPERATURES`. If all predictions are wrong, there is no root, and the result is the end of that
    range. If all are right, the loss falls with the temperature down to zero, at which the network would be certain of
    everything: the result is then 1, no temperature.
    """
    logits = log_probs.astype(np.float64)
    target = _of_label(logits, labels)
    if (target == logits.max(-1)).all():
        return 1.0
    low, high = (math.log(1 / temperature) for temperature in reversed(TEMPERATURES))
    for _ in range(50):
        middle = (low + high) / 2
        probabilities = np.exp(calibrate(logits, math.exp(-middle)))
        # A class of probability 0 adds nothing, rather than 0 * -inf.
        expected = np.where(probabilities > 0, probabilities * logits, 0).sum(-1)
        low, high = (low, middle) if (expected - target).mean() > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def calibrate(log_probs: LogProbs, temperature: float) -> LogProbs:
    """Returns `log_softmax(log_probs / temperature)`; a temperature above 1 lowers the confidence."""
    scaled = log_probs.astype(np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def worst_mistakes(log_probs: LogProbs, labels: Labels, count: int) -> Int[np.ndarray, " k"]:
    """Returns the positions of the `count` wrong predictions of highest confidence, in descending order."""
    wrong = np.flatnonzero(log_probs.argmax(-1) != labels)
    return wrong[np.argsort(-log_probs[wrong].max(-1), kind="stable")][:count]


def confusions(matrix: Counts, count: int) -> list[tuple[int, int, int]]:
    """Returns the most frequent confusions as (true class, predicted class, count)."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    found = [(int(i // len(matrix)), int(i % len(matrix)), int(wrong.flat[i])) for i in order]
    return [confusion for confusion in found if confusion[2]]


def _of_label(values: np.ndarray, labels: Labels) -> np.ndarray:
    return np.take_along_axis(values, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
