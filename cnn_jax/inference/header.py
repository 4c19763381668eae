"""The JSON header of exported files: its schema and bounds, because files may come from strangers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.inference import calibration
from cnn_jax.inference.seeds import ENSEMBLE
from cnn_jax.utils import files, text

LONGEST = 2**22  # bytes of JSON; a header with 1,000 classes has some 50,000
MOST_CLASSES = 100_000
MOST_PIXELS = 4096  # on a side
MOST_SEEDS = 1000


def parse(
    line: str | bytes, path: Path, version: int, more: dict[str, Callable[[Any], bool]] | None = None
) -> dict[str, Any]:
    """Returns a header.

    Args:
      line: its JSON.
      path: of the file, for messages.
      version: the "format" that is read.
      more: the keys that only this kind of file has, and what their values must satisfy.

    Raises:
      UserError: it is not JSON, lacks a key, or has a value of another type or beyond the bounds.
    """
    try:
        header = files.parse_json(line) if len(line) <= LONGEST else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} has no header of cnn_jax: it is damaged, or was written by another program.")
    if type(header.get("format")) is not int or header["format"] != version:
        found = text.printable(str(header.get("format")))[:50]
        raise UserError(
            f"{path} has format {found}, and this cnn_jax reads format {version}. Update cnn_jax, or export the "
            "workdir again with this version."
        )
    rules = _RULES | (more or {})
    missing = sorted(rules.keys() - header.keys())
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}. Export it again from its workdir: python -m cnn_jax.export "
            f"--workdir=... --output={path}"
        )
    wrong = [name for name, rule in rules.items() if not rule(header[name])]
    wrong += [name for name, rule in _OPTIONAL.items() if name in header and not rule(header[name])]
    if wrong:
        raise UserError(
            f"{path} has an invalid header ({', '.join(wrong)}): it is damaged, or was not written by cnn_jax."
        )
    return header


def is_whole(value: Any, low: int, high: int) -> bool:
    """Returns whether a value is an integer in these bounds."""
    return type(value) is int and low <= value <= high


def is_text(value: Any, longest: int = 1000) -> bool:
    """Returns whether a value is a text of at most this length."""
    return isinstance(value, str) and len(value) <= longest


def _is_class_names(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MOST_CLASSES and all(map(is_text, value))


def _is_input_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_whole(side, 1, MOST_PIXELS) for side in value)


def _is_preprocessing(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_whole(value.get("image_size"), 0, MOST_PIXELS)
        and _is_colour(value.get("mean"), -math.inf)
        and _is_colour(value.get("std"), 0)
    )


def _is_colour(value: Any, above: float) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) in (int, float) and above < each < math.inf for each in value)
    )


def _is_config(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict) or not is_text(value.get("dtype")):
        return False
    return is_whole(value.get("seeds", 1), 1, MOST_SEEDS) and isinstance(value.get("eval", {}), dict)


def _is_seed(value: Any) -> bool:
    return value is None or value == ENSEMBLE or is_whole(value, 0, MOST_SEEDS)


def _is_calibration(value: Any) -> bool:
    try:
        calibration.from_json(value)
        return value is None or isinstance(value, dict)
    except ValueError:
        return False


_RULES: dict[str, Callable[[Any], bool]] = {
    "class_names": _is_class_names,
    "input_size": _is_input_size,
    "preprocessing": _is_preprocessing,
    "config": _is_config,
    "step": lambda value: is_whole(value, 0, 2**53),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {"seed": _is_seed, "calibration": _is_calibration}
