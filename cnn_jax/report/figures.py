"""Figures: each function returns a matplotlib figure.

Blue and orange (Okabe and Ito 2008) are colour-blind safe, and nothing is encoded by colour alone. pyplot is not used,
because it keeps every figure in memory and is not thread-safe.
"""

import base64
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cnn_jax import rng
from cnn_jax.evaluation.scores import expected_calibration_error, worst_mistakes
from cnn_jax.report.curves import Records, of_split, per_epoch
from cnn_jax.report.diagram import network_diagram
from cnn_jax.transforms.augment import Augmentation

__all__ = [
    "augmentations",
    "compare_runs",
    "confusion_matrix",
    "data_uri",
    "filters",
    "learning_curves",
    "mistakes",
    "network_diagram",
    "png",
    "range_test",
    "reliability_diagram",
]

BLUE, ORANGE, INK, GREY, LINE = "#0072b2", "#d55e00", "#1b1f24", "#656d76", "#e1e4e8"
LIGHT_BLUE, LIGHT_GREY = "#a6cee8", "#c9ced4"
_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
_MEASURES = {"loss": "Loss", "accuracy": "Accuracy"}


def png(figure: Figure, dpi: int = 150, facecolor: str = "white") -> bytes:
    """Renders a figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may have characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=facecolor)
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    """Returns the content of a PNG file as a data URI, for a self-contained page."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def learning_curves(records: Records, measures: Sequence[str] = tuple(_MEASURES)) -> Figure:
    """Draws loss and accuracy of a run over its epochs.

    Training values are averages over each epoch, while the network changes, with dropout and augmentation; validation
    is measured at the end of each epoch. Training accuracy may therefore be below validation accuracy.

    Args:
      records: as `cnn_jax.workdir.records.read_metrics` returns them.
      measures: "loss", "accuracy", or both, side by side.
    """
    figure = Figure(figsize=(4 * len(measures), 3.1), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures):
        frame(axes, _MEASURES[measure])
        _curve(axes, per_epoch(records, measure), "training", GREY, "--")
        _curve(axes, of_split(records, "validation", measure), "validation", BLUE)
        tests = of_split(records, "test", measure)
        if tests:
            axes.plot(
                *tests[-1],
                "*",
                color=ORANGE,
                ms=10,
                label=f"test {_number(measure, tests[-1][1])}",
                zorder=3,
                clip_on=False,
            )
        _finish_curves(axes, measure)
    return figure


def range_test(rates: Sequence[float], losses: Sequence[float], averages: Sequence[float], advice: float) -> Figure:
    """Draws the losses of a learning-rate range test, their moving averages, and the learning rate to try."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    frame(axes, "Learning-rate range test")
    axes.plot(rates, losses, ".", color=GREY, ms=3, label="loss of a step")
    axes.plot(rates, averages, color=BLUE, lw=1.8, label="moving average")
    axes.axvline(advice, color=ORANGE, ls="--", lw=1.4, label=f"to try: {advice:g}")
    finite = [value for value in averages if math.isfinite(value)]
    if finite:
        spread = max(finite[0] - min(finite), 0.1 * min(finite), 1e-6)
        axes.set_ylim(max(0, min(finite) - spread / 2), finite[0] + spread)  # the divergence would flatten the rest
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", color=GREY)
    axes.set_ylabel("training loss", color=GREY)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def compare_runs(runs: Mapping[str, Records]) -> Figure:
    """Draws the validation loss and accuracy of several named runs over their epochs."""
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    styles = itertools.cycle(itertools.product(("-", "--", ":"), _COLOURS))
    looks = {name: next(styles) for name in runs}
    for axes, (measure, title) in zip(figure.subplots(1, 2), _MEASURES.items()):
        frame(axes, f"Validation {title.lower()}")
        for name, records in runs.items():
            _curve(axes, of_split(records, "validation", measure), _plain(name), *reversed(looks[name]))
        _finish_curves(axes, measure)
    return figure


def confusion_matrix(matrix: Int[np.ndarray, "classes classes"], class_names: Sequence[str]) -> Figure:
    """Draws a confusion matrix: rows are true classes, columns predicted ones; the colour is the share of the row."""
    count, names = len(class_names), [_plain(name) for name in class_names]
    written = count <= 20
    side = min(2.6 + 0.42 * count, 9 if written else 14)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape) if written else ():
        if matrix[row, column]:
            colour = "white" if share[row, column] > 0.55 else INK
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", size=8, color=colour)
    size = 9 if written else max(2.5, 300 / count)
    long = max(map(len, names)) > 3
    axes.set_xticks(range(count), names, size=size)
    if long:
        axes.set_xticks(range(count), names, size=size, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names, size=size)
    axes.set_xlabel("predicted class", color=GREY)
    axes.set_ylabel("true class", color=GREY)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if written:
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", lw=1.2)
        axes.tick_params(which="minor", length=0)
    return figure


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws accuracy against confidence, and below it the distribution of the confidence.

    Args:
      bins: as `cnn_jax.evaluation.scores.calibration_bins` returns them.
    """
    figure = Figure(figsize=(4.2, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    frame(upper, "")
    frame(lower, "")
    full = [row for row in bins if row["count"]]
    left, width = [row["lower"] for row in full], bins[0]["upper"] - bins[0]["lower"]
    upper.bar(left, [row["accuracy"] for row in full], 0.94 * width, align="edge", color=LIGHT_BLUE)
    upper.plot([0, 1], [0, 1], "--", color=GREY, lw=1, label="calibrated")
    upper.plot(
        [row["confidence"] for row in full],
        [row["accuracy"] for row in full],
        "o",
        color=BLUE,
        ms=5,
        clip_on=False,
        label="measured",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_ylabel("Accuracy", color=GREY)
    title = f"Expected calibration error {expected_calibration_error(bins):.1%}"
    upper.set_title(title, size=10, loc="left", color=INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    total = sum(row["count"] for row in full)
    lower.bar(left, [row["count"] / total for row in full], 0.94 * width, align="edge", color=LIGHT_GREY)
    lower.set_xlabel("Confidence", color=GREY)
    lower.set_ylabel("Images", color=GREY)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def mistakes(
    images: UInt8[np.ndarray, "n height width 3"],
    labels: Int[np.ndarray, " n"],
    log_probs: Float[np.ndarray, "n classes"],
    class_names: Sequence[str],
    count: int = 24,
) -> Figure:
    """Draws the `count` wrong predictions of highest confidence, in descending order."""
    chosen, names = worst_mistakes(log_probs, labels, count), [_plain(name, 14) for name in class_names]
    if not len(chosen):
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "No mistakes.", ha="center", va="center", size=12, color=GREY)
        return figure
    figure, grid = _grid(len(chosen), 6, (1.35, 1.72))
    for axes, index in zip(grid, chosen):
        axes.imshow(images[index], interpolation="nearest")
        predicted = log_probs[index].argmax()
        axes.set_title(
            f"{names[predicted]} · {np.exp(log_probs[index, predicted]):.0%}",
            size=8.5,
            color=ORANGE,
            weight="bold",
            pad=12,
        )
        axes.text(0.5, 1.03, f"true: {names[labels[index]]}", size=8, ha="center", transform=axes.transAxes, color=INK)
    return figure


def filters(kernel: Float[np.ndarray, "height width inputs outputs"]) -> Figure:
    """Draws the filters of a convolution: in colour for three input channels, otherwise their mean over the inputs.

    Each filter is scaled to its own largest weight, so that patterns and not magnitudes are compared; grey is zero.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.shape[2] != 3:
        kernel = kernel.mean(2, keepdims=True).repeat(3, 2)
    figure, grid = _grid(kernel.shape[3], 16, (0.5, 0.5))
    for axes, index in zip(grid, range(kernel.shape[3])):
        pattern = kernel[..., index]
        axes.imshow(0.5 + 0.5 * pattern / max(np.abs(pattern).max(), 1e-12), interpolation="nearest")
    return figure


def augmentations(
    image: UInt8[np.ndarray, "height width 3"], augmentation: Augmentation, count: int = 11, seed: int = 0
) -> Figure:
    """Draws an image and `count` random augmentations of it."""
    copies = jnp.asarray(np.repeat(image[None], count, 0), jnp.float32) / 255
    changed = np.asarray(augmentation(copies, rng.stream(rng.root(seed), "augment")))
    figure, grid = _grid(count + 1, 6, (1.35, 1.42))
    for axes, picture in zip(grid, [image, *np.clip(changed, 0, 1)]):
        axes.imshow(picture, interpolation="nearest")
    grid[0].set_title("original", size=9, color=BLUE, weight="bold")
    for spine in grid[0].spines.values():
        spine.set(visible=True, color=BLUE, lw=2)
    return figure


def _grid(count: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Returns a figure and at least `count` axes without ticks; `cell` is the width and height per axes in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(columns * cell[0], 2), rows * cell[1]), layout="constrained")
    grid = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in grid:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid


def frame(axes: Axes, title: str) -> None:
    axes.set_title(title, size=11, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT_GREY)
    axes.tick_params(colors=GREY, labelsize=9, length=3)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)


def _curve(axes: Axes, points: list[tuple[float, float]], label: str, colour: str, style: str = "-") -> None:
    if points:
        marker = "o" if len(points) <= 12 else None
        axes.plot(*zip(*points), style, color=colour, lw=1.8, marker=marker, ms=3.5, label=label)


def _finish_curves(axes: Axes, measure: str) -> None:
    axes.set_xlabel("epoch", color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if measure == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    else:
        axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _number(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure == "accuracy" else f"{value:.3f}"


def _plain(name: str, longest: int = 20) -> str:
    """Returns a shortened name in which matplotlib does not read dollar signs as formulas."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")
