"""Calibration of a network's confidence, and the rule by which an image belongs to none of its classes.

Both are fitted on the validation split by `python -m cnn_jax.evaluate`, which stores them in evaluation.json.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from cnn_jax.utils import files
from cnn_jax.workdir.layout import EVALUATION_FILE

PASSING = 0.95  # share of the validation images that the rule accepts

ALL_RIGHT = "every validation image is right, so no temperature can be fitted"

LogProbs = Float[np.ndarray, "n classes"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted for one network.

    Attributes:
      temperature: the log-probabilities are divided by it (Guo et al. 2017, arXiv:1706.04599); 1 if every validation
        image is right, from which none can be fitted.
      threshold: smallest calibrated probability of the predicted class with which an image is taken to belong to one
        of the classes (Hendrycks and Gimpel 2017, arXiv:1610.02136); None if it has not been fitted.
    """

    temperature: float
    threshold: float | None = None

    @property
    def changes(self) -> bool:
        """Whether there is a temperature."""
        return self.temperature != 1

    @property
    def about(self) -> str:
        """What was done to the probabilities, in words that follow them as the subject."""
        if self.changes:
            return f"are calibrated with temperature {self.temperature:.3f}, fitted on the validation split"
        return f"are the network's own: {ALL_RIGHT}"

    def __call__(self, log_probs: LogProbs) -> Float[np.ndarray, "n classes"]:
        """Returns the calibrated log-probabilities, float64."""
        return special.log_softmax(log_probs.astype(np.float64) / self.temperature, axis=-1)

    def fitted_to(self, log_probs: LogProbs) -> "Calibration":
        """Returns a copy with the threshold that `PASSING` of these validation images reach."""
        confidence = np.exp(self(log_probs).max(-1))
        return dataclasses.replace(self, threshold=float(np.quantile(confidence, 1 - PASSING, method="lower")))


def from_json(fields: Any) -> Calibration | None:
    """Returns the calibration that a JSON object describes, by the keys "temperature" and "threshold".

    None if it describes none.

    Raises:
      ValueError: the values are invalid.
    """
    if not isinstance(fields, dict) or fields.get("temperature") is None:
        return None
    temperature, threshold = fields["temperature"], fields.get("threshold")
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError("the temperature is not a positive number")
    if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
        raise ValueError("the threshold is not a probability")
    return Calibration(temperature, threshold)


def read(workdir: Path, step: int, seed: int | str | None) -> Calibration | None:
    """Returns the calibration of a run's network from its last evaluation.

    None if there is no evaluation, it is damaged, or it is of another step or choice of seeds.
    """
    try:
        evaluation = files.read_json(workdir / EVALUATION_FILE)
        return from_json(evaluation) if (evaluation["step"], evaluation.get("seed")) == (step, seed) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
