"""Checks of a configuration against the declared keys."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.configs import base
from cnn_jax.errors import UserError
from cnn_jax.keys import Key, flatten

_LIST = "`python -m cnn_jax.config STAGE` lists all keys."


def keys_of(network: str) -> dict[str, Key]:
    """Returns all keys by their full names, with those of a network.

    Raises:
      UserError: there is no network of this name.
    """
    return flatten(base.keys(network))


def validate(config: ConfigDict) -> None:
    """Raises a `UserError` for the first key that is unknown, missing, of the wrong type or of an impossible value."""
    values = flatten(config)
    keys = keys_of(values.get("model.name", ""))
    for name in values:
        if name not in keys:
            raise UserError(unknown_key(name, config.model.name))
    for name, key in keys.items():
        if name not in values:
            raise UserError(f"config.{name} is missing: it must be {key.rule.meaning}. {_LIST}")
        _check(name, key, values[name])


def parse(name: str, key: Key, value: Any) -> Any:
    """Returns what a text or value means for a key (see `Key.convert`); raises a `UserError` where it has none."""
    value = key.convert(value)
    _check(name, key, value)
    return value


def unknown_key(name: str, network: str) -> str:
    """Returns a message that a network's configuration has no such key, with the one that may have been meant."""
    known = list(keys_of(network))
    if any(key.startswith(f"{name}.") for key in known):
        return f"config.{name} is a section, not a key: set one of its keys, as in --config.{name}.KEY=VALUE."
    close = _closest(name, known)
    where = f" of the network {network}" if name.startswith("model.") else ""
    return f"There is no config.{name}{where}. {f'Did you mean config.{close}?' if close else _LIST}"


def _closest(name: str, known: list[str]) -> str | None:
    """Returns the key that may be meant by an unknown name; of several equally good ones the first."""
    section, _, own = name.rpartition(".")
    last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    if name in last:  # `learning_rate` for `optimizer.learning_rate`
        return last[name]
    for key in known:  # `optimizer.lr`
        initials = "".join(word[0] for word in key.rsplit(".", 1)[-1].split("_"))
        if own == initials and len(own) > 1 and (not section or key.startswith(f"{section}.")):
            return key
    close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    close = close or [last[match] for match in difflib.get_close_matches(own, last, 1)]
    return close[0] if close else None


def _check(name: str, key: Key, value: Any) -> None:
    if not key.rule.allows(value):
        raise UserError(f"config.{name} is {value!r}; it must be {key.rule.meaning}.")
