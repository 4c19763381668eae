"""Early stopping: the run ends when the validation accuracy has not improved for some epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.errors import UserError


def check(config: ConfigDict, validation_images: int) -> None:
    """Raises a `UserError` where a configuration asks for early stopping without what it needs."""
    if not config.early_stopping.patience:
        return
    if not validation_images:
        raise UserError("config.early_stopping needs validation images: set config.data.validation.")
    if config.seeds > 1:
        raise UserError(
            "With config.early_stopping each seed would end at an epoch of its own: set config.seeds=1, and train the "
            "seeds as runs of their own, as cnn_jax.ladder does."
        )


def triggered(config: ConfigDict, records: Sequence[Mapping[str, Any]], start: int, step: int) -> bool:
    """Returns whether the run ends at `step`: a function of its records, so that a resumed run ends there too.

    Args:
      config: of the run. It ends where no accuracy of the last `early_stopping.patience` epochs exceeds the best one
        before them by more than `early_stopping.min_delta`.
      records: of the run, in the order of their steps.
      start: the step at which the watched phase, the last of the run, starts.
      step: the last step that has been trained.
    """
    stopping = config.early_stopping
    if not stopping.patience:
        return False
    best, best_epoch = -math.inf, None
    for record in records:
        # At the end of a run that has been continued since, there may be a validation that was not due.
        due = record["split"] == "validation" and record["epoch"] % config.eval.epochs == 0
        if not due or not start < record["step"] <= step:
            continue
        accuracy = -math.inf if record["accuracy"] is None else record["accuracy"]  # JSON has no NaN
        if best_epoch is None or accuracy > best + stopping.min_delta:
            best, best_epoch = accuracy, record["epoch"]
        elif record["epoch"] - best_epoch >= stopping.patience:
            return True
    return False
