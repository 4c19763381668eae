"""Predictions and confidences in words, and on the card."""

import numpy as np
import pytest

from cnn_jax.inference.calibration import Calibration
from cnn_jax.page import cards, wording

CLASSES = tuple("abcdefghij")
FITTED = Calibration(1.5, 0.3)


def distribution(first: float, second: float = 0.0, classes: int = 10) -> np.ndarray:
    rest = (1 - first - second) / (classes - 2)
    return np.array([first, second] + [rest] * (classes - 2))


@pytest.mark.parametrize(
    ("first", "second", "headline"),
    [
        (1.0, 0, "Almost certainly “a”."),
        (0.951, 0, "Almost certainly “a”."),
        (0.949, 0, "Very probably “a”."),
        (0.79, 0, "Probably “a”."),
        (0.59, 0.4, "Perhaps “a”, or else “b”."),
        (0.3, 0.3, "Perhaps “a”, or else “b”."),
        (0.29, 0.2, "This does not look like any of the ten classes."),
        (0.1, 0.1, "This does not look like any of the ten classes."),
    ],
)
def test_confidence_in_words(first, second, headline):
    verdict = wording.judge(distribution(first, second), CLASSES, FITTED)
    assert verdict.headline == headline
    assert verdict.familiar == ("does not look" not in headline)
    if verdict.familiar:
        assert (
            f"{'more than 99' if first == 1 else f'about {100 * first:.0f}'} of 100 predictions" in verdict.explanation
        )
    else:
        assert verdict.explanation == (
            f"The closest class is “a”, with {100 * first:.0f} %. Of 100 pictures like its training data, 95 get at "
            "least 30 %."
        )


def test_a_probability_that_is_not_calibrated_is_said_to_be():
    for calibration in (None, Calibration(1.0, 0.3)):  # none was fitted, or none could be
        verdict = wording.judge(distribution(0.97), CLASSES, calibration)
        assert verdict.headline == "Almost certainly “a”."
        assert verdict.explanation == "Confidence: 97 %. How often such predictions are right has not been measured."


def test_the_threshold_is_the_networks_own():
    """Two and three classes need no higher confidence than their validation images have."""
    for classes, probabilities in ((2, [0.55, 0.45]), (3, [0.4, 0.35, 0.25])):
        names = ("a", "b", "c")[:classes]
        assert wording.judge(np.array(probabilities), names, Calibration(1.0, probabilities[0])).familiar
        assert not wording.judge(np.array(probabilities), names, Calibration(1.0, probabilities[0] + 0.01)).familiar
        for unknown in (None, Calibration(1.0)):  # without an evaluation, a class is always named
            assert wording.judge(np.array(probabilities), names, unknown).familiar
    assert "either of the two" in wording.judge(np.array([0.5, 0.5]), ("a", "b"), Calibration(1.0, 0.6)).headline
    assert wording.judge(np.array([1.0]), ("only",), Calibration(1.0, 1.0)).familiar


def test_a_failed_network_makes_no_prediction():
    verdict = wording.judge(np.full(10, np.nan), CLASSES, FITTED)
    assert verdict.headline == "This network makes no prediction."
    assert "width:0.0%" in cards.card([], verdict, [("a", float("nan"))], "")


def test_only_certainty_is_rounded_to_certainty():
    assert [wording.percent(p) for p in (0, 0.001, 0.005, 0.5, 0.994, 0.996, 1)] == [
        "0 %", "< 1 %", "< 1 %", "50 %", "99 %", "> 99 %", "100 %",
    ]  # fmt: skip


def test_names_cannot_break_the_page():
    verdict = wording.judge(distribution(0.97), ("<script>alert(1)</script>", *CLASSES[1:]), FITTED)
    page = cards.card([("data:,", '"><img onerror=x>', False)], verdict, [("<b>", 0.9)], "a < b")
    assert "<script" not in page
    assert "<img onerror" not in page
    assert "<b>" not in page
    assert 'alt="&quot;&gt;&lt;img' in page
