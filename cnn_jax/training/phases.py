"""A phase of a run: the steps in which the same parameters are trained by the same rule."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax.models.protocols import TransferNetwork
from cnn_jax.models.trainable import Partition
from cnn_jax.parallel import lanes
from cnn_jax.training import optim, step
from cnn_jax.training.ema import Average
from cnn_jax.training.metrics import zeros_like
from cnn_jax.training.plan import Schedule
from cnn_jax.transforms.augment import Augmentation
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.transforms.tta import Views


class Phase:
    """Steps of a run in which the same parameters are trained by the same rule.

    Attributes:
      config: the run's, with what this phase changes.
      partition: which parameters are trained.
      optimizer: the rule.
      one_step: (state, row, arrays, key) to (state, metrics), of one lane; pure.
      average: of the weights.
      start: its first step.
      stop: the step after its last.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any,
        preprocess: Preprocessing,
        augment: Augmentation,
        partition: Partition,
        start: int,
        stop: int,
        schedule: Schedule,
    ):
        """Builds the train step; compiles when it is first used."""
        self.config, self.partition, self.start, self.stop = config, partition, start, stop
        self._schedule = optim.make_schedule(config.optimizer, stop - start, schedule.steps_per_epoch)
        factors = partition.factors(config.optimizer.groups)
        self.optimizer = optim.make_optimizer(config.optimizer, self._schedule, factors)
        self.average = Average.from_config(config.average, schedule.total_steps)
        frozen = isinstance(model, TransferNetwork) and partition.freezes(model.backbone_name)
        self.keeps_features = frozen and not augment.enabled and not Views.from_config(config.eval).enabled
        train_step = step.make_train_step(
            model,
            self.optimizer,
            preprocess=preprocess,
            augment=augment,
            partition=partition,
            label_smoothing=config.label_smoothing,
            diagnostics=config.diagnostics,
            average=self.average,
        )

        def one_step(state, row, arrays, key):
            return train_step(state, step.gather(arrays, row), key)

        def body(carry, *arguments):
            state, metrics = carry
            state, update = one_step(state, *arguments)
            return state, metrics.merge(update)

        self.one_step, axes, count = one_step, (0, 0, None, 0), lanes.count_of(config)
        # Never run: it remembers what it was traced for, so the shapes of the metrics are found once.
        self._traced = jax.jit(lanes.over_lanes(one_step, axes, count))
        self._chunk = lanes.make_lane_chunk(body, axes, count)

    def begin(self, params: PyTree) -> PyTree:
        """Returns the optimizer's state at the first step, of one lane."""
        return self.optimizer.init(self.partition.trained(params))

    def begin_run(self, variables: PyTree) -> step.TrainState:
        """Returns the state, of one lane, of a run that begins with this phase and these variables."""
        return step.begin(variables, self.optimizer, self.partition, self.average)

    def learning_rate(self, now: int) -> float:
        """That of the step that starts at `now`, for parameters of no group."""
        return float(self._schedule(now - self.start))

    def train(
        self, state: step.TrainState, rows: dict[str, np.ndarray], arrays: dict[str, jax.Array], key: jax.Array
    ) -> tuple[step.TrainState, Any]:
        """Trains a step a row; returns the state and the metrics of these steps. The buffers of `state` are reused."""
        _, shapes = jax.eval_shape(self._traced, state, jax.tree.map(lambda x: x[0], rows), arrays, key)
        return self._chunk((state, zeros_like(shapes)), rows, arrays, key)
