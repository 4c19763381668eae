"""Predictions of finished runs on their test and validation images, by the parameters that their test scores are of.

They are computed from the last checkpoint when they are first needed, and kept in the workdir.
"""

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset
from cnn_jax.evaluation.dataset import Examples
from cnn_jax.inference import load_classifier
from cnn_jax.utils import files
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER, CONFIG_FILE, PREDICTIONS_FILE
from cnn_jax.workdir.records import read_metrics, scores_on_test

# How far the accuracy may be from the recorded one: another processor rounds differently, and flips few predictions.
TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a run, which may have several seeds.

    Attributes:
      step: of the parameters: the last of the run.
      fingerprint: a hash of the pixels and labels of the test images.
      class_names: one per column.
      labels: of the test images.
      log_probs: of the test images.
      validation_labels: of the validation images, of which there may be none.
      validation_log_probs: of the validation images.
    """

    step: int
    fingerprint: str
    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    log_probs: Float[np.ndarray, "seeds n classes"]
    validation_labels: Int32[np.ndarray, " m"]
    validation_log_probs: Float[np.ndarray, "seeds m classes"]


def collect(workdirs: Iterable[Path], compute: bool = True) -> tuple[dict[Path, Predictions], dict[Path, str]]:
    """Returns the predictions of finished runs, and for the other runs why they have none.

    Args:
      workdirs: of finished runs.
      compute: whether to compute what a workdir lacks, from its checkpoint. The result is kept in the workdir, where it
        can be written to.
    """
    found, missing = {}, {}
    loaded: dict[str, Examples] = {}
    for workdir in workdirs:
        scores = scores_on_test(read_metrics(workdir))
        assert scores  # a finished run
        try:
            held = read(workdir)
            if held is None or held.step != scores["step"]:
                if not compute:
                    raise UserError("no predictions were kept")
                held = _compute(workdir, scores["step"], loaded)
                with contextlib.suppress(OSError):
                    _write(held, workdir)
            _check(held, scores)
            found[workdir] = held
        except UserError as error:
            missing[workdir] = str(error)
    return found, missing


def read(workdir: Path) -> Predictions | None:
    """Returns the predictions that a workdir holds; None if it has none, or they are damaged."""
    try:
        with np.load(workdir / PREDICTIONS_FILE) as arrays:
            texts = files.parse_json(str(arrays["texts"]))
            names = [field.name for field in dataclasses.fields(Predictions) if field.name not in texts]
            texts["class_names"] = tuple(texts["class_names"])
            return Predictions(**texts, **{name: arrays[name] for name in names})
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        return None


def images_of(workdir: Path, class_names: Sequence[str], labels: Int32[np.ndarray, " n"]) -> Examples | None:
    """Returns the test images of a run; None if they are not there, or their labels are others.

    Args:
      workdir: of the run.
      class_names: of its network.
      labels: of the images that are looked for.
    """
    try:
        examples = dataset.of_run(_read_config(workdir)["data"], class_names, "test")
    except UserError:
        return None
    return examples if np.array_equal(examples.labels, labels) else None


def _compute(workdir: Path, step: int, loaded: dict[str, Examples]) -> Predictions:
    """Computes the predictions of all seeds of a run.

    Args:
      workdir: of the run.
      step: of the parameters.
      loaded: the data sets so far, which several runs share.
    """
    if not (workdir / CHECKPOINT_FOLDER).is_dir():
        raise UserError("the checkpoints are not there")
    seeds = _read_config(workdir).get("seeds", 1)
    of_seed = []
    for index in range(seeds):
        classifier = load_classifier(workdir, step=step, seed=index if seeds > 1 else None)
        data, log_probs = classifier.metadata["config"]["data"], {}
        for split in ("test", "validation"):
            key = json.dumps([data, split, classifier.class_names], sort_keys=True)
            if key not in loaded:
                loaded[key] = dataset.of_run(data, classifier.class_names, split)
            log_probs[split] = loaded[key], dataset.predict(classifier, loaded[key], workdir.name)
        of_seed.append(log_probs)
    test, validation = (of_seed[0][split][0] for split in ("test", "validation"))
    return Predictions(
        step,
        test.fingerprint,
        classifier.class_names,
        test.labels,
        np.stack([each["test"][1] for each in of_seed]),
        validation.labels,
        np.stack([each["validation"][1] for each in of_seed]),
    )


def _check(held: Predictions, scores: dict[str, Any]) -> None:
    """Raises a `UserError` if the predictions are not those that the run was scored by."""
    for actual, recorded in zip(accuracies(held), scores.get("lanes", {}).get("accuracy", [scores["accuracy"]])):
        if recorded is not None and abs(actual - recorded) > TOLERANCE:
            raise UserError(
                f"the accuracy of the last checkpoint on the test images is {actual:.4f}, and {recorded:.4f} was "
                f"recorded: if the test images have changed, bring them back and delete {PREDICTIONS_FILE}"
            )


def accuracies(held: Predictions) -> list[float]:
    """Returns the accuracy of each seed on the test images."""
    return (held.log_probs.argmax(-1) == held.labels).mean(-1).tolist()


def _write(held: Predictions, workdir: Path) -> None:
    content = {field.name: getattr(held, field.name) for field in dataclasses.fields(held)}
    arrays: dict[str, Any] = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    texts = json.dumps({name: value for name, value in content.items() if name not in arrays})
    with files.replacing(workdir / PREDICTIONS_FILE, "wb") as file:
        np.savez_compressed(file, texts=np.array(texts), **arrays)


def _read_config(workdir: Path) -> dict[str, Any]:
    return files.read_json(workdir / CONFIG_FILE)
