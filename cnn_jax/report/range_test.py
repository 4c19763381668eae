"""The learning-rate range test of `python -m cnn_jax.main ... --find_learning_rate`: its files and its advice."""

import dataclasses
import json
import math
from pathlib import Path

from ml_collections import ConfigDict

from cnn_jax.errors import UserError
from cnn_jax.report import figures
from cnn_jax.training.rate_finder import range_test
from cnn_jax.utils import files
from cnn_jax.workdir.layout import RANGE_TEST_FILE


def find_learning_rate(config: ConfigDict, workdir: Path) -> int:
    """Makes a learning-rate range test, writes it and its figure to the workdir, and prints an advice; returns 0.

    Args:
      config: a stage.
      workdir: created if there is none; its checkpoints are neither read nor changed.

    Raises:
      UserError: see `cnn_jax.training.rate_finder.range_test`; or the workdir cannot be written to.
    """
    found = range_test(config, workdir)
    figure = figures.range_test(found.learning_rates, found.losses, found.averages, found.advice)
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
            file.write(figures.png(figure))
    except OSError as error:
        raise UserError(f"Cannot write to --workdir={workdir}: {error.strerror}. Take another one.") from None
    print(
        f"Try --config.optimizer.learning_rate={found.advice:g}: a tenth of {found.lowest:.2g}, where the loss is "
        f"lowest ({path.with_suffix('.png')})."
    )
    return 0
