"""Trains a stage: python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/bn [--config.KEY=VALUE ...].

The same command resumes where the run was stopped, and ends with the same numbers.
"""

from pathlib import Path

from absl import flags

from cnn_jax import cli

_CONFIG = cli.define_config()
flags.declare_key_flag("config")  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the configuration.")
_FIND = flags.DEFINE_bool(
    "find_learning_rate",
    False,
    "Do not train: try learning rates in a short run, write a figure to the workdir and print an advice.",
)


def main() -> int:
    """Trains, and returns the exit status."""
    assert _WORKDIR.value  # required
    if _FIND.value:
        from cnn_jax.report.range_test import find_learning_rate

        return find_learning_rate(_CONFIG.value, Path(_WORKDIR.value).expanduser())
    from cnn_jax.training.loop import train  # after parsing: a mistyped flag is reported without loading JAX

    return train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
