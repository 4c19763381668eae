"""Declaration of config keys: each has a default, a rule for its values, and a line of help.

The keys of training are declared in configs/base.py, the keys of a network on the fields of its class. This module
imports no JAX.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """The values that a key may have."""

    allows: Callable[[Any], bool]
    meaning: str  # completes "it must be ..."


class Key(NamedTuple):
    """A config key.

    Attributes:
      default: its type is that of the key.
      rule: which values it may have.
      help: what it means.
      changes_numbers: False for keys that only decide where a run finds files or how often it reports: a run may
        resume with other values of these.
    """

    default: Any
    rule: Rule
    help: str
    changes_numbers: bool = True

    def parse(self, text: str) -> Any:
        """Returns the value of a command-line text, of the default's type; the text itself where it has no such value.

        A single item stands for the tuple of it, and names with commas between them for the tuple of them.
        """
        try:
            match self.default:
                case bool():
                    return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[text.lower()]
                case int() | float():
                    return type(self.default)(text)
                case tuple():
                    value = ast.literal_eval(text)
                    return tuple(value) if isinstance(value, tuple | list) else (value,)
        except (KeyError, SyntaxError, ValueError):
            names = tuple(text.split(","))
            return names if isinstance(self.default, tuple) and self.rule.allows(names) else text
        return text

    def convert(self, value: Any) -> Any:
        """Returns a value of the default's type: of a command-line text, or of a value that stands for one in Python.

        As ml_collections does: a list for a tuple, an integer for a float.
        """
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(self.default, tuple) and isinstance(value, list):
            return tuple(value)
        return float(value) if isinstance(self.default, float) and type(value) is int else value


def field(default: Any, rule: Rule, help: str) -> Any:
    """Returns a dataclass field that is also a key of `config.model`."""
    return dataclasses.field(default=default, metadata={"key": Key(default, rule, help)})


def keys_of_class(network: Callable[..., Any]) -> dict[str, Key]:
    """Returns the keys that are declared on a class: the class attributes that are a `Key`, then its `field`s.

    Args:
      network: a dataclass, or a `functools.partial` of one, whose own arguments are no keys.
    """
    cls: Any = getattr(network, "func", network)
    bound = getattr(network, "keywords", {})
    fields = {field.name: field.metadata.get("key") for field in dataclasses.fields(cls)}
    keys = {name: value for name, value in (vars(cls) | fields).items() if isinstance(value, Key)}
    return {name: key for name, key in keys.items() if name not in bound}


def defaults(keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the default of each key, in the same nested dictionaries."""
    return {name: key.default if isinstance(key, Key) else defaults(key) for name, key in keys.items()}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, by the full names of the keys: `{"model.name": "cnn", ...}`."""
    flat = {}
    for key, value in config.items():
        nested = hasattr(value, "items")
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def whole(minimum: int) -> Rule:
    """A whole number."""
    return Rule(lambda v: type(v) is int and v >= minimum, f"a whole number of at least {minimum}")


def number(minimum: float = -math.inf, below: float = math.inf) -> Rule:
    """A number in [minimum, below)."""
    lower = "a number" if minimum == -math.inf else f"a number of at least {minimum:g}"
    upper = "" if below == math.inf else f" and below {below:g}"
    return Rule(lambda v: type(v) in (int, float) and minimum <= v < below, lower + upper)


def one_of(*choices: str) -> Rule:
    """One of these texts."""
    return Rule(lambda v: v in choices, f"one of {', '.join(choices)}")


def tuple_of(item: Rule, length: int | None = None) -> Rule:
    """A tuple, or a list as in JSON, whose items follow one rule."""
    size = "of any length" if length is None else f"of length {length}"
    return Rule(
        lambda v: isinstance(v, tuple | list) and all(map(item.allows, v)) and length in (None, len(v)),
        f"a tuple (a, b, ...) {size}, each item {item.meaning}",
    )


def or_empty(rule: Rule, meaning: str) -> Rule:
    """What a rule allows, or an empty tuple with a meaning of its own."""
    return Rule(lambda v: v in ((), []) or rule.allows(v), f"{rule.meaning}; or () for {meaning}")


def pair(first: Rule, second: Rule, meaning: str) -> Rule:
    """A tuple, or a list as in JSON, of two items with a rule each."""
    return Rule(
        lambda v: isinstance(v, tuple | list) and len(v) == 2 and first.allows(v[0]) and second.allows(v[1]), meaning
    )


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and re.compile(value) is not None
    except re.error:
        return False


BOOLEAN = Rule(lambda v: type(v) is bool, "true or false")
TEXT = Rule(lambda v: isinstance(v, str), "text")
SEED = Rule(lambda v: type(v) is int and 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1")
SHARE = number(0, below=1)
PATTERN = Rule(
    _is_pattern, "a regular expression for names or paths of modules (see cnn_jax/models/trainable.py), or 'all'"
)
