"""HTML report of an evaluation: a single page with embedded figures."""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cnn_jax.config import flatten
from cnn_jax.errors import UserError
from cnn_jax.evaluation import results, scores
from cnn_jax.report import figures
from cnn_jax.report.diagram import layers
from cnn_jax.utils import files
from cnn_jax.workdir.records import read_metrics

MISTAKES = 24

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --grey: #656d76; --line: #e1e4e8; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
p { margin: .2rem 0 1rem; max-width: 46rem; color: var(--grey); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.6rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.65rem; line-height: 1.3; color: var(--blue);
  font-variant-numeric: tabular-nums; }
.card span { color: var(--grey); font-size: .85rem; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 20rem; }
th, td { padding: .32rem 1.4rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line);
  font-weight: normal; }
th:first-child, td:first-child { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 7rem; }
thead th:nth-child(n) { color: var(--grey); font-size: .85rem; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; }
.wide img { min-width: 44rem; }
summary { cursor: pointer; color: var(--grey); margin-top: 2.6rem; }
@media (max-width: 30rem) { th, td { padding-right: .6rem; } }
@media print { body { padding: 0; font-size: 11pt; } section { break-inside: avoid; } details { display: none; }
  .wide img { min-width: 0; } }
"""


class Section(NamedTuple):
    """A figure of the page: file name, title, explanation, and the function that draws it."""

    name: str
    title: str
    text: str
    draw: Callable[[], Figure]


def write(
    directory: Path, workdir: Path, classifier: Any, examples: Any, log_probs: np.ndarray, result: dict[str, Any]
) -> Path:
    """Writes index.html, and each figure as a PNG file next to it.

    Args:
      directory: an existing folder.
      workdir: the workdir of the run, whose records give the learning curves.
      classifier: the evaluated classifier, restored from a workdir.
      examples: the examples that it was evaluated on (see `cnn_jax.evaluation.dataset`).
      log_probs: the log-probabilities of the examples, `[n, classes]`.
      result: the result of the evaluation (see `cnn_jax.evaluation.results`).

    Returns:
      The path of the page.

    Raises:
      UserError: the folder cannot be written to.
    """
    page = directory / "index.html"
    try:
        parts = {}
        for section in _sections(workdir, classifier, examples, log_probs, result):
            figure = section.draw()
            image = figures.png(figure)
            (directory / f"{section.name}.png").write_bytes(image)
            parts[section.name] = _section(section, image, figure.get_size_inches()[0])
        with files.replacing(page) as file:
            file.write(_page(workdir, classifier, result, parts))
    except OSError as error:
        raise UserError(f"Cannot write to --report={directory}: {error.strerror}. Choose another folder.") from None
    return page


def _sections(
    workdir: Path, classifier: Any, examples: Any, log_probs: np.ndarray, result: dict[str, Any]
) -> Iterator[Section]:
    names, matrix = classifier.class_names, np.array(result["confusion_matrix"])
    worst = scores.worst_mistakes(log_probs, examples.labels, MISTAKES)
    yield Section(
        "confusion_matrix",
        "Confusion matrix",
        "One row per true class, one column per predicted class. Right predictions are on the diagonal; the darker a "
        "cell off the diagonal, the larger the share of its row that was confused with that class.",
        lambda: figures.confusion_matrix(matrix, names),
    )
    yield Section(
        "mistakes",
        "Mistakes of highest confidence",
        "Above each image: the predicted class, its probability, and the true class.",
        lambda: figures.mistakes(examples.images(worst), examples.labels[worst], log_probs[worst], names, MISTAKES),
    )
    yield Section(
        "reliability",
        "Calibration",
        "In a calibrated network, 80% of the predictions with a confidence of 80% are right, and the bars end on the "
        "dashed line. Bars below it show overconfidence. The lower panel shows the distribution of the confidence.",
        lambda: figures.reliability_diagram(result["calibration_bins"]),
    )
    records = read_metrics(workdir)
    if records:
        yield Section(
            "learning_curves",
            "Learning curves",
            "Training values are averages over each epoch, with dropout and augmentation; validation is at its end.",
            lambda: figures.learning_curves(records),
        )
    model, variables = classifier.model[0], classifier.members[0]
    size = classifier.preprocessing.image_size
    seen = layers(model, variables, (size, size) if size else classifier.input_size)
    first = next((variables["params"][layer.name]["kernel"] for layer in seen if layer.kind == "Conv"), None)
    of_first = " of the first seed" if len(classifier.members) > 1 else ""
    if first is not None:
        yield Section(
            "filters",
            "Filters of the first layer",
            f"Each filter{of_first} is scaled to its own largest weight; grey is zero.",
            lambda: figures.filters(np.asarray(first)),
        )
    yield Section(
        "network",
        "The network",
        "One slab per layer with weights; below it, the operations in order and the number of trained parameters.",
        lambda: figures.network_diagram(model, variables, (size, size) if size else classifier.input_size),
    )


def _section(section: Section, image: bytes, inches: float) -> str:
    kind = "scroll wide" if section.name in ("network", "learning_curves") else "scroll"
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p><div class='{kind}'>"
        f"<img src='{figures.data_uri(image)}' alt='{escape(section.title)}' style='width: {inches * 96:.0f}px'>"
        "</div></section>"
    )


def _page(workdir: Path, classifier: Any, result: dict[str, Any], parts: dict[str, str]) -> str:
    title = f"Evaluation of {workdir.absolute().name}"
    config = flatten(classifier.metadata["config"])
    table = _table(("class", "precision", "recall", "F1", "images"), results.class_rows(result))
    classes = (
        "<section><h2>Scores per class</h2><p>Precision: share of the predictions of a class that are right. Recall: "
        f"share of a class that is found.</p>{table}</section>"
    )
    scores_table = (
        f"<section><h2>All scores</h2>{_temperature(result)}{_table(('', ''), results.rows(result))}</section>"
    )
    first, pair = parts.pop("confusion_matrix"), f"<div class='pair'>{classes}{parts.pop('reliability')}</div>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1><p>{escape(results.heading(result))}</p>
{_cards(result)}
{first}{pair}{"".join(parts.values())}{scores_table}
<details><summary>Configuration of the run</summary>{_table(("", ""), config.items())}</details>
</body></html>
"""


def _temperature(result: dict[str, Any]) -> str:
    if result["temperature"] is None:
        return ""
    return (
        "<p>Temperature: the logits are divided by it, so that the confidences match the accuracy on the validation "
        "split of the run. It does not change which class is predicted.</p>"
    )


def _cards(result: dict[str, Any]) -> str:
    low, high = result["accuracy_interval"]
    cards = [
        (f"{result['accuracy']:.1%}", f"accuracy; 95% confidence interval {low:.1%} to {high:.1%}"),
        (f"{result['f1']:.1%}", "F1, mean over classes"),
        (f"{result['loss']:.3f}", "loss: cross-entropy in nats"),
        (f"{result['expected_calibration_error']:.1%}", "expected calibration error"),
    ]
    inner = "".join(f'<div class="card"><b>{number}</b><span>{text}</span></div>' for number, text in cards)
    return f'<div class="cards">{inner}</div>'


def _table(head: tuple[str, ...], rows: Any) -> str:
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    header = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'
