"""Comparison of a configuration with the one in a workdir."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.config.listing import as_json
from cnn_jax.config.validation import keys_of
from cnn_jax.configs import base
from cnn_jax.errors import UserError
from cnn_jax.keys import defaults, flatten
from cnn_jax.utils import files

# Schedules whose learning rate at a step does not depend on the length of the run.
CONTINUABLE = ("constant", "restarts")

# Keys that only decide where a run finds files or how often it reports.
FREE = tuple(name for name, key in flatten(base.KEYS).items() if not key.changes_numbers)


def write(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    with files.replacing(path) as file:
        file.write(as_json(config))


def check_same(config: ConfigDict, path: Path) -> dict[str, tuple[Any, Any]]:
    """Compares a configuration with the one in the JSON file at `path`.

    Returns:
      By which keys the run becomes longer, otherwise the same: `{"epochs": (10, 20)}`, from the file and asked for.

    Raises:
      UserError: the two would compute other numbers, or the file is damaged.
    """
    try:
        asked, held = _flatten(config.to_dict()), _flatten(files.read_json(path))
    except (ValueError, AttributeError):  # no JSON, or none with keys
        raise UserError(f"{path} is damaged: restore it, or take another --workdir.") from None
    differ = _compare(asked, held)
    if all(_lengthens(key, *values, held) for key, values in differ.items()):
        _check_continuable(differ, held, path.parent)
        return differ
    raise UserError(
        f"{path.parent} holds another run: {_describe(differ)}. Take another --workdir, or the same configuration to "
        "resume that run."
    )


def difference(here: Any, there: Any) -> str:
    """Returns which keys of two configs, as JSON holds them, make them those of different runs; "" for the same run.

    Args:
      here: of the run, which may have become longer.
      there: of an earlier part of the run, or of another one.
    """
    asked, held = _flatten(here), _flatten(there)
    differ = _compare(asked, held)
    return "" if all(_lengthens(key, *values, held) for key, values in differ.items()) else _describe(differ)


def _flatten(config: Any) -> dict[str, Any]:
    return with_defaults(flatten(_as_json(config)))


def _compare(asked: dict[str, Any], held: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the keys that make two flat configs compute different numbers, each with both values."""
    # With early stopping, how often the validation images are scored decides when a run ends.
    free = [key for key in FREE if not (key == "eval.epochs" and asked["early_stopping.patience"])]
    return {
        key: (held.get(key), asked.get(key))
        for key in asked | held
        if key not in free and held.get(key) != asked.get(key)
    }


def _describe(differ: dict[str, tuple[Any, Any]]) -> str:
    texts = [f"config.{key} is {there!r} there and {here!r} here" for key, (there, here) in differ.items()]
    more = f", and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f"{'; '.join(texts[:3])}{more}"


def _lengthens(key: str, there: Any, here: Any, held: dict[str, Any]) -> bool:
    """Whether this change of a key makes a run longer: more epochs of its last phase, a new phase, more patience."""
    match key:
        case "epochs":
            return here > there and not held["finetune.epochs"]
        case "finetune.epochs":
            return here > there
        case "early_stopping.patience":
            return there > 0 and (here > there or here == 0)
    return False


def _check_continuable(longer: dict[str, tuple[Any, Any]], held: dict[str, Any], workdir: Path) -> None:
    """Raises a `UserError` where steps that have been trained depended on the length of the run."""
    remedy = f"Start a new run from it, in another --workdir, with --config.init_from={workdir}."
    last = "finetune.epochs" if held["finetune.epochs"] else "epochs"
    if last in longer and held["optimizer.schedule"] not in CONTINUABLE:
        raise UserError(
            f"{workdir} cannot be trained for more epochs: the learning rate of config.optimizer.schedule="
            f"{held['optimizer.schedule']} follows from config.{last}, {longer[last][0]} there. {remedy}"
        )
    if last in longer and held["augment.sides"]:
        raise UserError(
            f"{workdir} cannot be trained for more epochs: with config.augment.sides, the size of its images depends "
            f"on the length of the run. {remedy}"
        )
    if {"epochs", "finetune.epochs"} & longer.keys() and held["average.decay"] and held["average.ramp"]:
        raise UserError(
            f"{workdir} cannot be trained for more epochs: with config.average.ramp, the average depends on the length "
            f"of the run. {remedy}"
        )


def with_defaults(held: dict[str, Any]) -> dict[str, Any]:
    """Returns a flat configuration, as JSON holds it, in which keys that it lacks have their defaults.

    Workdirs of earlier versions lack the keys that have been declared since.
    """
    try:
        keys = keys_of(held.get("model.name", ""))
    except UserError:  # a network that has been removed
        keys = flatten(base.KEYS)
    return _as_json(defaults(keys)) | held


def _as_json(values: Any) -> Any:
    """Returns values as they are after writing and reading: lists in place of tuples."""
    return json.loads(json.dumps(values))
