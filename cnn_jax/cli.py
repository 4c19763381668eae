"""Flags that commands share, and user errors as one line."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import runtime
from cnn_jax.errors import UserError

flags.disclaim_key_flags()  # the flags defined here are the command's, and --help lists them with its own


def define_config() -> flags.FlagHolder[ConfigDict]:
    """Defines `--config`, a stage or a config file, with overrides `--config.KEY=VALUE`."""
    return flags.DEFINE_string(
        "config",
        None,
        f"Stage, or path of a config file. {config_lib.stages_hint()} --config.KEY=VALUE changes a key; `python -m "
        "cnn_jax.config STAGE` lists all keys.",
    )


def define_step() -> flags.FlagHolder[str | None]:
    """Defines `--step`, which checkpoint of a workdir to restore."""
    return flags.DEFINE_string("step", "best", "Checkpoint of the workdir: best (by validation), latest, or a number.")


def define_seed() -> Callable[[], int | str | None]:
    """Defines `--seed`, which seed of a multi-seed run to use, and its old name `--lane`.

    Returns:
      A function for the argument of `load_classifier`: None if neither is given. It raises a `UserError`.
    """
    seed = flags.DEFINE_string(
        "seed",
        None,
        "Of a run with several seeds: the index of one (0 is the first, and the default), or ensemble for the mean of "
        "the probabilities of all.",
    )
    lane = flags.DEFINE_string("lane", None, "The old name of --seed.")

    def read() -> int | str | None:
        given = {name: text for name, text in (("seed", seed.value), ("lane", lane.value)) if text is not None}
        if len(given) > 1:
            raise UserError("Give --seed or --lane, its old name, not both.")
        for name, text in given.items():
            return parse_seed(text, name)
        return None

    return read


def parse_seed(text: str, flag: str = "seed") -> int | str:
    """Returns the argument of `load_classifier` for the value of `--seed`."""
    if text == "ensemble":
        return text
    if not text.isdecimal():
        raise UserError(f"--{flag} is {text!r}; it must be the index of a seed (0 is the first), or ensemble.")
    return int(text)


def parse_step(text: str | None) -> int | str:
    """Returns the argument of `load_classifier` for the value of `--step`."""
    if text in ("best", "latest"):
        return text
    if text is None or not text.isdecimal():
        raise UserError(f"--step is {text!r}; it must be best, latest, or the number of a step.")
    return int(text)


def run(
    main: Callable[..., int | None], required: Sequence[str] = (), positional: bool = False, overrides: bool = False
) -> None:
    """Parses the flags, runs `main` and exits with the status that it returns; a `UserError` is printed as one line.

    Args:
      main: the flags are parsed when it is called.
      required: flags that must be given.
      positional: `main` takes one argument, the list of the arguments that are not flags; otherwise it takes none, and
        such arguments are an error.
      overrides: `main` takes one argument, the overrides of config keys (see `split_overrides`).
    """
    handles_interrupts = signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler)
    if handles_interrupts:  # unless the shell ignores them
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to clean up yet
    runtime.prepare()
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)

    changed: dict[str, str] = {}

    def parse(argv: list[str]) -> list[str]:
        try:
            if overrides or "config" in flags.FLAGS:
                argv, found = split_overrides(argv)
                changed.update(found)
            rest = flags.FLAGS(argv)
            for name in required:
                if flags.FLAGS[name].value is None:
                    raise UserError(f"--{name}=... is missing. {flags.FLAGS[name].help}")
            if len(rest) > 1 and not positional:
                raise UserError(f"Unexpected argument {rest[1]!r}: flags are written --NAME=VALUE.")
            if "config" in required:
                config: Any = flags.FLAGS["config"]
                config.value = config_lib.load(config.value, changed)
        except UserError as error:
            sys.exit(_fail(error))
        except flags.Error as error:
            sys.exit(_fail(f"{config_lib.describe(error)} (--help lists the flags)"))
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        if handles_interrupts:
            signal.signal(signal.SIGINT, _interrupt)
        try:
            status = main(*[list(argv[1:])] * positional, *[changed] * overrides)
        except UserError as error:
            status = _fail(error)
        except BrokenPipeError:
            status = 141  # 128 + SIGPIPE, as in shells
        except KeyboardInterrupt:
            status = _fail("Interrupted.") + 129  # 128 + SIGINT, as in shells
        try:
            if sys.stdout:  # None where it is closed
                sys.stdout.flush()  # here, so that a closed pipe or a full disk causes no traceback
        except BrokenPipeError:
            status = 141
        except OSError as error:
            status = _fail(f"Cannot write to standard output: {error.strerror}.")
        else:
            return status
        discard_output()
        return status

    app.run(guarded, flags_parser=parse)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises `KeyboardInterrupt`, but exits where that would break an import, which then raises something else."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"Error: Interrupted.\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


def discard_output() -> None:
    """Lets Python exit without an error message about buffered output that cannot be written any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the arguments without overrides of config keys, and the overrides: `{"batch_size": "64"}`.

    As with other flags: --config.KEY=VALUE, --config.KEY VALUE, --config.KEY and --noconfig.KEY for true and false, one
    dash or two, and nothing after "--".
    """
    rest, overrides, left = [], {}, list(argv)
    while left and left[0] != "--":
        argument = left.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        negated, key, value = match.groups()
        if value is None and not negated:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        overrides[key] = "false" if negated else value
    return rest + left, overrides


def _fail(message: object) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1
