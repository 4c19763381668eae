"""Sections of a page on several groups of runs that come from the predictions on the test images."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cnn_jax.report import web
from cnn_jax.report.ladder_figures import bounds, points
from cnn_jax.utils import text

FREQUENT = 8  # confusions listed beside the matrix

Row = Mapping[str, Any]  # of `cnn_jax.report.runs.summarise`


def calibration(rows: Sequence[Row]) -> str:
    """Returns the calibration error of each row, as it is and with the temperature that validation gives."""
    known = [row for row in rows if row["mean"]["calibration_error"] is not None]
    if not known:
        return ""
    head = ("", "calibration error, %", "with temperature, %", "temperature", "loss", "loss with temperature")
    lines = []
    for row in known:
        mean = row["mean"]
        lines.append(
            (
                row["name"],
                _range(row, "calibration_error"),
                _range(row, "calibrated_error"),
                _decimal(mean["temperature"], 2),
                _decimal(mean["loss"]),
                _decimal(mean["calibrated_loss"]),
            )
        )
    return web.section(
        "Calibration",
        "<p>How far a network's confidence is from its accuracy: the expected calibration error over 15 bins of equal "
        "width (Guo et al. 2017). Means over the seeds, with the lowest and the highest seed in parentheses. A "
        "temperature, which divides the logits, is fitted to each network on its validation images: above 1 it makes "
        "the network less sure. It changes no prediction."
        f"</p>{web.table(head, lines)}",
    )


def ensembles(rows: Sequence[Row]) -> str:
    """Returns what averaging the probabilities of a row's seeds gives."""
    known = [row for row in rows if row["predictions"] and row["predictions"]["ensemble"]]
    if not known:
        return ""
    head = ("", "networks", "mean of the seeds, %", "ensemble, %", "gain, points", "loss", "calibration error, %")
    head += ("with temperature, %", "temperature")
    lines = []
    for row in known:
        of = row["predictions"]["ensemble"]
        lines.append(
            (
                row["name"],
                of["members"],
                points(of["accuracy"] - of["gain"]),
                points(of["accuracy"]),
                f"{points(of['gain'], True)} {bounds(of['gain_interval'], True)}",
                _decimal(of["loss"]),
                points(of["calibration_error"]),
                points(of["calibrated_error"]),
                _decimal(of["temperature"], 2),
            )
        )
    return web.section(
        "Ensembles",
        "<p>The mean of the probabilities of all seeds of a row, with a temperature of its own. It costs as many "
        "evaluations as it has networks. The interval of the gain is a bootstrap over the test images.</p>"
        + web.table(head, lines),
    )


def classes(rows: Sequence[Row], pictures: Mapping[str, UInt8[np.ndarray, "n h w 3"] | None]) -> str:
    """Returns for each row its confusion matrix and the test images that all seeds get wrong; the best row is open.

    Args:
      rows: all rows.
      pictures: the images of `hardest` of each row, by its name; None where they are not there.
    """
    known = [row for row in rows if row["predictions"]]
    if not known:
        return ""
    best = max(known, key=lambda row: row["mean"]["accuracy"])
    parts = "".join(_class_part(row, pictures.get(row["name"]), row is best) for row in known)
    matrix = (
        "In a confusion matrix, a row is a true class and a column a predicted one. Cells are shares of their row in "
        "%, over all seeds; below a half they are left empty. "
        if len(known[0]["predictions"]["class_names"]) <= web.MOST
        else ""
    )
    return web.section(
        "Classes and mistakes",
        f"<p>{matrix}The pictures are the test images that every seed gets wrong, those with the surest prediction "
        "first: they are hard for the network, or labelled wrongly.</p>" + parts,
    )


def _class_part(row: Row, images: np.ndarray | None, opened: bool) -> str:
    of, n = row["predictions"], row["n"]
    wrong, right = of["wrong_in_all"], of["right_in_all"]
    every = "all seeds" if n > 1 else "the network"
    said = f"{wrong:,} of {text.count(of['images'], 'test image')} wrong in {every}, {right:,} right in {every}"
    matrix = np.array(of["confusion_matrix"])
    captions = [
        (f"{each['predicted']} · {_percent(each['probability'])}",
         f"true: {each['true']} · {_percent(each['probability_of_true'])}")
        for each in of["hardest"]
    ]  # fmt: skip
    shown = ""
    if images is not None and len(images):
        more = f" (the first {len(images)} of {wrong:,})" if wrong > len(images) else ""
        shown = (
            f"<h3>Wrong in {every}{more}</h3><p class='grey'>In colour the predicted class, below it the true one, "
            f"with their probabilities{', means over the seeds' if n > 1 else ''}.</p>{web.gallery(images, captions)}"
        )
    elif wrong:
        shown = "<p class='grey'>The test images are not there to be shown.</p>"
    names, several = of["class_names"], ""
    if len(names) <= web.MOST and matrix.sum() > np.trace(matrix):
        several = f"<h3>Most frequent confusions</h3>{web.frequent_confusions(matrix, names, FREQUENT)}"
    return (
        f"<details{' open' if opened else ''}><summary><b>{escape(row['name'])}</b>: {said}</summary>"
        f"<div class='pair'><div>{web.confusion(matrix, names, percent=True)}</div><div>{several}</div></div>"
        f"{shown}</details>"
    )


def _range(row: Row, name: str) -> str:
    """Returns the mean of a share over the seeds, with its range, in %."""
    values = [run[name] for run in row["runs"]]
    if None in values:
        return ""
    several = f" ({points(min(values))} to {points(max(values))})" if len(values) > 1 else ""
    return points(row["mean"][name]) + several


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
