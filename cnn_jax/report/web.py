"""Parts of the HTML pages: one file each, without scripts, for screens and phones, light and dark."""

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from cnn_jax.evaluation.scores import confusions
from cnn_jax.report.figures import BLUE, GREY, INK, LIGHT_BLUE, LIGHT_GREY, LINE, ORANGE, data_uri

# Colours of figures, and the CSS variables that stand for them.
_THEME = {BLUE: "--blue", ORANGE: "--orange", INK: "--ink", GREY: "--grey", LINE: "--line", LIGHT_GREY: "--line"}
_THEME |= {LIGHT_BLUE: "--pale"}

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --grey: #59626c; --line: #d8dde2; --blue: #0072b2;
  --orange: #c25400; --soft: #f5f7f9; --pale: #a6cee8; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --ink: #e8ecf0; --grey: #a3adb8; --line: #343b44;
  --blue: #56b4e9; --orange: #ff9a4d; --soft: #1a2027; --pale: #24506e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p, li { max-width: 48rem; }
p { margin: .3rem 0 .9rem; }
.grey, figcaption { color: var(--grey); }
.note { border-left: 3px solid var(--orange); background: var(--soft); padding: .6rem 1rem; margin: 1rem 0;
  max-width: 48rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.6rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.65rem; line-height: 1.3; color: var(--blue);
  font-variant-numeric: tabular-nums; }
.card span { color: var(--grey); font-size: .85rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; max-width: 48rem; margin-top: .5rem; }
svg, img { display: block; max-width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.phone { display: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .6rem 1.2rem; }
.panels svg { width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
.pair svg { width: 100%; max-width: 30rem; }
.scroll { overflow-x: auto; }
.paper { --ink: #1b1f24; --grey: #59626c; --line: #d8dde2; --pale: #a6cee8; background: #fff; border-radius: .5rem;
  padding: .4rem;
  width: fit-content; max-width: 100%; overflow-x: auto; }
.paper svg { max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .6rem 0 1rem; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: normal;
  vertical-align: top; }
td { white-space: nowrap; }
.remarks td:last-child, .remarks th:last-child { text-align: left; white-space: normal; min-width: 14rem; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.text td { white-space: normal; }
.text td:first-child { white-space: nowrap; }
.compact td:first-child { white-space: pre-wrap; overflow-wrap: anywhere; }
thead th { max-width: 9rem; color: var(--grey); font-size: .85rem; vertical-align: bottom; }
.matrix { font-size: .8rem; border-collapse: separate; border-spacing: 2px; margin: .3rem 0; }
.matrix th, .matrix td { padding: 0 .15rem; border: 0; text-align: center; vertical-align: middle; height: 2.1rem;
  min-width: 2.4rem; }
.matrix td { border-radius: 3px; background: color-mix(in srgb, var(--tint) calc(100% * var(--share)), var(--soft)); }
.matrix tbody th { text-align: right; padding-right: .5rem; max-width: 9rem; color: var(--ink); overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.matrix thead th { color: var(--ink); padding-bottom: .3rem; height: auto; }
.matrix .tall span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8rem; overflow: hidden;
  white-space: nowrap; margin: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.4rem, 1fr)); gap: 1rem .9rem;
  margin: 1rem 0; }
.gallery figure { margin: 0; }
.gallery img { width: 100%; border-radius: .3rem; background: var(--soft); }
.gallery.small img { image-rendering: pixelated; }
.gallery figcaption { font-size: .76rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
.gallery b { color: var(--orange); }
code { font-size: .88em; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: .3rem 0 .8rem; }
a { color: var(--blue); }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; }
@media (max-width: 46rem) {
  body { padding: 1.2rem .9rem 3rem; }
  .desk { display: none; }
  .phone { display: block; }
  .phone svg { width: 100%; }
  .cards { grid-template-columns: 1fr 1fr; }
  .gallery { grid-template-columns: repeat(3, 1fr); gap: .8rem .6rem; }
  .gallery figcaption { font-size: .7rem; }
  .compact, .matrix { width: 100%; }
  .compact th, .compact td { padding-right: .4rem; font-size: .85rem; }
  .compact th:last-child, .compact td:last-child { padding-right: 0; }
  .matrix { font-size: .68rem; border-spacing: 1px; table-layout: fixed; }
  .matrix th, .matrix td { min-width: 0; padding: 0; height: 1.8rem; }
  .matrix tbody th, .matrix thead th:first-child { width: var(--label); padding-right: .3rem; }
  table.cells, .cells tbody, .cells tr, .cells td { display: block; width: 100%; }
  .cells thead { display: none; }
  .cells tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .cells td, .text td { border: 0; padding: .1rem 0; display: flex; justify-content: space-between; gap: 1rem;
    white-space: normal; text-align: right; }
  .cells td:first-child { font-weight: 600; }
  .cells td:not(:first-child)::before { content: attr(data-label); color: var(--grey); text-align: left; }
  .cells td:empty { display: none !important; }
  .text td:not(:first-child) { display: block; text-align: left; }
  .text td:not(:first-child)::before { display: block; font-size: .85rem; }
}
@media print { body { padding: 0; font-size: 11pt; } section, .gallery figure { break-inside: avoid; } }
"""

MOST = 20  # classes of a confusion matrix that is shown whole
_SIDE = 96  # pixels of a picture in a gallery


def document(title: str, body: str) -> str:
    """Returns a page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
{body}
</body></html>
"""


def section(title: str, body: str) -> str:
    """Returns a part of the page with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(head: Sequence[str], lines: Iterable[Sequence[Any]], kind: str = "cells") -> str:
    """Returns a table.

    Args:
      head: the titles of the columns; no head if all are empty.
      lines: the rows.
      kind: "cells" becomes one block per row on a phone; "compact" stays a table.
    """
    kind += " remarks" if head[-1] == "remarks" else ""
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    header = f"<thead><tr>{header}</tr></thead>" if any(head) else ""
    body = "".join(
        "<tr>"
        + "".join(f"<td data-label='{escape(name)}'>{escape(str(cell))}</td>" for name, cell in zip(head, line))
        + "</tr>"
        for line in lines
    )
    return f"<div class='scroll'><table class='{kind}'>{header}<tbody>{body}</tbody></table></div>"


def confusion(matrix: Int[np.ndarray, "classes classes"], class_names: Sequence[str], percent: bool = False) -> str:
    """Returns a confusion matrix as a table, or for many classes the most frequent confusions.

    Args:
      matrix: counts per true class (row) and predicted class (column).
      class_names: one per class.
      percent: whether cells show the share of their row rather than the count.
    """
    total = np.maximum(matrix.sum(1, keepdims=True), 1)
    if len(matrix) > MOST:
        return frequent_confusions(matrix, class_names, MOST)
    names, share = [escape(name) for name in class_names], matrix / total
    tall = " class='tall'" if max(map(len, class_names)) > 3 else ""
    head = "".join(f"<th{tall}><span>{name}</span></th>" for name in names)
    body = ""
    for row, name in enumerate(names):
        cells = ""
        for column, other in enumerate(names):
            text = f"{100 * share[row, column]:.0f}" if percent else f"{matrix[row, column]:,}"
            # Square roots, because most confusions are rare.
            strength = (0.45 if row == column else 0.8) * share[row, column] ** 0.5
            look = f"--tint: var(--{'blue' if row == column else 'orange'}); --share: {strength:.3f}"
            title = f"{matrix[row, column]:,} of {name} as {other}"
            cells += f"<td style='{look}' title='{title}'>{'' if text == '0' else text}</td>"
        body += f"<tr><th>{name}</th>{cells}</tr>"
    label = min(0.5 * max(map(len, class_names)) + 0.6, 4.6)  # rem, on a phone
    return (
        f"<div class='scroll'><table class='matrix' style='--label: {label:.1f}rem'>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def frequent_confusions(matrix: Int[np.ndarray, "classes classes"], class_names: Sequence[str], count: int) -> str:
    """Returns the `count` most frequent confusions as a table; see `confusion`."""
    total = np.maximum(matrix.sum(1), 1)
    lines = [
        (class_names[true], class_names[predicted], f"{100 * many / total[true]:.1f}")
        for true, predicted, many in confusions(matrix, count)
    ]
    return table(("true class", "predicted class", "% of the true class"), lines, "compact")


def gallery(images: UInt8[np.ndarray, "n height width 3"], captions: Sequence[tuple[str, str]]) -> str:
    """Returns pictures in a grid, each with a bold and a plain line below it."""
    kind = "gallery small" if len(images) and max(images.shape[1:3]) < _SIDE else "gallery"
    shown = "".join(
        f"<figure><img src='{picture(image)}' alt='{escape(first)}'>"
        f"<figcaption><b>{escape(first)}</b><br>{escape(second)}</figcaption></figure>"
        for image, (first, second) in zip(images, captions)
    )
    return f"<div class='{kind}'>{shown}</div>"


def cards(shown: Iterable[tuple[str, str]]) -> str:
    """Returns the numbers that a page begins with, each with what it is."""
    inner = "".join(
        f"<div class='card'><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in shown
    )
    return f"<div class='cards'>{inner}</div>"


def picture(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """Returns an image, reduced to at most 96 pixels, as a data URI."""
    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(buffer, format="png")
    return data_uri(buffer.getvalue())


def svg(figure: Figure, name: str, title: str) -> str:
    """Returns a figure as an SVG element for a page, with colours from CSS variables: --ink, --grey, --blue, ...

    Args:
      figure: the figure.
      name: makes the ids in the element unique in the page.
      title: what screen readers say.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9.]+_\d+"', "", text)  # of groups; nothing refers to them, and figures share them
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _THEME.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
