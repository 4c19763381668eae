"""Lists the keys of a stage or config file, with their values: python -m cnn_jax.config [STAGE]."""

import os
import sys

from cnn_jax.config import listing, load, stages_hint
from cnn_jax.errors import UserError


def main(arguments: list[str]) -> None:
    """Prints the listing, or for `--help` how to ask for it."""
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n\nWithout STAGE: the defaults, configs/base.py. {stages_hint()}")
        return
    if len(arguments) > 1:
        raise UserError(f"Unexpected argument {arguments[1]!r}: give one stage or config file.")
    print(listing(load(arguments[0] if arguments else "base")), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"Error: {error}")
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, as in shells
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT
