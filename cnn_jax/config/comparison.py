"""Comparison of a configuration with the one in a workdir."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.config.validation import keys_of
from cnn_jax.configs import base
from cnn_jax.errors import UserError
from cnn_jax.keys import defaults, flatten
from cnn_jax.utils import files

# Keys that only decide where a run finds files or how often it reports.
FREE = tuple(name for name, key in flatten(base.KEYS).items() if not key.changes_numbers)


def write(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    with files.replacing(path) as file:
        file.write(json.dumps(config.to_dict(), indent=2) + "\n")


def check_same(config: ConfigDict, path: Path) -> None:
    """Raises a `UserError` where the JSON file at `path` holds a config that would compute other numbers."""
    try:
        differing = difference(config.to_dict(), json.loads(path.read_text()))
    except (ValueError, AttributeError):  # no JSON, or none with keys
        raise UserError(f"{path} is damaged: restore it, or take another --workdir.") from None
    if differing:
        raise UserError(
            f"{path.parent} holds another run: {differing}. Take another --workdir, or the same configuration to "
            "resume that run."
        )


def difference(here: Any, there: Any) -> str:
    """Returns which keys of two configs make them compute different numbers; "" where they compute the same."""
    asked, held = (with_defaults(flatten(_as_json(config))) for config in (here, there))
    differ = [
        f"config.{key} is {held.get(key)!r} there and {asked.get(key)!r} here"
        for key in asked | held
        if key not in FREE and held.get(key) != asked.get(key)
    ]
    more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
    return f"{'; '.join(differ[:3])}{more}"


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
