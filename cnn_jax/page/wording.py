"""How sure a network is, in words that need no explanation."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Calibrated probability of the first class: of answers this sure, that share is right.
CERTAIN = 0.95  # one in twenty is wrong, or fewer
SURE = 0.80  # one in five
LIKELY = 0.60  # more right than wrong; below it the second class is named too

# Below this share of the way from guessing (1 / classes) to certainty, no class is named. Of ten classes that is at
# 0.50, where a name would be wrong more often than right; of two at 0.72. Three networks of 50 to 57 % accuracy on
# CIFAR-10 gave a temple and a flower, which are none of its classes, 0.19 to 0.48. It is a hint only: a network can be
# sure of nonsense (Hendrycks and Gimpel 2017, arXiv:1610.02136), and these were of some handwritten digits.
UNFAMILIAR = 4 / 9

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of one picture.

    Attributes:
      headline: the answer.
      explanation: how far to trust it.
      familiar: whether a class is named.
    """

    headline: str
    explanation: str
    familiar: bool


def judge(probabilities: Float[np.ndarray, " classes"], class_names: Sequence[str], calibrated: bool) -> Verdict:
    """Puts the answer and how sure it is into words.

    Args:
      probabilities: of one picture.
      class_names: one a probability.
      calibrated: whether a temperature was fitted; otherwise a probability is a claim, and is called one.
    """
    if not np.isfinite(probabilities).all():
        return Verdict(
            "This network has no answer.",
            "What it computes is not a number: its training failed. Train again, or take another network.",
            False,
        )
    order = np.argsort(-probabilities, kind="stable")
    first, confidence = class_names[order[0]], float(probabilities[order[0]])
    chance = 1 / len(class_names)
    if confidence < chance + UNFAMILIAR * (1 - chance):
        nearest = f"The nearest is “{first}”. "
        return Verdict(_none_of(len(class_names)), nearest + _trust(confidence, calibrated), False)
    if confidence >= CERTAIN:
        headline = f"Almost certainly “{first}”."
    elif confidence >= SURE:
        headline = f"Very probably “{first}”."
    elif confidence >= LIKELY:
        headline = f"Probably “{first}”."
    else:
        headline = f"Perhaps “{first}”, or else “{class_names[order[1]]}”."
    return Verdict(headline, _trust(confidence, calibrated), True)


def percent(probability: float) -> str:
    """Returns a probability as a whole percentage; what is neither 0 nor 1 is not called so."""
    if 0.995 <= probability < 1:
        return "> 99 %"
    if 0 < probability < 0.005:
        return "< 1 %"
    return f"{100 * probability:.0f} %"


def count(number: int) -> str:
    """Returns a number in letters up to twelve, in digits beyond."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def _none_of(classes: int) -> str:
    group = "either of the two" if classes == 2 else f"any of the {count(classes)}"
    return f"This does not look like {group} classes."


def _trust(confidence: float, calibrated: bool) -> str:
    if not calibrated:
        return f"It claims {percent(confidence)}; how often such claims are right has not been measured."
    right = "more than 99" if confidence >= 0.995 else f"about {100 * confidence:.0f}"
    return f"Of 100 answers this sure, on pictures like those it learned from, {right} are right."
