"""HTML report of an evaluation: a single page with embedded figures."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cnn_jax.config import flatten
from cnn_jax.errors import UserError
from cnn_jax.evaluation import results, scores
from cnn_jax.report import figures, web
from cnn_jax.report.diagram import layers
from cnn_jax.utils import files
from cnn_jax.workdir.records import read_metrics

MISTAKES = 24


def write(
    directory: Path, workdir: Path, classifier: Any, examples: Any, log_probs: np.ndarray, result: dict[str, Any]
) -> Path:
    """Writes index.html, and the figures as PNG files next to it.

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
    page, names = directory / "index.html", classifier.class_names
    worst = scores.worst_mistakes(log_probs, examples.labels, MISTAKES)
    wrong = examples.images(worst), examples.labels[worst], log_probs[worst]
    records = read_metrics(workdir)
    drawn = {
        "confusion_matrix": figures.confusion_matrix(np.array(result["confusion_matrix"]), names),
        "mistakes": figures.mistakes(*wrong, names, MISTAKES),
        "reliability": figures.reliability_diagram(result["calibration_bins"]),
        **({"learning_curves": figures.learning_curves(records)} if records else {}),
        **_of_network(classifier),
    }
    parts = [
        _heading(workdir, result),
        _classes(result),
        _mistakes(*wrong, names),
        _calibration(result, drawn["reliability"]),
        _curves(records),
        _filters(classifier, drawn.get("filters")),
        _network(drawn["network"]),
        _configuration(classifier),
    ]
    try:
        for name, figure in drawn.items():
            with files.replacing(directory / f"{name}.png", "wb") as file:
                file.write(figures.png(figure))
        with files.replacing(page) as file:
            file.write(web.document(_title(workdir), "\n".join(filter(None, parts))))
    except OSError as error:
        raise UserError(f"Cannot write to --report={directory}: {error.strerror}. Choose another folder.") from None
    return page


def _of_network(classifier: Any) -> dict[str, Figure]:
    """Returns a diagram of the network, and the filters of its first convolution if it has one."""
    model, variables = classifier.model[0], classifier.members[0]
    side = classifier.preprocessing.image_size
    size = (side, side) if side else classifier.input_size
    kernels = (variables["params"][layer.name]["kernel"] for layer in layers(model, variables, size)
               if layer.kind == "Conv")  # fmt: skip
    first = next(kernels, None)
    filters = {} if first is None else {"filters": figures.filters(np.asarray(first))}
    return filters | {"network": figures.network_diagram(model, variables, size)}


def _title(workdir: Path) -> str:
    return f"Evaluation of {workdir.absolute().name}"


def _heading(workdir: Path, result: dict[str, Any]) -> str:
    low, high = result["accuracy_interval"]
    cards = (
        (f"{result['accuracy']:.1%}", f"accuracy; 95% confidence interval {low:.1%} to {high:.1%}"),
        (f"{result['f1']:.1%}", "F1, mean over classes"),
        (f"{result['loss']:.3f}", "loss: cross-entropy in nats"),
        (f"{result['expected_calibration_error']:.1%}", "expected calibration error"),
    )
    heading = f"<h1>{escape(_title(workdir))}</h1><p class='grey'>{escape(results.heading(result))}</p>"
    return heading + web.cards(cards)


def _classes(result: dict[str, Any]) -> str:
    matrix, names = np.array(result["confusion_matrix"]), result["class_names"]
    explained = (
        "One row per true class, one column per predicted class; right predictions are on the diagonal. The stronger "
        "the colour of a cell, the larger its share of the row."
        if len(names) <= web.MOST
        else "The most frequent ones."
    )
    table = web.table(("class", "precision", "recall", "F1", "images"), results.class_rows(result), "compact")
    missing = results.classes_without_images(result)
    if missing:
        table += f"<p class='grey'>{escape(missing)}</p>"
    return (
        "<div class='pair'>"
        + web.section("Confusions", f"<p class='grey'>{explained}</p>{web.confusion(matrix, names)}")
        + web.section(
            "Scores per class",
            "<p class='grey'>Precision: share of the predictions of a class that are right. Recall: share of a class "
            f"that is found.</p>{table}",
        )
        + "</div>"
    )


def _mistakes(images: np.ndarray, labels: np.ndarray, log_probs: np.ndarray, names: tuple[str, ...]) -> str:
    captions = [
        (f"{names[predicted]} · {probability:.0%}", f"true: {names[label]}")
        for predicted, probability, label in zip(log_probs.argmax(-1), np.exp(log_probs.max(-1)), labels)
    ]
    if not captions:
        return web.section("Mistakes", "<p class='grey'>There are none.</p>")
    return web.section(
        "Mistakes of highest confidence",
        "<p class='grey'>In colour the predicted class with its probability, below it the true class.</p>"
        + web.gallery(images, captions),
    )


def _calibration(result: dict[str, Any], figure: Figure) -> str:
    temperature = (
        "<p class='grey'>Temperature: the logits are divided by it, so that the confidences match the accuracy on the "
        "validation split of the run. It does not change which class is predicted.</p>"
        if result["temperature"] is not None
        else ""
    )
    return (
        "<div class='pair'>"
        + web.section(
            "Calibration",
            "<p class='grey'>In a calibrated network, 80% of the predictions with a confidence of 80% are right, and "
            "the bars end on the dashed line. Bars below it show overconfidence. The lower panel shows the "
            f"distribution of the confidence.</p>{web.svg(figure, 'reliability', 'Accuracy against confidence')}",
        )
        + web.section("All scores", temperature + web.table(("", ""), results.rows(result), "compact"))
        + "</div>"
    )


def _curves(records: list[dict[str, Any]]) -> str:
    if not records:
        return ""
    panels = "".join(
        f"<div>{web.svg(figures.learning_curves(records, (measure,)), measure, f'{measure} over the epochs')}</div>"
        for measure in ("loss", "accuracy")
    )
    return web.section(
        "Learning curves",
        "<p class='grey'>Training values are averages over each epoch, with dropout and augmentation; validation is at "
        f"its end. The star is the test split after the last epoch.</p><div class='pair'>{panels}</div>",
    )


def _filters(classifier: Any, figure: Figure | None) -> str:
    if figure is None:
        return ""
    of_first = " of the first seed" if len(classifier.members) > 1 else ""
    width = figure.get_size_inches()[0] * 96
    return web.section(
        "Filters of the first layer",
        f"<p class='grey'>Each filter{of_first} is scaled to its own largest weight; grey is zero.</p><img "
        f"src='{figures.data_uri(figures.png(figure, facecolor='none'))}' alt='Filters of the first layer' "
        f"style='width: {width:.0f}px'>",
    )


def _network(figure: Figure) -> str:
    return web.section(
        "The network",
        "<p class='grey'>One slab per layer with weights; below it, the operations in order and the number of trained "
        f"parameters.</p><div class='paper'>{web.svg(figure, 'network', 'Diagram of the network')}</div>",
    )


def _configuration(classifier: Any) -> str:
    lines = flatten(classifier.metadata["config"]).items()
    return (
        f"<section><details><summary>Configuration of the run</summary>{web.table(('', ''), lines, 'compact')}"
        "</details></section>"
    )
