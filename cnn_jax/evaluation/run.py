"""Evaluation of a run: from its workdir to the scores."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset, results
from cnn_jax.evaluation.dataset import Examples
from cnn_jax.inference import Classifier, load_classifier
from cnn_jax.inference.seeds import Seed


class Evaluation(NamedTuple):
    """An evaluation and what it was computed from.

    Attributes:
      result: JSON, as in evaluation.json.
      classifier: the classifier of the run.
      examples: what was classified.
      log_probs: of the examples, `[n, classes]`.
    """

    result: dict[str, Any]
    classifier: Classifier
    examples: Examples
    log_probs: np.ndarray


def evaluate(
    workdir: Path,
    split: str | None = None,
    data_name: str | None = None,
    data_dir: str | None = None,
    step: int | str = "best",
    seed: Seed | None = None,
) -> Evaluation:
    """Classifies every image of a split once; writes nothing.

    Args:
      workdir: the folder of the run.
      split: "test", "validation" or "train"; None for "test", or for all images of a folder without splits.
      data_name: another data set; None for that of the run.
      data_dir: its folder; None for that of the run.
      step: see `load_classifier`.
      seed: see `load_classifier`.

    Raises:
      UserError: there is no such run, checkpoint, seed, data set or split, or it cannot be read.
    """
    if workdir.is_file():
        raise UserError(f"{workdir} is a file: --workdir takes the folder of a run.")
    if split not in (None, *dataset.SPLITS):
        raise UserError(f"There is no split {split!r}: it must be one of {', '.join(dataset.SPLITS)}.")
    classifier = load_classifier(workdir, step=step, seed=seed)
    examples = dataset.load(classifier, split, data_name, data_dir)
    if not len(examples):
        raise UserError(f"The {examples.split} split of {examples.name} is empty: choose another --split.")
    log_probs = dataset.predict(classifier, examples)
    result = {"checkpoint": str(step)} | results.measure(classifier, examples, log_probs, workdir)
    return Evaluation(result, classifier, examples, log_probs)
