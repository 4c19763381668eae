"""An evaluation: all that is measured of a set of predictions, as JSON and as tables on the terminal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset, scores
from cnn_jax.evaluation.dataset import Examples
from cnn_jax.inference import Classifier
from cnn_jax.utils import files
from cnn_jax.workdir.layout import EVALUATION_FILE

# What people call the scores, in the order in which they read them, and whether a score is a share.
TITLES = {
    "accuracy": ("accuracy", True),
    "top5_accuracy": ("top-5 accuracy", True),
    "loss": ("loss", False),
    "precision": ("precision, mean over classes", True),
    "recall": ("recall, mean over classes", True),
    "f1": ("F1, mean over classes", True),
    "threshold_precision": ("precision of probability > 0.5", True),
    "threshold_recall": ("recall of probability > 0.5", True),
    "expected_calibration_error": ("expected calibration error", True),
}


def measure(classifier: Classifier, scored: Examples, log_probs: np.ndarray, workdir: Path) -> dict[str, Any]:
    """Returns the evaluation of a run, as JSON.

    Args:
      classifier: of the run.
      scored: at least one example.
      log_probs: its predictions `[n, classes]`.
      workdir: of the run; an earlier evaluation may lie there.
    """
    temperature = _temperature(classifier, scored, log_probs, workdir)
    return {
        "step": classifier.step,
        "data": {"name": scored.name, "dir": scored.directory},
        "split": scored.split,
        **describe(log_probs, scored.labels, classifier.class_names),
        **calibration(log_probs, scored.labels, temperature),
    }


def describe(log_probs: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns all scores of predictions `[n, classes]`, as JSON."""
    matrix = scores.confusion_matrix(log_probs, labels)
    return {
        "examples": len(labels),
        **scores.summarise(log_probs, labels),
        "class_names": list(class_names),
        "classes": scores.class_table(matrix, class_names),
        "confusion_matrix": matrix.tolist(),
        "calibration_bins": scores.calibration_bins(log_probs, labels),
    }


def calibration(log_probs: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict[str, Any]:
    """Returns the temperature, and the scores that it changes; None for both where there is no temperature."""
    if temperature is None:
        return {"temperature": None, "calibrated": None}
    calibrated = scores.summarise(scores.calibrate(log_probs, temperature), labels)
    changed = ("loss", "threshold_precision", "threshold_recall", "expected_calibration_error")
    return {"temperature": temperature, "calibrated": {name: calibrated[name] for name in changed}}


def _temperature(classifier: Classifier, scored: Examples, log_probs: np.ndarray, workdir: Path) -> float | None:
    """The temperature that fits the run's own validation split, which may be what was just scored.

    On other data it is what an earlier evaluation found for the same step, since the run's own need not be at hand.
    """
    if not scored.own:
        try:
            earlier = json.loads((workdir / EVALUATION_FILE).read_text())
            return float(earlier["temperature"]) if earlier["step"] == classifier.step else None
        except (OSError, ValueError, TypeError, LookupError):
            return None
    if scored.split != "validation":
        scored = dataset.load(classifier, "validation", directory=scored.directory)
        log_probs = dataset.predict(classifier, scored)
    # A network that has failed answers NaN, which no temperature heals.
    return None if np.isnan(log_probs).any() or not len(scored) else scores.fit_temperature(log_probs, scored.labels)


def write(result: dict[str, Any], workdir: Path) -> Path:
    """Writes evaluation.json, whole or not at all; what is not finite is null."""
    path = workdir / EVALUATION_FILE
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in _finite(result).items()]
    try:
        with files.replacing(path) as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Free space or rights there.") from None
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(result: dict[str, Any], workdir: Path) -> None:
    """Prints the tables; without lines and colours where nobody watches."""
    # Names of classes and folders are text: rich would take [bold] and :smile: in them for its own.
    console = Console(highlight=False, markup=False, emoji=False)
    watched = console.is_terminal
    if not watched:
        console = Console(highlight=False, markup=False, emoji=False, width=240)  # a pipe has no width to keep to
    console.print(f"{workdir}\n{heading(result)}", style="bold", soft_wrap=True)
    for title, table in (("", _summary(result)), ("Classes", _classes(result)), _confusion(result)):
        table.box = box.SIMPLE_HEAD if watched else None
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)
    console.print()


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the scores of an evaluation as (title, number), for people."""
    shown = []
    for name, (title, share) in TITLES.items():
        if result[name] is not None:
            shown.append((title, f"{result[name]:.2%}" if share else f"{result[name]:.4f}"))
    low, high = result["accuracy_interval"]
    shown.insert(1, ("    95% confidence interval", f"{low:.2%} to {high:.2%}"))
    if result["temperature"]:
        error, loss = (result["calibrated"][name] for name in ("expected_calibration_error", "loss"))
        shown.append((f"    with temperature {result['temperature']:.3f}", f"{error:.2%}, loss {loss:.4f}"))
    return shown


def class_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns (name, precision, recall, F1, images) of the classes that occur or were answered, for people."""
    answered = np.array(result["confusion_matrix"]).sum(0)
    return [
        (row["name"], *(f"{row[name]:.1%}" for name in ("precision", "recall", "f1")), f"{row['support']:,}")
        for row, count in zip(result["classes"], answered)
        if row["support"] or count
    ]


def heading(result: dict[str, Any]) -> str:
    """Returns one line on what was scored."""
    step = {"best": ", the best by validation accuracy", "latest": ", the latest"}.get(result["checkpoint"], "")
    what = f"All images in {result['data']['dir']}" if result["split"] == "all" else f"{result['split'].title()} split"
    of = "" if result["split"] == "all" else f" of {result['data']['name']}"
    return f"{what}{of}: {result['examples']:,} images, after step {result['step']:,}{step}."


def _summary(result: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, number in rows(result):
        table.add_row(title, number)
    return table


def _classes(result: dict[str, Any]) -> Table:
    table = Table("class")
    for title in ("precision", "recall", "F1", "images"):
        table.add_column(title, justify="right")
    for row in class_rows(result):
        table.add_row(*row)
    return table


def _confusion(result: dict[str, Any]) -> tuple[str, Table]:
    """The confusion matrix, or of many classes what is confused most often; with a title."""
    names, matrix = result["class_names"], np.array(result["confusion_matrix"])
    if len(names) > 12:
        table = Table("is", "answered")
        table.add_column("images", justify="right")
        for actual, taken, count in scores.confusions(matrix, 20):
            table.add_row(names[actual], names[taken], f"{count:,}")
        return "Most frequent mistakes", table
    table = Table(padding=(0, 1, 0, 0))  # ten classes in 80 columns
    table.add_column("is", no_wrap=True)
    for name in names:
        table.add_column(name[:5], justify="right", no_wrap=True)
    for name, row in zip(names, matrix.tolist()):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return "Confusion matrix: a row for what the images are, a column for what was answered", table
