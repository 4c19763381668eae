"""Flags that commands share, and user errors as one line."""

import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import runtime
from cnn_jax.errors import UserError

_PIPE_CLOSED = 141  # 128 + SIGPIPE, as in shells
_GRACE = 2.0  # seconds between Ctrl-C and the end of the process, for what must be tidied up
_HELP = {"-h", "-help", "--help", "-?", "--helpshort", "--helpfull"}

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
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):  # nohup and & may ignore it
        signal.signal(signal.SIGINT, _interrupt)
    runtime.prepare()
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)

    changed: dict[str, str] = {}

    def parse(argv: list[str]) -> list[str]:
        try:
            if overrides or "config" in flags.FLAGS:
                argv, found = split_overrides(argv)
                changed.update(found)
            if _HELP & set(itertools.takewhile("--".__ne__, argv[1:])):
                _print_help(argv, changed)
                sys.stdout.flush()
                sys.exit(0)
            rest = flags.FLAGS(argv)
            for name in required:
                require(name)
            if len(rest) > 1 and not positional:
                raise UserError(f"Unexpected argument {rest[1]!r}: flags are written --NAME=VALUE.")
            if "config" in required:
                config: Any = flags.FLAGS["config"]
                config.value = config_lib.load(config.value, changed)
        except UserError as error:
            sys.exit(_fail(error))
        except BrokenPipeError:
            discard_output()
            sys.exit(_PIPE_CLOSED)
        except flags.Error as error:
            sys.exit(_fail(f"{config_lib.describe(error)} (--help lists the flags)"))
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            status = main(*[list(argv[1:])] * positional, *[changed] * overrides)
        except UserError as error:
            status = _fail(error)
        except BrokenPipeError:
            status = _PIPE_CLOSED
        except KeyboardInterrupt:
            status = _fail("Interrupted.") + 129  # 128 + SIGINT, as in shells
        try:
            if sys.stdout:  # None where it is closed
                sys.stdout.flush()  # here, so that a closed pipe or a full disk causes no traceback
        except BrokenPipeError:
            status = _PIPE_CLOSED
        except OSError as error:
            status = _fail(f"Cannot write to standard output: {error.strerror}.")
        else:
            return status
        discard_output()
        return status

    app.run(guarded, flags_parser=parse)


def require(name: str) -> Any:
    """Returns the value of a flag; raises a `UserError` where it is not given."""
    flag: Any = flags.FLAGS[name]
    if flag.value is None:
        raise UserError(f"--{name}=... is missing. {flag.help}")
    return flag.value


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


def _print_help(argv: Sequence[str], overrides: dict[str, str]) -> None:
    """Prints what the command is, its flags and, where it trains, all settings of the stage that the flags name."""
    print(f"{(sys.modules['__main__'].__doc__ or '').strip()}\n\nFlags:")
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(sys.argv[0]), key=lambda flag: flag.name):
        default = "" if flag.default is None or flag.boolean else f" (default: {flag.default})"
        text = f"--{'[no]' * flag.boolean}{flag.name}: {flag.help}{default}"
        print(flags.text_wrap(text, indent="      ", firstline_indent="  "))
    if "config" in flags.FLAGS:
        names = re.findall(r"(?:^|\n)--?config[=\n]([^\n]+)", "\n".join(argv[1:]))
        name = names[-1] if names else "base"
        values = "the defaults" if name == "base" else f"their values in {name}"
        print(f"\nSettings, with {values}:\n{config_lib.listing(config_lib.load(name, overrides))}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C by an exception, or ends the process at once: during an import, or at the second time.

    C++ code may swallow the exception, as while JAX is imported, so that the process has `_GRACE` seconds to end.
    """
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame:
        _end(number)
    signal.signal(number, _end)
    timer = threading.Timer(_GRACE, _end, (number,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None = None) -> NoReturn:
    del frame
    os.write(2, b"\nInterrupted.\n")
    os._exit(128 + number)  # as in shells


def _fail(message: object) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1
