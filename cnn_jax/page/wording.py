"""Predictions and their confidence in words, for readers who know nothing of machine learning."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cnn_jax.inference.calibration import PASSING, Calibration

# Calibrated probability of the most probable class, which is the share of such predictions that are right.
CERTAIN = 0.95
SURE = 0.80
LIKELY = 0.60  # below this, the second class is named too

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The text for one picture.

    Attributes:
      headline: the prediction.
      explanation: how reliable it is.
      familiar: whether the headline names a class.
    """

    headline: str
    explanation: str
    familiar: bool


def judge(
    probabilities: Float[np.ndarray, " classes"], class_names: Sequence[str], calibration: Calibration | None
) -> Verdict:
    """Returns the prediction and its confidence in words.

    Args:
      probabilities: of one picture, calibrated if there is a calibration.
      class_names: one per probability.
      calibration: with whose threshold the picture is taken to show none of the classes (docs/inference.md has the
        rule's errors). Without one, the text says that the confidence is not calibrated, and a class is always named.
    """
    if not np.isfinite(probabilities).all():
        return Verdict(
            "This network makes no prediction.",
            "Its output is not a number, because its training failed. Train again, or choose another network.",
            False,
        )
    order = np.argsort(-probabilities, kind="stable")
    first, confidence = class_names[order[0]], float(probabilities[order[0]])
    threshold = calibration.threshold if calibration else None
    if threshold is not None and confidence < threshold:
        return Verdict(
            _none_of(len(class_names)),
            f"The closest class is “{first}”, with {percent(confidence)}. Of 100 pictures like its training data, "
            f"{100 * PASSING:.0f} get at least {percent(threshold)}.",
            False,
        )
    if confidence >= CERTAIN:
        headline = f"Almost certainly “{first}”."
    elif confidence >= SURE:
        headline = f"Very probably “{first}”."
    elif confidence >= LIKELY:
        headline = f"Probably “{first}”."
    else:
        headline = f"Perhaps “{first}”, or else “{class_names[order[1]]}”."
    return Verdict(headline, _reliability(confidence, calibration is not None and calibration.changes), True)


def percent(probability: float) -> str:
    """Returns a probability as a whole percentage, with 0 % and 100 % for exactly 0 and 1 only."""
    if 0.995 <= probability < 1:
        return "> 99 %"
    if 0 < probability <= 0.005:
        return "< 1 %"
    return f"{100 * probability:.0f} %"


def count(number: int) -> str:
    """Returns a number in words up to twelve, and in digits above."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def _none_of(classes: int) -> str:
    group = "either of the two" if classes == 2 else f"any of the {count(classes)}"
    return f"This does not look like {group} classes."


def _reliability(confidence: float, calibrated: bool) -> str:
    if not calibrated:
        return f"Confidence: {percent(confidence)}. How often such predictions are right has not been measured."
    right = "more than 99" if confidence >= 0.995 else f"about {100 * confidence:.0f}"
    return f"On pictures like its training data, {right} of 100 predictions with this confidence are right."
