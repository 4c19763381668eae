"""Trains a stage: python -m cnn_jax.main --config=configs/batchnorm.py --workdir=/tmp/bn [--config.KEY=VALUE ...].

The same command resumes where the run was stopped, and ends with the same numbers.
"""

import dataclasses
import json
import math
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cnn_jax import cli
from cnn_jax.errors import UserError
from cnn_jax.utils import files
from cnn_jax.workdir.layout import RANGE_TEST_FILE

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
        return find_learning_rate(_CONFIG.value, Path(_WORKDIR.value).expanduser())
    from cnn_jax.training.loop import train  # after parsing: a mistyped flag is reported without loading JAX

    return train(_CONFIG.value, _WORKDIR.value)


def find_learning_rate(config: ConfigDict, workdir: Path) -> int:
    """Makes a learning-rate range test, writes it and its figure to the workdir, and prints an advice."""
    from cnn_jax.report import figures
    from cnn_jax.training.rate_finder import range_test

    found = range_test(config, workdir)
    path = workdir / RANGE_TEST_FILE
    # JSON has no NaN, at which a test may end.
    values = {
        name: [value if math.isfinite(value) else None for value in values]
        for name, values in dataclasses.asdict(found).items()
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(json.dumps({"advice": found.advice, "lowest": found.lowest} | values, indent=1) + "\n")
        with files.replacing(path.with_suffix(".png"), "wb") as file:
            file.write(
                figures.png(figures.range_test(found.learning_rates, found.losses, found.averages, found.advice))
            )
    except OSError as error:
        raise UserError(f"Cannot write to --workdir={workdir}: {error.strerror}. Take another one.") from None
    print(
        f"Try --config.optimizer.learning_rate={found.advice:g}: a tenth of {found.lowest:.2g}, where the loss is lowest "
        f"({path.with_suffix('.png')})."
    )
    return 0


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
