"""The learning-rate range test (Smith 2017, arXiv:1506.01186): a short run in which the learning rate grows."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.parallel.steps import Chunk
from cnn_jax.training import optim
from cnn_jax.training.experiment import Experiment, features_folder
from cnn_jax.training.phases import on_rows
from cnn_jax.utils import progress

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 140  # twenty steps per power of ten
MEMORY = 0.9  # share of the moving average of the losses that a step keeps
DIVERGED = 4.0  # the test ends where the average is so many times as high as it was at its lowest


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The losses of a range test, one per step.

    Attributes:
      learning_rates: of the steps, ascending.
      losses: mean training losses of the steps' batches, before their updates; the last may not be finite.
      averages: exponential moving averages of the losses, without bias towards zero.
    """

    learning_rates: list[float]
    losses: list[float]
    averages: list[float]

    @property
    def lowest(self) -> float:
        """The learning rate at which the average loss is lowest."""
        finite = [value if math.isfinite(value) else math.inf for value in self.averages]
        return self.learning_rates[finite.index(min(finite))]

    @property
    def advice(self) -> float:
        """A tenth of `lowest`, to one digit: where the loss falls quickly, a safe distance from where it rises."""
        return float(f"{self.lowest / 10:.0e}")


def learning_rate(step: Any) -> Any:
    """Returns the learning rate of a step of the test."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))


def range_test(config: ConfigDict, workdir: Path) -> RangeTest:
    """Trains the first phase of a run, with its first seed, at learning rates from `LOWEST` to `HIGHEST`.

    Nothing is saved but the features of a frozen backbone, which training uses too.

    Args:
      config: a stage.
      workdir: of the run.

    Raises:
      UserError: an impossible configuration or unusable data.
    """
    config_lib.validate(config)
    config = config.copy_and_resolve_references()
    config.seeds = 1
    experiment = Experiment(config, data.load(config.data), features_folder(config, workdir))
    phase, state = experiment.phases[0], experiment.init()
    partition = phase.step.partition
    assert partition  # every phase has one
    optimizer = optim.make_optimizer(config.optimizer, learning_rate, partition.factors(config.optimizer.groups))
    step = dataclasses.replace(phase.step, optimizer=optimizer, skip_not_finite=False)
    pipeline = experiment.pipeline(phase, state.variables)
    train = Chunk(on_rows(step), experiment.place)
    result, average, lowest = RangeTest([], [], []), 0.0, math.inf
    with progress.bar() as bar:
        for number in bar.track(range(STEPS), description="Learning rates"):
            state, metrics = train(state, pipeline.rows(number, number + 1), pipeline.shared, experiment.keys)
            loss = experiment.fetch(metrics)["loss"]
            average = MEMORY * average + (1 - MEMORY) * loss
            corrected = average / (1 - MEMORY ** (number + 1))
            for values, value in zip(
                (result.learning_rates, result.losses, result.averages), (learning_rate(number), loss, corrected)
            ):
                values.append(value)
            lowest = min(lowest, corrected)
            if not corrected <= DIVERGED * lowest:  # NaN too
                break
    return result
