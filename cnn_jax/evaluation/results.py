"""The result of an evaluation, as JSON and as tables on the terminal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset, scores
from cnn_jax.evaluation.dataset import Examples
from cnn_jax.inference import Classifier, seeds
from cnn_jax.inference.calibration import Calibration
from cnn_jax.inference.calibration import read as read_calibration
from cnn_jax.utils import files, tables, text
from cnn_jax.workdir.layout import EVALUATION_FILE

# Title of each score, in the order of the tables, and whether it is shown as a percentage.
TITLES = {
    "accuracy": ("accuracy", True),
    "top5_accuracy": ("top-5 accuracy", True),
    "loss": ("loss", False),
    "precision": ("precision, mean over classes", True),
    "recall": ("recall, mean over classes", True),
    "f1": ("F1, mean over classes", True),
    "threshold_precision": ("precision at probability > 0.5", True),
    "threshold_recall": ("recall at probability > 0.5", True),
    "expected_calibration_error": ("expected calibration error", True),
}


def measure(classifier: Classifier, examples: Examples, log_probs: np.ndarray, workdir: Path) -> dict[str, Any]:
    """Returns the evaluation of a run, as JSON.

    Args:
      classifier: the classifier of the run.
      examples: at least one example.
      log_probs: the log-probabilities of the examples, `[n, classes]`.
      workdir: the workdir of the run; an earlier evaluation there is read for its temperature.
    """
    fitted = _calibration(classifier, examples, log_probs, workdir)
    return {
        "step": classifier.step,
        "seed": classifier.seed,
        "data": {"name": examples.name, "dir": examples.directory},
        "split": examples.split,
        **describe(log_probs, examples.labels, classifier.class_names, examples.own),
        **calibration(log_probs, examples.labels, fitted.temperature if fitted else None),
        "threshold": fitted.threshold if fitted else None,
    }


def describe(
    log_probs: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], own: bool = True
) -> dict[str, Any]:
    """Returns all scores of log-probabilities `[n, classes]`, as JSON.

    Args:
      log_probs: one row per image.
      labels: the column of each image's class.
      class_names: one per column.
      own: whether the images are of the run's own data set. Another one may lack classes of the network, over which
        averages over classes are then not taken.
    """
    matrix = scores.confusion_matrix(log_probs, labels)
    return {
        "examples": len(labels),
        **scores.summarise(log_probs, labels),
        **scores.macro(matrix, predicted=own),
        "class_names": list(class_names),
        "classes_without_images": [name for name, count in zip(class_names, matrix.sum(1)) if not count],
        "classes": scores.class_table(matrix, class_names),
        "confusion_matrix": matrix.tolist(),
        "calibration_bins": scores.calibration_bins(log_probs, labels),
    }


def calibration(log_probs: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict[str, Any]:
    """Returns the temperature and the scores that it changes; both None if there is no temperature."""
    if temperature is None:
        return {"temperature": None, "calibrated": None}
    calibrated = scores.summarise(scores.calibrate(log_probs, temperature), labels)
    changed = ("loss", "threshold_precision", "threshold_recall", "expected_calibration_error")
    return {"temperature": temperature, "calibrated": {name: calibrated[name] for name in changed}}


def _calibration(
    classifier: Classifier, examples: Examples, log_probs: np.ndarray, workdir: Path
) -> Calibration | None:
    """Returns the calibration fitted on the run's validation split; None if it cannot be fitted.

    For another data set it is that of an earlier evaluation of the same network, because the run's own data may be
    missing.
    """
    if not examples.own:
        return read_calibration(workdir, classifier.step, classifier.seed)
    if examples.split != "validation":
        examples = dataset.load(classifier, "validation", directory=examples.directory)
        log_probs = dataset.predict(classifier, examples)
    # No temperature fits the NaN of a network whose training failed.
    if np.isnan(log_probs).any() or not len(examples):
        return None
    return Calibration(scores.fit_temperature(log_probs, examples.labels)).fitted_to(log_probs)


def belongs(evaluation: dict[str, Any], classifier: Classifier) -> bool:
    """Returns whether an evaluation is of this network: of the same step, and the same choice of seeds."""
    return (evaluation["step"], evaluation.get("seed")) == (classifier.step, classifier.seed)


def file_name(result: dict[str, Any], own: bool) -> str:
    """Returns the name of the file for a result: evaluation.json for the test split of the run's own data.

    Others have names of their own, so that they do not replace what the page shows and calibrates with.

    Args:
      result: of `measure`.
      own: whether the images are of the run's own data set.
    """
    of_test = own and result["split"] == "test"
    name = result["split"] if own else f"{result['data']['name']}-{result['split']}".replace("/", "_")
    return EVALUATION_FILE if of_test else EVALUATION_FILE.replace(".json", f"-{name}.json")


def write(result: dict[str, Any], workdir: Path, name: str = EVALUATION_FILE) -> Path:
    """Writes a result to a file in the workdir, atomically; values that are not finite become null."""
    path = workdir / name
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in _finite(result).items()]
    try:
        with files.replacing(path) as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror}. Free space there, or change its permissions."
        ) from None
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(result: dict[str, Any], workdir: Path) -> None:
    """Prints the tables; without lines and colours if standard output is not a terminal."""
    console = tables.console()
    console.print(f"{workdir}\n{heading(result)}", style="bold", soft_wrap=True)
    for title, table in (("", _summary(result)), ("Classes", _classes(result)), _confusion(result)):
        console.print(title, style="bold", soft_wrap=True)
        tables.show(table, console)
    if missing := classes_without_images(result):
        console.print(missing, soft_wrap=True)
    console.print()


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the scores of an evaluation as formatted (title, value)."""
    shown = []
    for name, (title, share) in TITLES.items():
        if result[name] is not None:
            shown.append((title, f"{result[name]:.2%}" if share else f"{result[name]:.4f}"))
    low, high = result["accuracy_interval"]
    shown.insert(1, ("    95% confidence interval", f"{low:.2%} to {high:.2%}"))
    if result["temperature"] == 1:
        shown.append(("    temperature", "none: no mistakes to fit it to"))
    elif result["temperature"]:
        error, loss = (result["calibrated"][name] for name in ("expected_calibration_error", "loss"))
        shown.append((f"    with temperature {result['temperature']:.3f}", f"{error:.2%}, loss {loss:.4f}"))
    return shown


def class_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns formatted (name, precision, recall, F1, images) per class that occurs or is predicted."""
    predicted = np.array(result["confusion_matrix"]).sum(0)
    return [
        (
            text.printable(row["name"]),
            *(f"{row[name]:.1%}" for name in ("precision", "recall", "f1")),
            f"{row['support']:,}",
        )
        for row, count in zip(result["classes"], predicted)
        if row["support"] or count
    ]


def classes_without_images(result: dict[str, Any]) -> str:
    """Returns one line that names the classes of which no image was evaluated; "" if there are none."""
    names = ", ".join(map(text.printable, result["classes_without_images"]))
    return names and f"Classes without images: {names}."


def heading(result: dict[str, Any]) -> str:
    """Returns one line that names the data, the step, and of a run with several seeds which one was used."""
    step = {"best": ", the best by validation accuracy", "latest": ", the latest"}.get(result["checkpoint"], "")
    what = f"All images in {result['data']['dir']}" if result["split"] == "all" else f"{result['split'].title()} split"
    of = "" if result["split"] == "all" else f" of {result['data']['name']}"
    seed = "" if result.get("seed") is None else f"; {seeds.describe(result['seed'])}"
    return f"{what}{of}: {text.count(result['examples'], 'image')}, after step {result['step']:,}{step}{seed}."


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
    """Returns a title and the confusion matrix, or for many classes the most frequent confusions."""
    names, matrix = [text.printable(name) for name in result["class_names"]], np.array(result["confusion_matrix"])
    if len(names) > 12:
        table = Table("true class", "predicted class")
        table.add_column("images", justify="right")
        for actual, predicted, count in scores.confusions(matrix, 20):
            table.add_row(names[actual], names[predicted], f"{count:,}")
        return "Most frequent confusions", table
    table = Table(padding=(0, 1, 0, 0))  # ten classes in 80 columns
    table.add_column("true class", no_wrap=True)
    for name in names:
        table.add_column(name[:5], justify="right", no_wrap=True)
    for name, row in zip(names, matrix.tolist()):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return "Confusion matrix: one row per true class, one column per predicted class", table
