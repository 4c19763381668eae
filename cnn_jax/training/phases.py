"""Phases of a run: each trains some of the parameters by one rule, on images of one size."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax.data.pipeline import gather
from cnn_jax.models.protocols import Network, TransferNetwork
from cnn_jax.models.trainable import Partition
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk, Step
from cnn_jax.training import optim
from cnn_jax.training.ema import Average
from cnn_jax.training.evaluator import Evaluator
from cnn_jax.training.inputs import FeatureInputs, ImageInputs
from cnn_jax.training.plan import Plan
from cnn_jax.training.sharpness import Sharpness
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import EvalStep, TrainStep


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """Steps of a run that one compiled program trains: the same parameters by the same rule, on images of one size.

    Attributes:
      begin: the step at which its optimizer began; before `start` where only the size of the images changes there.
      start: its first step.
      stop: the step after its last.
      longest_chunk: the number of steps that none of its chunks exceeds.
      step: one train step.
      learning_rate: of the parameters of no group, as a function of the step since `begin`.
      on_features: whether the steps take features of a frozen backbone instead of images.
      train: runs a step per row: (state, rows, arrays, keys) to (state, metrics).
      evaluate: scores variables on a split.
      sharpness: measures the sharpness of the loss before a chunk, where it is due.
      place: how seeds and batches are laid out.
    """

    begin: int
    start: int
    stop: int
    longest_chunk: int
    step: TrainStep
    learning_rate: optax.Schedule
    on_features: bool
    train: Chunk
    evaluate: Evaluator
    sharpness: Sharpness
    place: Placement

    def restart(self, state: TrainState) -> TrainState:
        """Returns the state with which the phase starts: with a new optimizer, if it has its own."""
        if self.start > self.begin:
            return state
        return state.replace(opt_state=self.place.jit_per_seed(self.step.init_optimizer)(state.params))

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step of the run, for parameters of no group."""
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            return float(self.learning_rate(step - self.begin))


def make_phases(
    config: ConfigDict,
    model: Network,
    shapes: PyTree,
    inputs: ImageInputs,
    plan: Plan,
    place: Placement,
    *,
    reuse_features: bool,
    class_weights: tuple[float, ...] | None = None,
) -> list[Phase]:
    """Returns the phases of a run: training and, where the configuration asks for it, fine-tuning.

    Each is divided where the size of its images changes (`config.augment.sides`).

    Args:
      config: of the run.
      model: the network.
      shapes: of its variables, {params, batch_stats}; only the paths matter.
      inputs: from images to the network's input.
      plan: of the run.
      place: how seeds and batches are laid out.
      reuse_features: whether features of a frozen backbone may be computed once instead of in every epoch.
      class_weights: factors of the training loss; None for 1 everywhere.
    """
    phases: list[Phase] = []
    epochs, partition = 0, None
    for own in config_lib.phases(config):
        start, epochs = plan.end_of_epoch(epochs), epochs + own.epochs
        stop = plan.end_of_epoch(epochs)
        partition = Partition.of(shapes, own.model.trainable, own.optimizer.groups, partition)
        learning_rate = optim.make_schedule(own.optimizer, stop - start, plan.steps_per_epoch)
        # Every epoch has the same features only if nothing changes the images.
        frozen = isinstance(model, TransferNetwork) and partition.freezes(model.backbone_name)
        on_features = reuse_features and frozen and inputs.fixed and not own.augment.sides
        average = Average.from_config(own.average, plan.total_steps)
        step = TrainStep(
            model,
            optim.make_optimizer(own.optimizer, learning_rate, partition.factors(own.optimizer.groups)),
            FeatureInputs() if on_features else inputs,
            partition,
            own.label_smoothing,
            own.diagnostics,
            average if average.enabled else None,
            class_weights,
            skip_not_finite=own.on_nan == "skip",
            accumulate=own.accumulate,
            unroll=not place.scan,
        )
        evaluate = Evaluator(EvalStep(model, step.inputs), own.eval_batch_size, place)
        for side, first, last in parts(own.augment.sides, start, stop):
            each = dataclasses.replace(step, inputs=dataclasses.replace(inputs, side=side)) if side else step
            phases.append(
                Phase(
                    start,
                    first,
                    last,
                    min(plan.longest_chunk, last - first),
                    each,
                    learning_rate,
                    on_features,
                    train=Chunk(on_rows(each), place),
                    evaluate=evaluate,
                    sharpness=Sharpness(each, place, own.sharpness_every if own.diagnostics else 0),
                    place=place,
                )
            )
    return phases


def parts(sides: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields (side, first step, step after the last) of each part of a phase with images of one size.

    Args:
      sides: of the images in equal parts of the phase; equal neighbours are one part. Empty for one part, with side 0.
      start: the first step of the phase.
      stop: the step after its last.
    """
    sides, end = sides or (0,), 0
    for side, group in itertools.groupby(sides):
        begin, end = end, end + len(list(group))
        first, last = (start + round((stop - start) * number / len(sides)) for number in (begin, end))
        if first < last:
            yield side, first, last


def on_rows(step: TrainStep) -> Step:
    """Returns a train step that takes a row of a pipeline in place of a batch."""

    def on_row(state, row, shared, key):
        return step(state, gather(row, shared), key)

    return on_row
