"""Trains a stage: python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/bn [--config.KEY=VALUE ...].

The same command resumes where the run was stopped, and ends with the same numbers.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli
from cnn_jax import config as config_lib

_CONFIG = cli.define_config()
flags.declare_key_flag("config")  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the configuration.")
_FIND = flags.DEFINE_bool(
    "find_learning_rate",
    False,
    "Do not train: try learning rates in a short run, write a figure and a suggestion to the workdir.",
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Only print the configuration, as config.json has it.")


def main() -> int:
    """Trains, and returns the exit status."""
    if _PRINT_CONFIG.value:
        config_lib.validate(_CONFIG.value)
        print(config_lib.as_json(_CONFIG.value), end="")
        return 0
    workdir = cli.require("workdir")
    if _FIND.value:
        from cnn_jax.report.range_test import find_learning_rate

        return find_learning_rate(_CONFIG.value, Path(workdir).expanduser())
    from cnn_jax.training.loop import train  # after parsing: a mistyped flag is reported without loading JAX

    return train(_CONFIG.value, workdir)


if __name__ == "__main__":
    cli.run(main, required=("config",))
