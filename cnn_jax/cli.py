"""What the commands share: flags, and errors as one clear line."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError


def define_config() -> flags.FlagHolder[ConfigDict]:
    """Defines `--config=FILE` with overrides `--config.KEY=VALUE`."""
    return config_flags.DEFINE_config_file("config", None, "The stage to train: a file of configs/.")


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main` and exits with what it returns; a `UserError` is printed as one line."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise UserError(f"Unexpected argument {argv[1]!r}: flags are written --NAME=VALUE.")
            return main()
        except UserError as error:
            return _fail(error)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    config_lib.make_stages_importable()
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        # absl joins several complaints by line breaks; the first is enough to go on.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(_fail(f"{lines[0]} (--help lists the flags)"))
    except Exception as error:
        sys.exit(_fail(_explain(error, argv)))


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """Why `--config` or an override of it failed: ml_collections lets a traceback tell."""
    given = [argument.lstrip("-").partition("=") for argument in argv[1:] if argument.startswith("-")]
    following = dict(zip(argv, argv[1:]))
    path = next((value or following.get(f"--{name}", "") for name, _, value in given if name == "config"), "")
    if not path:
        return f"Overrides need a config file: add --config=FILE. {config_lib.stages_hint()}"
    try:
        known = list(config_lib.flatten(config_lib.load(path)))
    except UserError as failed:
        return str(failed)
    for name, _, _ in given:
        key = name.removeprefix("config.")
        if name.startswith("config.") and key not in known:
            return config_lib.unknown_key(key, known)
    return config_lib.describe(error)


def _fail(message: object) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1
