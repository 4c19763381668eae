"""Model card: what an exported network is, what it was trained on, how good it is, and what it must not be used for.

Source of the form: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

import json
from pathlib import Path
from typing import Any

import jax

from cnn_jax.config.comparison import with_defaults
from cnn_jax.evaluation import results
from cnn_jax.evaluation.statistics import t_interval
from cnn_jax.inference import Classifier, seeds
from cnn_jax.inference.calibration import ALL_RIGHT
from cnn_jax.keys import flatten
from cnn_jax.utils import files, text
from cnn_jax.workdir import provenance
from cnn_jax.workdir.layout import EVALUATION_FILE
from cnn_jax.workdir.records import read_metrics, scores_on_test

LIMITS = (
    "It assigns every image to one of its classes, also images that show none of them.",
    "Its scores hold for images like those it was trained and tested on; other cameras, lighting or framing can give "
    "much lower ones. Measure it on your own images first: python -m cnn_jax.evaluate --data.name=folder.",
    "It was not tested for fairness, safety or resistance to manipulated images.",
)


def describe(classifier: Classifier, workdir: Path, command: str) -> dict[str, Any]:
    """Returns the card as JSON.

    Args:
      classifier: restored from the workdir.
      workdir: of the run; its records and its last evaluation are read.
      command: that exports the network.
    """
    assert classifier.model
    config, calibration = classifier.metadata["config"], classifier.calibration
    segments = provenance.read(workdir)
    origin = segments[-1]["provenance"] if segments else {}
    settings = flatten(config)
    defaults = with_defaults({"model.name": config["model"]["name"]})
    return {
        "network": config["model"]["name"],
        "parameters": sum(leaf.size for one in classifier.members for leaf in jax.tree.leaves(one["params"])),
        "class_names": list(classifier.class_names),
        "input": f"RGB, {classifier.input_size[0]} x {classifier.input_size[1]} pixels, 0 to 255",
        "preprocessing": classifier.metadata["preprocessing"],
        "step": classifier.step,
        "seed": classifier.seed,
        "data": {key: config["data"].get(key) for key in ("name", "train_examples", "validation", "split_seed")},
        "scores": _scores(classifier, workdir),
        "calibration": {"temperature": calibration.temperature, "threshold": calibration.threshold}
        if calibration
        else None,
        "limits": list(LIMITS),
        "command": command,
        "commit": origin.get("commit"),
        "versions": origin.get("versions"),
        "settings": {key: value for key, value in settings.items() if defaults.get(key) != value},
    }


def _scores(classifier: Classifier, workdir: Path) -> list[dict[str, Any]]:
    """Returns the accuracies that the workdir holds, each with what it was measured on and its interval."""
    found = []
    evaluation = _evaluation(workdir)
    if evaluation and results.belongs(evaluation, classifier):
        found.append(
            {
                "of": "this network",
                "split": evaluation["split"],
                "data": evaluation["data"]["name"],
                "images": evaluation["examples"],
                "accuracy": evaluation["accuracy"],
                "interval": evaluation["accuracy_interval"],
                "interval_is": "95 % Wilson interval over images",
                "calibration_error": (evaluation["calibrated"] or evaluation)["expected_calibration_error"],
            }
        )
    test = scores_on_test(read_metrics(workdir))
    if test:
        values = test.get("lanes", {}).get("accuracy", [test["accuracy"]])
        interval = t_interval(values)
        found.append(
            {
                "of": f"the parameters after the last epoch, {text.count(len(values), 'seed')}",
                "split": "test",
                "data": classifier.metadata["config"]["data"]["name"],
                "accuracy": test["accuracy"],
                "interval": list(interval) if interval else None,
                "interval_is": "95 % t interval over seeds",
            }
        )
    return found


def _evaluation(workdir: Path) -> dict[str, Any] | None:
    try:
        evaluation = files.read_json(workdir / EVALUATION_FILE)
        names = (
            "step",
            "split",
            "data",
            "examples",
            "accuracy",
            "accuracy_interval",
            "calibrated",
            "expected_calibration_error",
        )
        return evaluation if all(name in evaluation for name in names) else None
    except (OSError, ValueError, TypeError):
        return None


def markdown(card: dict[str, Any], file: str) -> str:
    """Returns the card as Markdown.

    Args:
      card: see `describe`.
      file: the name of the exported file.
    """
    seed = "" if card["seed"] is None else f", {seeds.describe(card['seed'])}"
    names = ", ".join(_escape(name) for name in card["class_names"])
    preprocessing = card["preprocessing"]
    size = preprocessing["image_size"]
    resized = f"resized to {size} x {size} pixels (bilinear, antialiased), " if size else ""
    lines = [
        f"# {_escape(file)}",
        "",
        f"Image classifier: network `{card['network']}` with {card['parameters']:,} parameters, after step "
        f"{card['step']:,}{seed}. {len(card['class_names'])} classes: {names}.",
        "",
        "## Scores",
        "",
        *(_row(score) for score in card["scores"]),
        *([] if card["scores"] else ["Not measured: python -m cnn_jax.evaluate writes them to the workdir."]),
        "",
        "## Data",
        "",
        f"Trained on `{card['data']['name']}`"
        + (f", {card['data']['train_examples']:,} images of the training split" * bool(card["data"]["train_examples"]))
        + f"; validation setting {card['data']['validation']}, split seed {card['data']['split_seed']}. The test split "
        "was not used to choose anything.",
        "",
        "## Preprocessing",
        "",
        f"Input: {card['input']}. Inside the file: {resized}divided by 255, minus the mean {preprocessing['mean']}, "
        f"divided by the standard deviation {preprocessing['std']}. (A file of safetensors holds only the parameters.)",
        "",
        "## Calibration",
        "",
        _calibration(card["calibration"]),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
        "",
        "## Origin",
        "",
        f"Exported by `{card['command']}`; trained at commit {card['commit'] or 'unknown'} with "
        + (", ".join(f"{name} {version}" for name, version in (card["versions"] or {}).items()) or "unknown versions")
        + ". Settings that differ from the defaults:",
        "",
        "```",
        *(f"--config.{key}={json.dumps(value)}" for key, value in card["settings"].items()),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _row(score: dict[str, Any]) -> str:
    images = f", {score['images']:,} images" if "images" in score else ""
    interval = score["interval"]
    spread = f" [{interval[0]:.4f}, {interval[1]:.4f}], {score['interval_is']}" if interval else ", a single run"
    error = score.get("calibration_error")
    calibrated = "" if error is None else f"; expected calibration error {error:.4f}"
    where = f"{score['of']}, {score['split']} split of {score['data']}{images}"
    return f"- Accuracy {score['accuracy']:.4f}{spread}: {where}{calibrated}"


def _calibration(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "None: the probabilities are the network's own, which are usually too confident."
    rule = ""
    if calibration["threshold"] is not None:
        rule = (
            " The web page takes an image to show none of the classes if the largest calibrated probability is below "
            f"{calibration['threshold']:.4f}, which 95 % of the validation images reach."
        )
    if calibration["temperature"] == 1:
        return f"None: {ALL_RIGHT}.{rule}"
    return (
        f"Temperature {calibration['temperature']:.4f}, fitted on the validation split: `predict` and the web page "
        f"apply it. The file's own output is not calibrated; divide it by the temperature and normalise again.{rule}"
    )


def _escape(name: str) -> str:
    """Returns a name in which Markdown interprets nothing."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|~" else c for c in text.printable(name))
