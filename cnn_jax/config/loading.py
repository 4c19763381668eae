"""Loads a stage or a config file, with overrides from the command line."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax.config.validation import keys_of, parse, unknown_key
from cnn_jax.configs import base
from cnn_jax.errors import UserError
from cnn_jax.keys import flatten
from cnn_jax.utils.source import ROOT

_STAGES = Path(__file__).resolve().parents[1] / "configs"


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns `get_config()` of a stage or of a Python file, with the values of some keys replaced.

    Args:
      name: of a stage, such as "batchnorm", or the path of a file.
      overrides: values, or texts from the command line, by the full names of their keys:
        `{"optimizer.learning_rate": "0.1"}`.
        Another "model.name" replaces the network (see `use_network`), whose keys the others are then.

    Raises:
      UserError: there is no such file, it fails, or an override has an unknown key or an impossible value.
    """
    overrides = overrides or {}
    path = _find(str(name))
    declared = flatten(base.KEYS)
    for key in overrides.keys() & declared.keys():  # before a network, and with it JAX, is imported
        parse(key, declared[key], overrides[key])
    config = _run(path)
    use_network(config, overrides.get("model.name") or config.model.name)
    declared = keys_of(config.model.name)
    for key, value in overrides.items():
        if key not in declared:
            raise UserError(unknown_key(key, config.model.name))
        config.update_from_flattened_dict({key: parse(key, declared[key], value)})
    return config


def use_network(config: ConfigDict, name: str) -> None:
    """Makes `name` the network of a configuration, with the defaults of that network and the same `model.trainable`.

    Where both networks have the same keys, such as two backbones with the same head, the values of all keys stay.
    """
    from cnn_jax.models.keys import network_keys  # here, because JAX takes a second to import

    old = config.model
    if network_keys(name) != network_keys(old.name):
        with config.unlocked():
            config.model = base.get_config(name).model
        config.model.trainable = old.trainable
    config.model.name = name


def make_stages_importable() -> None:
    """Lets a config file outside of the clone use `from configs import batchnorm`, as those of earlier versions do."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def stages_hint() -> str:
    """Returns a sentence that lists the stages."""
    names = sorted(path.stem for path in _STAGES.glob("*.py") if path.stem not in ("__init__", "base"))
    return f"The stages are {', '.join(names)}."


def describe(error: Exception) -> str:
    """Returns the text of an error on one line, without the quotes that ml_collections puts around some of its own."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] in "\"'" else text


def _find(name: str) -> Path:
    """Returns the file of a stage or of a path."""
    path = _STAGES / f"{name}.py" if name.isidentifier() else Path(name)
    if not path.is_file():
        what = "stage" if name.isidentifier() else "config file"
        raise UserError(f"There is no {what} {name}. {stages_hint()}")
    if path.suffix != ".py":
        raise UserError(f"{path} is not a config file, which is Python with a function get_config(). {stages_hint()}")
    return path


def _run(path: Path) -> ConfigDict:
    make_stages_importable()
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader  # None for an unknown suffix alone
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()
    except Exception as error:
        raise UserError(f"The config file {path} fails: {type(error).__name__}: {describe(error)}") from None
