"""HTML page of a report on several groups of runs (see `cnn_jax.report.runs`): one file, light and dark."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cnn_jax.evaluation.statistics import ENOUGH
from cnn_jax.report import figures, ladder_figures, reference
from cnn_jax.report.ladder_figures import bounds, points
from cnn_jax.utils import files, text

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --grey: #59626c; --line: #d8dde2; --blue: #0072b2;
  --orange: #c25400; --soft: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --ink: #e8ecf0; --grey: #a3adb8; --line: #343b44;
  --blue: #56b4e9; --orange: #ff9a4d; --soft: #1a2027; } }
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
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; max-width: 48rem; margin-top: .5rem; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.phone { display: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .6rem 1.2rem; }
.panels svg { width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .6rem 0 1rem; }
th, td { padding: .35rem 1.1rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: normal;
  vertical-align: top; }
td { white-space: nowrap; }
.remarks td:last-child, .remarks th:last-child { text-align: left; white-space: normal; min-width: 14rem; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.text td { white-space: normal; }
.text td:first-child { white-space: nowrap; }
thead th { max-width: 9rem; color: var(--grey); font-size: .85rem; vertical-align: bottom; }
code { font-size: .88em; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: .3rem 0 .8rem; }
a { color: var(--blue); }
@media (max-width: 46rem) {
  body { padding: 1.2rem .9rem 3rem; }
  .desk { display: none; }
  .phone { display: block; }
  .phone svg { width: 100%; }
  table, tbody, tr, td { display: block; width: 100%; }
  thead { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td, .text td { border: 0; padding: .1rem 0; display: flex; justify-content: space-between; gap: 1rem;
    white-space: normal; text-align: right; }
  td:first-child { font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-label); color: var(--grey); text-align: left; }
  td:empty { display: none !important; }
  .text td:not(:first-child) { display: block; text-align: left; }
  .text td:not(:first-child)::before { display: block; font-size: .85rem; }
}
@media print { body { padding: 0; font-size: 11pt; } section { break-inside: avoid; } }
"""

Row = Mapping[str, Any]


def write(folder: Path, result: Mapping[str, Any], rows: Sequence[Any]) -> None:
    """Writes index.html, and each figure as an SVG and a PNG file.

    Args:
      folder: an existing folder.
      result: of `cnn_jax.report.runs.summarise`.
      rows: the same rows as `cnn_jax.report.runs.Row`, for their curves.

    Raises:
      OSError: the folder cannot be written to.
    """
    entries = result["rows"]
    curves = {
        measure: {row.name: {split: row.curve(split, measure) for split in ("train", "validation")} for row in rows}
        for measure in ("accuracy", "loss")
    }
    drawn = {
        "waterfall": ladder_figures.waterfall(entries),
        "accuracy": ladder_figures.accuracies(entries),
        "learning_curves": ladder_figures.curves(curves["accuracy"]),
        "learning_curves_loss": ladder_figures.curves(curves["loss"], "loss"),
    }
    if any(row["reference"] for row in entries):
        drawn["reference"] = ladder_figures.accuracies(entries, reference=True)
    for name, figure in drawn.items():
        for suffix, content in ((".svg", ladder_figures.svg(figure)), (".png", figures.png(figure))):
            with files.replacing(folder / f"{name}{suffix}", "wb") as file:
                file.write(content)
    with files.replacing(folder / "index.html") as file:
        file.write(page(result, curves["accuracy"]))


def page(result: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
      result: of `cnn_jax.report.runs.summarise`.
      curves: of accuracy, as for `cnn_jax.report.ladder_figures.curves`.
    """
    rows = result["rows"]
    title = f"{rows[0]['name']} to {rows[-1]['name']}" if len(rows) > 1 else rows[0]["name"]
    note = f"<p class='note'>{escape(result['note'])}</p>" if result["note"] else ""
    sections = [
        _gains(rows),
        _accuracy(rows),
        _curves(curves),
        _scores(rows),
        _reference(rows, result["note"]),
        _changes(rows),
        _cost(rows),
        _method(result),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>What each step is worth: {escape(title)}</h1>
<p class="grey">{escape(_subtitle(rows))}</p>{note}
{"".join(filter(None, sections))}
</body></html>
"""


def _subtitle(rows: Sequence[Row]) -> str:
    count = sum(row["n"] for row in rows)
    parts = [text.count(len(rows), "configuration"), f"{count:,} trained {'network' if count == 1 else 'networks'}"]
    for values, shown in (
        ({row["config"]["data.name"] for row in rows}, "data set {}"),
        ({_images(row) for row in rows}, "{} training images"),
        ({row["config"]["epochs"] for row in rows}, "{} epochs"),
    ):
        parts += [shown.format(*values)] if len(values) == 1 else []
    return ", ".join(parts) + "."


def _images(row: Row) -> str:
    images = reference.training_images(row["config"])
    return f"{images:,}" if images else "all"


def _gains(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return ""
    best = max(rows, key=lambda row: row["mean"]["accuracy"])
    mean, of = points(best["mean"]["accuracy"]), bounds(best["interval"]["accuracy"])
    said = f"Highest mean test accuracy: <b>{escape(best['name'])}</b>, {mean}&nbsp;% {of} (n = {best['n']})."
    caption = (
        "Each bar goes from the mean test accuracy of one row to that of the next; blue is a gain, orange a loss. The "
        "line across its end is the 95 % confidence interval of the difference, paired by seed. Solid bars are "
        f"significant; pale bars are not, or have fewer than {ENOUGH} seeds. The axis shows only the range of "
        "the bars."
    )
    return _section(
        "Gain of each step",
        f"<p>{said} {_claims(rows)}</p>" + _figure(ladder_figures.waterfall, rows, "waterfall", caption),
    )


def _claims(rows: Sequence[Row]) -> str:
    found = [(row, row["difference"]) for row in rows if row["difference"]]
    enough = [each for each in found if len(each[1]["seeds"]) >= ENOUGH]
    said = []
    if enough:
        names = [escape(row["name"]) for row, of in enough if of["significant"]]
        said.append(
            f"Significant (adjusted p &lt; 0.05): {', '.join(names)}."
            if names
            else "No difference is significant (adjusted p &lt; 0.05)."
        )
    few = [len(of["seeds"]) for _, of in found if len(of["seeds"]) < ENOUGH]
    if few:
        which = "any difference" if len(few) == len(found) else "the others"
        most = max(few)
        smallest = f": with {most}, no p-value can be below {2 / 2**most:.4g}" if most > 1 else ""
        said.append(f"There are too few seeds to call {which} significant{smallest}. At least {ENOUGH} are needed.")
    return " ".join(said)


def _accuracy(rows: Sequence[Row]) -> str:
    head = ("", "seeds", "test accuracy, %", "difference, points", "p", "p, adjusted", "significant")
    lines = []
    for row in rows:
        of = row["difference"] or {}
        enough = len(of.get("seeds", ())) >= ENOUGH
        verdict = ("yes" if of.get("significant") else "no") if enough else "too few seeds" if of else ""
        paired = len(of.get("seeds", ()))
        few = f" ({text.count(paired, 'pair')})" if of and paired < row["n"] else ""
        lines.append(
            (
                row["name"],
                row["n"],
                _estimate(row["mean"]["accuracy"], row["interval"]["accuracy"]),
                _estimate(of.get("mean"), of.get("interval"), True) + few,
                _p(of.get("p_value")),
                _p(of.get("adjusted_p_value")),
                verdict,
            )
        )
    caption = (
        "Each dot is the test accuracy of one seed; the vertical line is the mean, the horizontal one its 95 % "
        "t interval."
    )
    body = _figure(ladder_figures.accuracies, rows, "accuracy", caption) + _table(head, lines)
    body += (
        "<p class='grey'>In brackets: 95 % intervals. Differences are to the row above, between networks with the "
        "same seed. p: exact two-sided sign-flip test; adjusted for the false discovery rate (Benjamini and "
        "Hochberg) over the differences of this page.</p>"
        if len(rows) > 1
        else ""
    )
    return _section("Test accuracy", body)


def _curves(curves: Mapping[str, Any]) -> str:
    known = {name: splits for name, splits in curves.items() if any(splits.values())}
    if not known:
        return ""
    ends = [
        end for splits in known.values() for curve in splits.values() for *_, low, high in curve for end in (low, high)
    ]
    margin = 0.04 * (max(ends) - min(ends)) or 0.01
    panels = []
    for number, (name, splits) in enumerate(known.items()):
        figure = ladder_figures.curves({name: splits}, titles=False)
        figure.axes[0].set_ylim(min(ends) - margin, max(ends) + margin)
        drawn = ladder_figures.inline_svg(figure, f"curves{number}", f"Learning curves of {escape(name)}")
        panels.append(f"<div><h3>{escape(name)}</h3>{drawn}</div>")
    return _section(
        "Learning curves",
        "<p>Accuracy per epoch: mean over the seeds, and their range as a band. Training values are averages over an "
        "epoch, with dropout and augmentation, while the network changes; validation is measured at its end.</p>"
        f"<div class='panels'>{''.join(panels)}</div>",
    )


def _scores(rows: Sequence[Row]) -> str:
    names = ("precision", "recall", "f1", "threshold_precision", "threshold_recall", "train_accuracy", "gap")
    head = (
        "", "precision", "recall", "F1", "precision at > 0.5", "recall at > 0.5", "training accuracy",
        "training minus test, points", "loss",
    )  # fmt: skip
    lines = []
    for row in rows:
        loss = row["mean"]["loss"]
        cells = [points(row["mean"][name], name == "gap") for name in names]
        lines.append((row["name"], *cells, "not finite" if loss is None else f"{loss:.3f}"))
    return _section(
        "Other scores",
        "<p>Means over the seeds, on the test images, in %. Precision, recall and F1 are means over the classes. “At "
        "&gt; 0.5” counts only predictions with a probability above 0.5, over all classes together, as the reference "
        "does. Training accuracy is that of the last epoch: with dropout and augmentation it can be below test "
        f"accuracy.</p>{_table(head, lines)}",
    )


def _reference(rows: Sequence[Row], note: str) -> str:
    known = [row for row in rows if row["reference"]]
    if not known:
        return ""
    common = set.intersection(*(set(row["reference"]["protocol"]) for row in known))
    head = ("", "reference, %", "ours, %", "precision / recall: reference", "precision / recall: ours", "remarks")
    lines = []
    for row in known:
        of, mean = row["reference"], row["mean"]
        pair = ("threshold_precision", "threshold_recall")
        remarks = [f"reference: {of['remark']}"] if of["remark"] else []
        lines.append(
            (
                row["name"],
                points(of["accuracy"]) or "no number",
                _estimate(mean["accuracy"], row["interval"]["accuracy"]),
                " / ".join(points(of[name]) for name in pair) if of["threshold_precision"] is not None else "",
                " / ".join(points(mean[name]) for name in pair),
                "; ".join(remarks + [phrase for phrase in of["protocol"] if phrase not in common]),
            )
        )
    data = f"Data: {escape(note)}" if note else "Data: not said (--note); the reference uses the original images."
    shared = [phrase for phrase in known[0]["reference"]["protocol"] if phrase in common]
    items = "".join(f"<li>{phrase[0].upper() + phrase[1:]}</li>" for phrase in (data, *map(escape, shared)))
    caption = "Diamonds: the reference (one run). Dots: our seeds. They are comparable only where the protocols agree."
    return _section(
        "Beside the reference",
        "<p>The reference is a Keras study of CIFAR-10 (2024, Tesla P100), which trained on all 50,000 images, "
        "monitored the test set and reports the last epoch of one run. Ours score the test images once, after the last "
        f"epoch. How our runs differ from its protocol:</p><ul>{items}</ul>"
        + _figure(lambda some, narrow: ladder_figures.accuracies(some, narrow, True), known, "reference", caption)
        + _table(head, lines)
        + "<p class='grey'>Precision and recall here are at a probability above 0.5, in %.</p>",
    )


def _changes(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return ""
    body = ""
    for row in rows[1:]:
        keys = [f"{key}: {_value(old)} → {_value(new)}" for key, (old, new) in sorted(row["changes"].items())]
        items = "<br>".join(f"<code>{escape(key)}</code>" for key in keys) or "nothing"
        body += f"<tr><td>{escape(row['name'])}</td><td>{items}</td></tr>"
    return _section(
        "What changes from row to row",
        "<p>The configuration keys whose values differ from those of the row above.</p>"
        f"<table class='text'><tbody>{body}</tbody></table>",
    )


def _cost(rows: Sequence[Row]) -> str:
    head = ("", "parameters", "seconds per epoch", "images per second", "processor")
    lines = []
    for row in rows:
        places = {f"{each['processor'] or each['device'] or 'unknown'}" for each in row["provenance"]}
        lines.append(
            (
                row["name"],
                "" if row["parameters"] is None else f"{row['parameters']:,}",
                _number(row["seconds_per_epoch"]),
                _number(row["images_per_second"]),
                ", ".join(sorted(places)),
            )
        )
    return _section(
        "Cost",
        "<p>Medians over the runs, of training alone: without compilation and evaluation. Seconds are per epoch of one "
        "network. These are times of the training runs, not of a benchmark: other work on the machine is included.</p>"
        + _table(head, lines),
    )


def _method(result: Mapping[str, Any]) -> str:
    origins = dict.fromkeys(_origin(each) for row in result["rows"] for each in row["provenance"])
    left = "".join(f"<li><code>{escape(path)}</code></li>" for path in result["left_out"])
    left = f"<p>Left out, because they are not finished:</p><ul>{left}</ul>" if left else ""
    return _section(
        "How the numbers were made",
        "<ul><li>A row holds the runs whose configurations differ only in the seed. A seed decides initial weights, "
        "order of the images, dropout and augmentation; the training and test images are the same for all.</li>"
        "<li>Intervals are 95 % t intervals over the seeds. They describe the variation between seeds, not that "
        "between test sets. One seed has no interval.</li>"
        "<li>The sign-flip test compares the mean difference with those of all 2<sup>n</sup> assignments of signs. "
        f"Fewer than {ENOUGH} pairs cannot reach p &lt; 0.05, so that no claim is made from them.</li>"
        f"<li>Trained with {escape('; '.join(origins))}.</li>"
        "<li>results.json, next to this page, has every number and configuration; results.csv has one line per row."
        f"</li></ul>{left}<p class='grey'>Written on {datetime.date.today():%d %B %Y}.</p>",
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    source = provenance["commit"] and provenance["commit"][:7] + (" with changed files" if provenance["dirty"] else "")
    source = source or provenance["cnn_jax"] or "(version not recorded)"
    return f"cnn_jax {source}, jax {provenance['jax'] or '(version not recorded)'}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _figure(draw: Callable[..., Figure], rows: Sequence[Row], name: str, caption: str) -> str:
    """Returns a figure in two widths, of which CSS shows one."""
    title = caption.split(".")[0]
    wide, narrow = (
        ladder_figures.inline_svg(draw(rows, narrow=narrow), f"{name}{number}", escape(title))
        for number, narrow in enumerate((False, True))
    )
    return (
        f"<figure><div class='desk'>{wide}</div><div class='phone'>{narrow}</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    kind = " class='remarks'" if head[-1] == "remarks" else ""
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td data-label='{escape(name)}'>{escape(str(cell))}</td>" for name, cell in zip(head, line))
        + "</tr>"
        for line in lines
    )
    return f"<div class='scroll'><table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


def _estimate(mean: float | None, interval: Sequence[float] | None, signed: bool = False) -> str:
    return f"{points(mean, signed)} {bounds(interval, signed)}".strip()


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _value(value: Any) -> str:
    return "not there" if value is None else json.dumps(value)
