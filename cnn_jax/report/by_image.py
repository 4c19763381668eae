"""What the predictions on the test images add to a report: calibration, ensembles, comparisons by test image.

All rows are scored on the same images, so that they can be compared image by image.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from cnn_jax.evaluation import scores
from cnn_jax.evaluation.predictions import Predictions
from cnn_jax.evaluation.statistics import bootstrap_interval

HARDEST = 24  # images that are shown

LogProbs = Float[np.ndarray, "n classes"]


@dataclasses.dataclass(frozen=True)
class OfRow:
    """The predictions of all seeds of a row, on the same images.

    Attributes:
      class_names: one per column.
      fingerprint: of the test images.
      labels: of the test images.
      test: log-probabilities of the test images, by seed.
      validation_labels: of the validation images, of which there may be none.
      validation: log-probabilities of the validation images, by seed.
    """

    class_names: tuple[str, ...]
    fingerprint: str
    labels: Int32[np.ndarray, " n"]
    test: dict[int, LogProbs]
    validation_labels: Int32[np.ndarray, " m"]
    validation: dict[int, Float[np.ndarray, "m classes"]]

    @classmethod
    def join(cls, of_seeds: Mapping[int, tuple[Predictions, int]]) -> "OfRow | None":
        """Joins the predictions of seeds, each a run and its index there; None if their images are not the same."""
        first, _ = next(iter(of_seeds.values()))
        same = all(
            held.fingerprint == first.fingerprint and np.array_equal(held.validation_labels, first.validation_labels)
            for held, _ in of_seeds.values()
        )
        if not same:
            return None
        return cls(
            first.class_names,
            first.fingerprint,
            first.labels,
            {seed: held.log_probs[index] for seed, (held, index) in sorted(of_seeds.items())},
            first.validation_labels,
            {seed: held.validation_log_probs[index] for seed, (held, index) in sorted(of_seeds.items())},
        )

    def accuracies(self) -> dict[int, float]:
        """Returns the accuracy of each seed on the test images."""
        return {seed: scores.accuracy(log_probs, self.labels) for seed, log_probs in self.test.items()}

    def calibration(self) -> dict[int, dict[str, float | None]]:
        """Returns the scores of each seed that probabilities decide (see `calibration`)."""
        return {
            seed: calibration(log_probs, self.labels, self.validation[seed], self.validation_labels)
            for seed, log_probs in self.test.items()
        }

    def summary(self) -> dict[str, Any]:
        """Returns what results.json has of the predictions.

        `confusion_matrix` is summed over the seeds; `wrong_in_all` and `right_in_all` are numbers of test images;
        `hardest` are the `HARDEST` images that all seeds get wrong, with the surest prediction first.
        """
        wrong = self._wrong()
        return {
            "images": len(self.labels),
            "class_names": list(self.class_names),
            "confusion_matrix": np.sum(
                [scores.confusion_matrix(each, self.labels) for each in self.test.values()], 0
            ).tolist(),
            "wrong_in_all": int(wrong.all(0).sum()),
            "right_in_all": int((~wrong).all(0).sum()),
            "hardest": self.hardest(),
            "ensemble": self._ensemble() if len(self.test) > 1 else None,
        }

    def _wrong(self) -> np.ndarray:
        """Returns whether each seed is wrong about each test image, `[seeds, n]`."""
        return np.stack([each.argmax(-1) != self.labels for each in self.test.values()])

    def _ensemble(self) -> dict[str, Any]:
        """Returns the scores of the mean of the seeds' probabilities, with a temperature of its own."""
        test, validation = mean_of(list(self.test.values())), mean_of(list(self.validation.values()))
        right = test.argmax(-1) == self.labels
        gain = right - (1 - self._wrong().mean(0))
        return {
            "members": len(self.test),
            "accuracy": float(right.mean()),
            "gain": float(gain.mean()),
            "gain_interval": list(bootstrap_interval(gain)),
            **calibration(test, self.labels, validation, self.validation_labels),
        }

    def hardest(self, count: int = HARDEST) -> list[dict[str, Any]]:
        """Returns the images that all seeds get wrong: position, true class, predicted class and their probabilities.

        The predicted class is that of most seeds; probabilities are means over the seeds.
        """
        chosen = np.flatnonzero(self._wrong().all(0))
        # Of a network whose training failed, probabilities are NaN.
        probabilities = np.nan_to_num(np.exp(mean_of([each[chosen] for each in self.test.values()])))
        votes = np.zeros_like(probabilities)
        for each in self.test.values():
            votes[np.arange(len(chosen)), each[chosen].argmax(-1)] += 1
        predicted = (votes + probabilities / 2).argmax(-1)  # of classes with the same votes, the more probable
        rows = np.arange(len(chosen))
        sure, of_true = probabilities[rows, predicted], probabilities[rows, self.labels[chosen]]
        order = np.argsort(-sure, kind="stable")[:count]
        return [
            {
                "index": int(chosen[row]),
                "true": self.class_names[self.labels[chosen[row]]],
                "predicted": self.class_names[predicted[row]],
                "probability": float(sure[row]),
                "probability_of_true": float(of_true[row]),
            }
            for row in order
        ]


def mean_of(log_probs: Sequence[LogProbs]) -> LogProbs:
    """Returns the logarithm of the mean of probabilities."""
    stacked = np.stack(log_probs).astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.logaddexp.reduce(stacked, 0) - np.log(len(stacked))


def calibration(
    test: LogProbs,
    labels: Int[np.ndarray, " n"],
    validation: Float[np.ndarray, "m classes"],
    validation_labels: Int[np.ndarray, " m"],
) -> dict[str, float | None]:
    """Returns loss and calibration error on the test images, and both with the temperature that fits validation.

    Values that need the temperature are None without validation images; all are None where a prediction is not finite.
    """
    names = ("loss", "calibration_error", "temperature", "calibrated_loss", "calibrated_error")
    found: dict[str, float | None] = dict.fromkeys(names)
    if not (np.isfinite(test).all() and np.isfinite(validation).all()):
        return found
    found |= {"loss": scores.loss(test, labels), "calibration_error": _error(test, labels)}
    if len(validation):
        temperature = scores.fit_temperature(validation, validation_labels)
        scaled = scores.calibrate(test, temperature)
        found |= {"temperature": temperature, "calibrated_loss": scores.loss(scaled, labels)}
        found["calibrated_error"] = _error(scaled, labels)
    return found


def difference(before: OfRow | None, after: OfRow | None) -> dict[str, Any] | None:
    """Returns the difference of the test accuracies of two rows, paired by image; None without common images or seeds.

    Of each image the difference is that of the shares of the common seeds that get it right. The interval is of the
    paired bootstrap over the images (see `bootstrap_interval`). For one seed, it concerns the images that only one of
    the two networks gets right, as the test of McNemar (1947) does.
    """
    if not (before and after) or before.fingerprint != after.fingerprint:
        return None
    seeds = before.test.keys() & after.test.keys()
    if not seeds:
        return None
    first, second = (
        np.mean([row.test[seed].argmax(-1) == row.labels for seed in seeds], axis=0) for row in (before, after)
    )
    values = second - first
    return {"images": len(values), "mean": float(values.mean()), "interval": list(bootstrap_interval(values))}


def _error(log_probs: LogProbs, labels: Int[np.ndarray, " n"]) -> float:
    return scores.expected_calibration_error(scores.calibration_bins(log_probs, labels))
