"""Predictions and their confidence in words, for readers who know nothing of machine learning."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Calibrated probability of the most probable class, which is the share of such predictions that are right.
CERTAIN = 0.95
SURE = 0.80
LIKELY = 0.60  # below this, the second class is named too

# No class is named below 1 / classes + UNFAMILIAR * (1 - 1 / classes). For ten classes that is 0.50, below which a
# prediction is more often wrong than right; for two classes it is 0.72. Three networks with 50 to 57 % accuracy on
# CIFAR-10 gave 0.19 to 0.48 for a temple and a flower, which belong to none of its classes. This is only a hint:
# networks can be confident on images of no class (Hendrycks and Gimpel 2017, arXiv:1610.02136), as these networks were
# on some handwritten digits.
UNFAMILIAR = 4 / 9

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


def judge(probabilities: Float[np.ndarray, " classes"], class_names: Sequence[str], calibrated: bool) -> Verdict:
    """Returns the prediction and its confidence in words.

    Args:
      probabilities: of one picture.
      class_names: one per probability.
      calibrated: whether a temperature was fitted; otherwise the text says that the confidence is not calibrated.
    """
    if not np.isfinite(probabilities).all():
        return Verdict(
            "This network makes no prediction.",
            "Its output is not a number, because its training failed. Train again, or choose another network.",
            False,
        )
    order = np.argsort(-probabilities, kind="stable")
    first, confidence = class_names[order[0]], float(probabilities[order[0]])
    chance = 1 / len(class_names)
    if confidence < chance + UNFAMILIAR * (1 - chance):
        nearest = f"The closest class is “{first}”. "
        return Verdict(_none_of(len(class_names)), nearest + _reliability(confidence, calibrated), False)
    if confidence >= CERTAIN:
        headline = f"Almost certainly “{first}”."
    elif confidence >= SURE:
        headline = f"Very probably “{first}”."
    elif confidence >= LIKELY:
        headline = f"Probably “{first}”."
    else:
        headline = f"Perhaps “{first}”, or else “{class_names[order[1]]}”."
    return Verdict(headline, _reliability(confidence, calibrated), True)


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
