"""Configurations: loading a stage, refusing impossible values, comparing with what a workdir holds."""

import difflib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # where `configs` is in a clone


class Rule(NamedTuple):
    """What a key may hold."""

    allows: Callable[[Any], bool]
    meaning: str


def _whole(minimum: int) -> Rule:
    return Rule(lambda v: type(v) is int and v >= minimum, f"a whole number of at least {minimum}")


def _number(minimum: float, below: float = math.inf) -> Rule:
    upper = "" if below == math.inf else f" and below {below:g}"
    lower = "a number" if minimum == -math.inf else f"a number of at least {minimum:g}"
    return Rule(lambda v: type(v) in (int, float) and minimum <= v < below, lower + upper)


def _one_of(*choices: str) -> Rule:
    return Rule(lambda v: v in choices, f"one of {', '.join(choices)}")


def _tuple(item: Rule, length: int | None = None) -> Rule:
    size = "any number of them" if length is None else f"{length} of them"
    return Rule(
        lambda v: isinstance(v, tuple | list) and all(map(item.allows, v)) and length in (None, len(v)),
        f"(a, b, ...), {size}, each {item.meaning}",
    )


def _either(empty: Rule, rule: Rule) -> Rule:
    return Rule(lambda v: empty.allows(v) or rule.allows(v), f"{rule.meaning}; or {empty.meaning}")


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and re.compile(value) is not None
    except re.error:
        return False


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, tuple | list) and len(value) == 2 and _PATTERN.allows(value[0]) and _FACTOR.allows(value[1])
    )


_FACTOR = _number(0)
_PATTERN = Rule(
    _is_pattern, "a regular expression for names or paths of modules (see cnn_jax/models/trainable.py), or 'all'"
)
_GROUP = Rule(_is_group, "a pair (pattern, factor of the learning rate)")
_OWN = Rule(lambda v: v in ((), []), "() for the network's own")
_FLAG = Rule(lambda v: type(v) is bool, "true or false")
_TEXT = Rule(lambda v: isinstance(v, str), "text")

# Every key but those of the network. A key that is not here is refused as mistyped: to add one, add its line.
RULES = {
    "seed": Rule(lambda v: type(v) is int and 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "seeds": _whole(1),
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "eval_batch_size": _whole(1),
    "steps_per_call": _whole(1),
    "dtype": _one_of("float32", "bfloat16"),
    "label_smoothing": _number(0, 1),
    "on_nan": _one_of("stop", "continue"),
    "diagnostics": _FLAG,
    "profile": _FLAG,
    "tensorboard": _one_of("tensorboardX", "clu", "off"),
    "eval.epochs": _whole(1),
    "eval.mirror": _FLAG,
    "eval.shift": _whole(0),
    "checkpoint.epochs": _whole(1),
    "checkpoint.minutes": _number(0),
    "data.name": _TEXT,
    "data.dir": _TEXT,
    "data.validation": Rule(
        lambda v: type(v) in (int, float) and (0 <= v < 1 or (v > 1 and v == int(v))),
        "a fraction from 0 to below 1, or a count of at least 2",
    ),
    "data.train_examples": _whole(0),
    "data.split_seed": Rule(lambda v: type(v) is int and 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "data.image_size": _whole(0),
    "data.mean": _either(_OWN, _tuple(_number(-math.inf), 3)),
    "data.std": _either(_OWN, _tuple(_number(1e-6), 3)),
    "optimizer.name": _one_of("sgd", "adam", "muon"),
    "optimizer.learning_rate": _number(0),
    "optimizer.momentum": _number(0, 1),
    "optimizer.nesterov": _FLAG,
    "optimizer.b2": _number(0, 1),
    "optimizer.epsilon": _number(0),
    "optimizer.weight_decay": _number(0),
    "optimizer.schedule": _one_of("constant", "linear", "cosine"),
    "optimizer.warmup_epochs": _number(0),
    "optimizer.groups": _tuple(_GROUP),
    "optimizer.muon.momentum": _number(0, 1),
    "optimizer.muon.steps": _whole(1),
    "optimizer.muon.keep_norms": _FLAG,
    "average.decay": _number(0, 1),
    "average.every": _whole(1),
    "average.ramp": _number(0),
    "average.lookahead": _FLAG,
    "finetune.epochs": _whole(0),
    "finetune.trainable": _PATTERN,
    "finetune.learning_rate": _number(0),
    "features.cache": _FLAG,
    "features.dir": _TEXT,
    "augment.flip": _FLAG,
    "augment.alternate_flip": _FLAG,
    "augment.shift": _number(0, 1),
    "augment.rotate": _number(0),
    "augment.zoom": _number(0, 1),
    "augment.crop_padding": _whole(0),
    "augment.crop_mode": _one_of("constant", "reflect"),
    "augment.cutout": _whole(0),
}

# The keys under `model`, by `model.name`: the fields of the networks in cnn_jax.models.
_TRANSFER = {
    "weights": _TEXT,
    "hidden": _tuple(_whole(1)),
    "dropout": _tuple(_number(0, 1)),
    "trainable": _PATTERN,
}
MODEL_RULES = {
    "inception_resnet_v2": _TRANSFER,
    "efficientnet_lite0": _TRANSFER,
    "speednet": {
        "widths": _tuple(_whole(1)),
        "whiten_size": _whole(1),
        "whiten_epsilon": _number(0),
        "activation": _one_of("gelu", "silu", "relu"),
        "bn_momentum": _number(0, 1),
        "bn_epsilon": _number(0),
        "dirac": _FLAG,
        "logit_scale": _number(1e-6),
        "trainable": _PATTERN,
    },
    "resnet18": {
        "width": _whole(1),
        "bn_momentum": _number(0, 1),
        "bn_epsilon": _number(0),
        "trainable": _PATTERN,
    },
    "cnn": {
        "widths": _tuple(_whole(1)),
        "convs_per_block": _whole(1),
        "hidden": _tuple(_whole(1)),
        "batch_norm": _FLAG,
        "bn_momentum": _number(0, 1),
        "bn_epsilon": _number(0),
        "dropout": _tuple(_number(0, 1)),
        "winograd": _FLAG,
        "trainable": _PATTERN,
    },
}

# What changes where a run finds things or how often it reports, but no number that it computes.
FREE = (
    "data.dir",
    "features.dir",
    "profile",
    "steps_per_call",
    "tensorboard",
    "eval.epochs",
    "checkpoint.epochs",
    "checkpoint.minutes",
)


def load(path: str | Path) -> ConfigDict:
    """Returns `get_config()` of a Python file.

    Raises:
      UserError: no such file, or it fails.
    """
    path = Path(path)
    make_stages_importable()
    if not path.is_file():
        raise UserError(f"There is no config file {path}. {stages_hint()}")
    if path.suffix != ".py":
        raise UserError(f"{path} is not a config file: one is Python, with a function get_config(). {stages_hint()}")
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()
    except Exception as error:
        raise UserError(f"The config file {path} fails: {type(error).__name__}: {describe(error)}") from None


def make_stages_importable() -> None:
    """Lets a config file say `from configs import batchnorm`, wherever the command is run."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def stages_hint() -> str:
    """Names the stages of this clone."""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))
    return f"The stages are configs/NAME.py with NAME one of {', '.join(names)}." if names else ""


def describe(error: Exception) -> str:
    """The text of an error on one line. ml_collections quotes some of its own twice."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] in "\"'" else text


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns `{"model.name": "cnn", ...}`."""
    flat = {}
    for key, value in config.items():
        nested = hasattr(value, "items")
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def rules_of(model: str) -> dict[str, Rule]:
    """Returns the rules of all keys, for a network of this name."""
    if model not in MODEL_RULES:
        raise UserError(f"config.model.name is {model!r}; the networks are: {', '.join(MODEL_RULES)}.")
    return RULES | {"model.name": _TEXT} | {f"model.{key}": rule for key, rule in MODEL_RULES[model].items()}


def validate(config: ConfigDict) -> None:
    """Raises a `UserError` for the first key that is unknown, missing, of the wrong type or of an impossible value."""
    values = flatten(config)
    rules = rules_of(values.get("model.name"))
    for key in values:
        if key not in rules:
            raise UserError(unknown_key(key, list(rules)))
    for key, rule in rules.items():
        if key not in values:
            raise UserError(f"config.{key} is missing: it must be {rule.meaning}. configs/base.py has every key.")
        if not rule.allows(values[key]):
            raise UserError(f"config.{key} is {values[key]!r}; it must be {rule.meaning}.")


def phases(config: ConfigDict) -> list[ConfigDict]:
    """Returns the configuration of each phase of a run: the run itself and, if asked for, its fine-tuning.

    The second is the first with the three keys of `config.finetune` in their places.
    """
    if not config.finetune.epochs:
        return [config]
    second = config.copy_and_resolve_references()
    second.epochs = config.finetune.epochs
    second.model.trainable = config.finetune.trainable
    second.optimizer.learning_rate = config.finetune.learning_rate
    return [config, second]


def unknown_key(key: str, known: list[str]) -> str:
    """Says that there is no such key, and which one may have been meant."""
    # By the last part too: `learning_rate` for `optimizer.learning_rate`, the first of several.
    own = key.rsplit(".", 1)[-1]
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    close = [last[own]] if key in last else difflib.get_close_matches(key, known, 1)
    close = close or [last[match] for match in difflib.get_close_matches(own, last, 1)]
    hint = f"Did you mean config.{close[0]}?" if close else "configs/base.py has every key."
    return f"There is no config.{key}. {hint}"


def write(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    partial.replace(path)


def check_same(config: ConfigDict, path: Path) -> None:
    """Raises a `UserError` where the JSON file at `path` holds a config that would compute other numbers."""
    try:
        held = flatten(json.loads(path.read_text()))
    except ValueError:
        raise UserError(f"{path} is damaged: restore it, or take another --workdir.") from None
    asked = flatten(json.loads(json.dumps(config.to_dict())))
    held = with_defaults(held)
    differ = [
        f"config.{key} is {held.get(key)!r} there and {asked.get(key)!r} here"
        for key in asked | held
        if key not in FREE and held.get(key) != asked.get(key)
    ]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(
            f"{path.parent} holds another run: {'; '.join(differ[:3])}{more}. Take another --workdir, or the same "
            "configuration to go on with that run."
        )


def with_defaults(held: dict[str, Any]) -> dict[str, Any]:
    """Returns a flat configuration, as JSON holds it, with keys that were added since it was written at their defaults.

    Those of a network only where it is that of configs/base.py.
    """
    path = ROOT / "configs" / "base.py"
    base = json.loads(json.dumps(flatten(load(path)))) if path.is_file() else {}  # installed without a clone
    own = held.get("model.name") == base.get("model.name")
    return {key: value for key, value in base.items() if own or not key.startswith("model.")} | held
