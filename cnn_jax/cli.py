"""What the commands share: flags, and errors as one clear line."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cnn_jax import config as config_lib
from cnn_jax import runtime
from cnn_jax.errors import UserError

flags.disclaim_key_flags()  # the flags defined here are the command's, and --help lists them with its own


def define_config() -> flags.FlagHolder[ConfigDict]:
    """Defines `--config=FILE` with overrides `--config.KEY=VALUE`."""
    return config_flags.DEFINE_config_file("config", None, f"Config file. {config_lib.stages_hint()}")


def define_step() -> flags.FlagHolder[str | None]:
    """Defines `--step`, which checkpoint of a workdir to take."""
    return flags.DEFINE_string("step", "best", "Checkpoint of the workdir: best (by validation), latest, or a number.")


def define_lane() -> flags.FlagHolder[int]:
    """Defines `--lane`, which network of a run with several seeds to take."""
    return flags.DEFINE_integer("lane", 0, "Of a run with several seeds, which one: 0 for the first.", lower_bound=0)


def parse_step(text: str | None) -> int | str:
    """Returns what `load_classifier` takes for the value of `--step`."""
    if text in ("best", "latest"):
        return text
    if text is None or not text.isdecimal():
        raise UserError(f"--step is {text!r}; it must be best, latest, or the number of a step.")
    return int(text)


def run(main: Callable[..., int | None], required: Sequence[str] = (), positional: bool = False) -> None:
    """Parses the flags, runs `main` and exits with what it returns; a `UserError` is printed as one line.

    Args:
      main: the flags are parsed when it is called.
      required: flags that must be given.
      positional: `main` takes one argument, the list of what was given beside flags; otherwise it takes none, and
        anything beside flags is an error.
    """
    runtime.prepare()
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)

    def parse(argv: list[str]) -> list[str]:
        config_lib.make_stages_importable()
        try:
            # ml_collections wants the file before what overrides it; whoever types has no reason to.
            sys.argv.sort(key=lambda argument: argument.startswith("--config.") and "=" in argument)
            rest = flags.FLAGS(sys.argv)
            for name in required:
                if flags.FLAGS[name].value is None:
                    raise UserError(f"--{name}=... is missing. {flags.FLAGS[name].help}")
            if "config" in required:
                flags.FLAGS["config"].value.keys()  # ml_collections reports a file that fails when it is first used
        except Exception as error:
            sys.exit(_fail(_explain(error, argv)))
        if len(rest) > 1 and not positional:
            sys.exit(_fail(f"Unexpected argument {rest[1]!r}: flags are written --NAME=VALUE."))
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            status = main(list(argv[1:])) if positional else main()
            if sys.stdout:  # None where it is closed
                sys.stdout.flush()  # here, where a reader that has gone away is no traceback
            return status
        except UserError as error:
            return _fail(error)
        except BrokenPipeError:
            discard_output()
            return 141  # 128 + SIGPIPE, as shells have it
        except KeyboardInterrupt:
            return _fail("Interrupted.") + 129  # 128 + SIGINT, as shells have it

    app.run(guarded, flags_parser=parse)


def discard_output() -> None:
    """Lets Python end without a complaint that what it still holds for standard output cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """One line on why the flags are refused. ml_collections answers a mistyped key or file with a traceback."""
    if isinstance(error, UserError):
        return str(error)
    given = [argument.lstrip("-").partition("=") for argument in argv[1:] if argument.startswith("--")]
    overrides = {name.removeprefix("config."): value for name, _, value in given if name.startswith("config.")}
    following = dict(zip(argv, argv[1:]))  # of `--config FILE`
    path = next((value or following.get(f"--{name}", "") for name, _, value in given if name == "config"), "")
    if "config" not in flags.FLAGS:
        return f"{config_lib.describe(error)} (--help lists the flags)"
    if overrides and not path:
        return f"--config=... is missing. {flags.FLAGS['config'].help}"
    if path:
        try:
            known = config_lib.flatten(config_lib.load(path))
            rules = config_lib.rules_of(known.get("model.name"))
        except UserError as failed:
            return str(failed)
        for key, value in overrides.items():
            if not any(name == key or name.startswith(f"{key}.") for name in known):
                return config_lib.unknown_key(key, list(rules))
            if key in rules and f"--config.{key}=" in str(error):
                return f"config.{key} is {value!r}; it must be {rules[key].meaning}."
    return f"{config_lib.describe(error)} (--help lists the flags)"


def _fail(message: object) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1
