"""HTML page of a report on several groups of runs (see `cnn_jax.report.runs`): one file, light and dark."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cnn_jax.evaluation.statistics import ENOUGH
from cnn_jax.report import figures, image_sections, ladder_figures, reference, web
from cnn_jax.report.ladder_figures import bounds, points
from cnn_jax.utils import files, text

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
        file.write(page(result, curves["accuracy"], {row.name: row.hardest_images() for row in rows}))


def page(result: Mapping[str, Any], curves: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
      result: of `cnn_jax.report.runs.summarise`.
      curves: of accuracy, as for `cnn_jax.report.ladder_figures.curves`.
      pictures: of each row (see `cnn_jax.report.runs.Row.hardest_images`).
    """
    rows = result["rows"]
    title = f"{rows[0]['name']} to {rows[-1]['name']}" if len(rows) > 1 else rows[0]["name"]
    note = f"<p class='note'>{escape(result['note'])}</p>" if result["note"] else ""
    sections = [
        _gains(rows),
        _accuracy(rows),
        _curves(curves),
        _scores(rows),
        image_sections.calibration(rows),
        image_sections.ensembles(rows),
        image_sections.classes(rows, pictures),
        _reference(rows, result["note"]),
        _changes(rows),
        _cost(rows),
        _method(result),
    ]
    head = f"""<h1>What each step is worth: {escape(title)}</h1>
<p class="grey">{escape(_subtitle(rows))}</p>{note}
"""
    return web.document(title, head + "".join(filter(None, sections)))


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
    return web.section(
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
    head = ("", "seeds", "test accuracy, %", "difference, points", "interval by test image", "p", "p, adjusted")
    head += ("significant",)
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
                bounds((of.get("by_image") or {}).get("interval"), True),
                _p(of.get("p_value")),
                _p(of.get("adjusted_p_value")),
                verdict,
            )
        )
    caption = (
        "Each dot is the test accuracy of one seed; the vertical line is the mean, the horizontal one its 95 % "
        "t interval."
    )
    body = _figure(ladder_figures.accuracies, rows, "accuracy", caption) + web.table(head, lines)
    body += (
        "<p class='grey'>In brackets: 95 % intervals. Differences are to the row above, between networks with the "
        "same seed. p: exact two-sided sign-flip test; adjusted for the false discovery rate (Benjamini and "
        f"Hochberg) over the differences of this page.{_two_intervals(rows)}</p>"
        if len(rows) > 1
        else ""
    )
    return web.section("Test accuracy", body)


def _two_intervals(rows: Sequence[Row]) -> str:
    if not any((row["difference"] or {}).get("by_image") for row in rows):
        return ""
    return (
        " The interval after the difference asks what other seeds would give on these test images; the interval by "
        "test image asks what these networks would give on other test images of the same kind (paired bootstrap, Efron "
        "and Tibshirani 1993). A difference that holds for other seeds and other images "
        "excludes zero in both."
    )


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
        drawn = web.svg(figure, f"curves{number}", f"Learning curves of {name}")
        panels.append(f"<div><h3>{escape(name)}</h3>{drawn}</div>")
    return web.section(
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
    return web.section(
        "Other scores",
        "<p>Means over the seeds, on the test images, in %. Precision, recall and F1 are means over the classes. “At "
        "&gt; 0.5” counts only predictions with a probability above 0.5, over all classes together, as the reference "
        "does. Training accuracy is that of the last epoch: with dropout and augmentation it can be below test "
        f"accuracy.</p>{web.table(head, lines)}",
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
    return web.section(
        "Beside the reference",
        "<p>The reference is a Keras study of CIFAR-10 (2024, Tesla P100), which trained on all 50,000 images, "
        "monitored the test set and reports the last epoch of one run. Ours score the test images once, after the last "
        f"epoch. How our runs differ from its protocol:</p><ul>{items}</ul>"
        + _figure(lambda some, narrow: ladder_figures.accuracies(some, narrow, True), known, "reference", caption)
        + web.table(head, lines)
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
    return web.section(
        "What changes from row to row",
        "<p>The configuration keys whose values differ from those of the row above.</p>"
        f"<table class='cells text'><tbody>{body}</tbody></table>",
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
    return web.section(
        "Cost",
        "<p>Medians over the runs, of training alone: without compilation and evaluation. Seconds are per epoch of one "
        "network. These are times of the training runs, not of a benchmark: other work on the machine is included.</p>"
        + web.table(head, lines),
    )


def _method(result: Mapping[str, Any]) -> str:
    origins = dict.fromkeys(_origin(each) for row in result["rows"] for each in row["provenance"])
    left = "".join(f"<li><code>{escape(path)}</code></li>" for path in result["left_out"])
    left = f"<p>Left out, because they are not finished:</p><ul>{left}</ul>" if left else ""
    left += "".join(
        f"<details><summary>{text.count(len(names), 'run')} without predictions: {escape(reason)}</summary>"
        f"<ul>{''.join(f'<li><code>{escape(name)}</code></li>' for name in names)}</ul></details>"
        for reason, names in result["without_predictions"].items()
    )
    return web.section(
        "How the numbers were made",
        "<ul><li>A row holds the runs whose configurations differ only in the seed. A seed decides initial weights, "
        "order of the images, dropout and augmentation; the training and test images are the same for all.</li>"
        "<li>Intervals are 95 % t intervals over the seeds. They describe the variation between seeds, not that "
        "between test sets. One seed has no interval.</li>"
        "<li>The sign-flip test compares the mean difference with those of all 2<sup>n</sup> assignments of signs. "
        f"Fewer than {ENOUGH} pairs cannot reach p &lt; 0.05, so that no claim is made from them.</li>"
        f"{_of_predictions(result['rows'])}"
        f"<li>Trained with {escape('; '.join(origins))}.</li>"
        "<li>results.json, next to this page, has every number and configuration; results.csv has one line per row."
        f"</li></ul>{left}<p class='grey'>Written on {datetime.date.today():%d %B %Y}.</p>",
    )


def _of_predictions(rows: Sequence[Row]) -> str:
    known = [row["predictions"] for row in rows if row["predictions"]]
    if not known:
        return (
            "<li>Calibration, confusion matrices and comparisons by test image need the predictions of the runs, which "
            "are not there: they are computed from the last checkpoint of a run.</li>"
        )
    off = max(each["accuracy_off"] for each in known)
    agreement = (
        "give exactly the recorded test accuracies"
        if not off
        else f"differ from the recorded test accuracies by at most {points(off) or '0.0'} points (another processor "
        "rounds differently)"
    )
    return (
        "<li>Calibration, confusion matrices, ensembles and comparisons by test image come from the predictions of the "
        f"last checkpoints, as the test accuracies do. The predictions {agreement}.</li>"
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    source = provenance["commit"] and provenance["commit"][:7] + (" with changed files" if provenance["dirty"] else "")
    source = source or provenance["cnn_jax"] or "(version not recorded)"
    return f"cnn_jax {source}, jax {provenance['jax'] or '(version not recorded)'}"


def _figure(draw: Callable[..., Figure], rows: Sequence[Row], name: str, caption: str) -> str:
    """Returns a figure in two widths, of which CSS shows one."""
    title = caption.split(".")[0]
    wide, narrow = (
        web.svg(draw(rows, narrow=narrow), f"{name}{number}", title) for number, narrow in enumerate((False, True))
    )
    return (
        f"<figure><div class='desk'>{wide}</div><div class='phone'>{narrow}</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _estimate(mean: float | None, interval: Sequence[float] | None, signed: bool = False) -> str:
    return f"{points(mean, signed)} {bounds(interval, signed)}".strip()


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _value(value: Any) -> str:
    return "not there" if value is None else json.dumps(value)
