"""Figures of several groups of runs: waterfall of the gains, test accuracy per seed, learning curves with bands.

Each function takes rows of `cnn_jax.report.runs.summarise` and returns a matplotlib figure. `narrow` ones fit a phone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory

from cnn_jax.report.figures import BLUE, GREY, INK, LIGHT_GREY, LINE, ORANGE, frame

_MINUS = "\N{MINUS SIGN}"
_COLUMNS = ((0.727, "right"), (0.756, "left"))  # of numbers beside the bars: share of the width, alignment
_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g} %")

Rows = Sequence[Mapping[str, Any]]
Curve = Sequence[tuple[float, float, float, float]]  # epoch, mean, lowest, highest


def points(value: float | None, signed: bool = False) -> str:
    """Returns a fraction in percent, or a difference of fractions in percentage points, with one decimal."""
    if value is None:
        return ""
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return text.replace("-", _MINUS) if float(text) else "0.0"


def bounds(interval: Sequence[float] | None, signed: bool = False) -> str:
    """Returns an interval of fractions as "[52.1, 54.0]", in percent; empty without an interval."""
    return f"[{points(interval[0], signed)}, {points(interval[1], signed)}]" if interval else ""


def svg(figure: Figure) -> bytes:
    """Renders a figure as an SVG file with text as text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnn_jax"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def waterfall(rows: Rows, narrow: bool = False) -> Figure:
    """Draws what each row adds to the test accuracy of the row before, with the 95 % interval of the gain.

    A bar reaches from the mean of one row to that of the next. It is solid where the difference is significant (see
    `cnn_jax.report.runs.summarise`) and pale elsewhere.
    """
    figure, axes, half = _lines(rows, narrow)
    edges = []
    for y, row in enumerate(rows):
        mean, of = row["mean"]["accuracy"], row["difference"]
        before = rows[y - 1]["mean"]["accuracy"] if y else mean
        if y:
            axes.plot([before, before], [y - 1 + half, y - half], color=LIGHT_GREY, lw=1)
        interval = row["interval"]["accuracy"]
        if of:
            colour = BLUE if mean >= before else ORANGE
            alpha = 1.0 if of["significant"] else 0.35
            axes.barh(y, mean - before, 2 * half, left=before, color=colour, alpha=alpha, lw=0)
            # Around the end of the bar, which differs from `before` + gain where not all seeds are in both rows.
            interval = of["interval"] and [mean + bound - of["mean"] for bound in of["interval"]]
        if not of:
            axes.plot([mean, mean], [y - half, y + half], color=BLUE, lw=3)
        _whisker(axes, interval, y)
        edges += [mean, *(interval or ())]
        level = f"{points(mean)} %"
        gain = f"{points(of['mean'], True)} {bounds(of['interval'], True)}".strip() if of else ""
        _label(axes, y, row["name"], level, gain, narrow)
    _finish(axes, edges, narrow, "Gain in points, 95 % interval")
    return figure


def accuracies(rows: Rows, narrow: bool = False, reference: bool = False) -> Figure:
    """Draws the test accuracy of every seed as a dot, with the mean and its 95 % t interval.

    Args:
      rows: see above.
      narrow: for a phone.
      reference: also draw the number of the reference, as a diamond.
    """
    figure, axes, half = _lines(rows, narrow)
    edges = []
    for y, row in enumerate(rows):
        values = [run["accuracy"] for run in row["runs"]]
        mean, interval = row["mean"]["accuracy"], row["interval"]["accuracy"]
        heights = y + np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [y]
        axes.plot(values, heights, "o", color=BLUE, ms=4.5, alpha=0.55, mew=0)
        axes.plot([mean, mean], [y - half, y + half], color=INK, lw=1.8)
        _whisker(axes, interval, y)
        edges += [*values, mean, *(interval or ())]
        text = f"ours {points(mean)} %" if reference and narrow else f"{points(mean)} % {bounds(interval)}".strip()
        theirs = (row["reference"] or {}).get("accuracy") if reference else None
        if theirs is not None:
            axes.plot(theirs, y, "D", color=ORANGE, ms=6, mew=0)
            edges.append(theirs)
        shown = f"n = {row['n']}"
        if reference:
            shown = "reference " * narrow + ("no number" if theirs is None else f"{points(theirs)} %")
        _label(axes, y, row["name"], shown, text, narrow)
    _finish(axes, edges, narrow, "Mean, 95 % interval", "Reference" if reference else "Seeds")
    return figure


def beside_reference(rows: Rows) -> Figure:
    """Draws the waterfall of the reference's single runs beside that of ours, one line per stage.

    Lines on ours are 95 % intervals: of the mean of the first stage, and of the gains over the stage before, paired by
    seed. The waterfall of the reference leaves out stages for which it has no number.
    """
    pitch, above, below = 0.42, 0.55, 0.3
    height = len(rows) * pitch + above + below
    figure = Figure(figsize=(9.0, height))
    left, right = (figure.add_axes((x, below / height, 0.36, len(rows) * pitch / height)) for x in (0.18, 0.62))
    steps: list[_Step] = []
    for row in rows:
        of, mean = row["difference"], row["mean"]["accuracy"]
        interval = [mean + bound - of["mean"] for bound in of["interval"] or ()] if of else row["interval"]["accuracy"]
        steps.append((mean, interval or ()))
    theirs = [(row["reference"] or {}).get("accuracy") for row in rows]
    _steps(left, [(value, ()) for value in theirs], "Reference", "50,000 images, 50 to 100 epochs, one run per stage")
    _steps(right, steps, "Ours", _protocol(rows))
    for y, row in enumerate(rows):
        place = {"va": "center", "ha": "right", "transform": left.get_yaxis_transform()}
        left.text(-0.03, y, _short(row["name"], False), size=10, color=INK, **place)
    return figure


_Step = tuple[float | None, Sequence[float]]  # a level, and the bounds of its interval or ()


def _steps(axes: Axes, steps: Sequence[_Step], title: str, subtitle: str) -> None:
    """Draws a waterfall whose bars are labelled with the levels that they reach."""
    axes.set_ylim(len(steps) - 0.5, -0.5)
    _horizontal(axes, ticks=6)
    axes.text(0, 1.1, title, size=10.5, color=INK, weight="bold", transform=axes.transAxes)
    axes.text(0, 1.02, subtitle, size=9, color=GREY, transform=axes.transAxes)
    edges, before = [], None
    for y, (level, interval) in enumerate(steps):
        if level is None:
            axes.text(0.02, y, "no number", size=9, color=GREY, va="center", transform=axes.get_yaxis_transform())
            continue
        if before is not None:
            axes.barh(y, level - before, 0.54, left=before, color=BLUE if level >= before else ORANGE, alpha=0.45, lw=0)
        axes.plot([level, level], [y - 0.27, y + 0.27], color=BLUE if level >= (before or 0) else ORANGE, lw=2.5)
        _whisker(axes, interval, y)
        reach = [level, *interval, *([] if before is None else [before])]
        axes.text(max(reach), y, f"  {points(level)}", size=9, color=INK, va="center")
        edges += reach
        before = level
    low, high = min(edges), max(edges)
    axes.set_xlim(low - 0.05 * (high - low), high + 0.17 * (high - low))


def _protocol(rows: Rows) -> str:
    """Returns what is equal in all rows: images, epochs, seeds."""
    images, epochs, seeds = (
        {value(row) for row in rows}
        for value in (
            lambda row: row["config"]["data.train_examples"],
            lambda row: row["config"]["epochs"],
            lambda row: row["n"],
        )
    )
    parts = [f"{images.pop() or 50_000:,} images"] if len(images) == 1 else []
    parts += [f"{epochs.pop()} epochs"] if len(epochs) == 1 else []
    parts += [f"n = {seeds.pop()}"] if len(seeds) == 1 else []
    return ", ".join(parts)


def curves(
    named: Mapping[str, Mapping[str, Curve]], measure: str = "accuracy", columns: int = 3, titles: bool = True
) -> Figure:
    """Draws training and validation curves, one panel per row: mean over the seeds, and their range as a band.

    Args:
      named: the curves "train" and "validation" of each row.
      measure: "accuracy" or "loss".
      columns: of panels.
      titles: whether each panel has the name of its row.
    """
    columns = min(columns, len(named))
    count = -(-len(named) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * count), layout="constrained")
    grid = figure.subplots(count, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, splits) in zip(grid, named.items()):
        frame(axes, name if titles else "")
        for split, colour, style in (("train", GREY, "--"), ("validation", BLUE, "-")):
            curve = splits.get(split) or ()
            if curve:
                epochs, means, low, high = zip(*curve)
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
                axes.plot(epochs, means, style, color=colour, lw=1.6, label="training" if split == "train" else split)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel("epoch", color=GREY, size=9)
    for axes in grid[len(named) :]:
        axes.axis("off")
    if grid[0].get_legend_handles_labels()[0]:
        grid[0].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _lines(rows: Rows, narrow: bool) -> tuple[Figure, Axes, float]:
    """Returns axes with one line per row, the first on top, 1 apart; and half of the height of a bar.

    Labels are beside the lines, or above them if narrow.
    """
    width, pitch, half = (3.9, 0.64, 0.2) if narrow else (9.0, 0.46, 0.27)
    above, below = (0.12, 0.4) if narrow else (0.4, 0.4)
    height = len(rows) * pitch + above + below
    figure = Figure(figsize=(width, height))
    names = max(len(_short(row["name"], narrow)) for row in rows)
    left, right = (0.03, 0.97) if narrow else (max(0.1, 0.02 + 0.0095 * names), 0.66)
    axes = figure.add_axes((left, below / height, right - left, len(rows) * pitch / height))
    axes.set_ylim(len(rows) - 0.55, -0.7 if narrow else -0.55)
    _horizontal(axes, ticks=5 if narrow else 7)
    return figure, axes, half


def _horizontal(axes: Axes, ticks: int) -> None:
    """Styles axes whose rows have labels of their own: a percentage below, and nothing else but a light grid."""
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT_GREY)
    axes.tick_params(colors=GREY, labelsize=9, length=3)
    axes.grid(axis="x", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))


def _short(name: str, narrow: bool) -> str:
    longest = 20 if narrow else 34
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _whisker(axes: Axes, interval: Sequence[float] | None, y: float) -> None:
    if interval:
        axes.errorbar(
            sum(interval) / 2,
            y,
            xerr=(interval[1] - interval[0]) / 2,
            fmt="none",
            ecolor=INK,
            elinewidth=1.2,
            capsize=3,
        )


def _label(axes: Axes, y: int, name: str, first: str, second: str, narrow: bool) -> None:
    """Labels a row with its name and two numbers, which are given as text."""
    name = _short(name, narrow).replace("$", r"\$")
    across = axes.get_yaxis_transform()
    if narrow:
        axes.text(0, y - 0.43, name, size=9.5, color=INK, weight="bold", va="center", transform=across)
        text = " \N{MIDDLE DOT} ".join(filter(None, (first, second)))
        axes.text(1, y - 0.43, text, size=9, color=INK, va="center", ha="right", transform=across)
        return
    axes.text(-0.02, y, name, size=10, color=INK, va="center", ha="right", transform=across)
    place = blended_transform_factory(axes.figure.transFigure, axes.transData)
    for (x, side), text in zip(_COLUMNS, (first, second)):
        axes.text(x, y, text, size=10, color=INK, va="center", ha=side, transform=place)


def _finish(axes: Axes, edges: Sequence[float], narrow: bool, second: str, first: str = "Accuracy") -> None:
    low, high = min(edges), max(edges)
    margin = 0.04 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    if narrow:
        return
    place = blended_transform_factory(axes.figure.transFigure, axes.transAxes)
    for (x, side), text in zip(_COLUMNS, (first, second)):
        axes.text(x, 1.03, text, size=9, color=GREY, va="bottom", ha=side, transform=place)
