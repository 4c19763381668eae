"""Lists the keys of a stage or config file, with their values: python -m cnn_jax.config [STAGE]."""

import os
import shlex
import sys

from cnn_jax.config import flatten, keys_of, load
from cnn_jax.errors import UserError


def listing(name: str = "base") -> str:
    """Returns two lines per key: its value, then its meaning and the values that it may have."""
    values = flatten(load(name))
    return "\n".join(
        f"--config.{name}={shlex.quote(str(values[name]))}\n    {key.help} ({key.rule.meaning})"
        for name, key in keys_of(values["model.name"]).items()
    )


if __name__ == "__main__":
    try:
        print(listing(*sys.argv[1:2]), flush=True)
    except UserError as error:
        sys.exit(f"Error: {error}")
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, as in shells
