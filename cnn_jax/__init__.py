"""Image classification with CNNs in JAX: a ladder of stages, exact resume, checkpoints that serve themselves.

    from cnn_jax import load_config, train
    result = train(load_config("quickstart", epochs=3), "runs/digits")

docs/api.md describes the functions; `python -m cnn_jax` lists the commands.
"""

import importlib
import os
import signal
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cnn_jax import errors

if TYPE_CHECKING:
    from cnn_jax.api import (
        Classifier,
        TrainResult,
        evaluate,
        export,
        load_classifier,
        load_config,
        read_metrics,
        train,
    )

# In a command, of which these are the first lines, Ctrl-C ends the process without a traceback, until
# `cnn_jax.cli.run` handles it.
_by_module = sys.argv[:1] == ["-m"] and any(each.split(".")[0] == "cnn_jax" for each in sys.orig_argv)
_by_script = os.path.basename((sys.argv or [""])[0]).startswith("cnn-jax")
if (_by_module or _by_script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__all__ = [
    "Classifier",
    "TrainResult",
    "errors",
    "evaluate",
    "export",
    "load_classifier",
    "load_config",
    "read_metrics",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports the functions on first use, and JAX with them: the commands start without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module("cnn_jax.api"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which importing a command such as `cnn_jax.evaluate` does not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)) or name == "errors":
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
