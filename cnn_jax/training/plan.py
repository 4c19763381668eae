"""When a run does what: epochs, chunks and batches as pure functions of the step number."""

import dataclasses
import functools
import math

import jax
import numpy as np

from cnn_jax import rng


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The plan of a run.

    Epochs follow each other without a gap: a batch may hold the last examples of one and the first of the next, so
    every example is seen once an epoch and every batch is full.

    Attributes:
      num_examples: training images.
      batch_size: images a step.
      epochs: passes over the training images.
      steps_per_call: steps between two returns to Python, at most.
      epochs_per_pause: epochs after which there is something to do besides training: no chunk goes across.
    """

    num_examples: int
    batch_size: int
    epochs: int
    steps_per_call: int
    epochs_per_pause: int = 1

    @property
    def total_steps(self) -> int:
        """The step after which training ends."""
        return self.end_of_epoch(self.epochs)

    @property
    def steps_per_epoch(self) -> float:
        """Not whole in general: see the class."""
        return self.num_examples / self.batch_size

    def end_of_epoch(self, epoch: int) -> int:
        """The first step count at which every image has been seen `epoch` times."""
        return math.ceil(epoch * self.num_examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """Passes over the training images after `step` steps."""
        return round(step * self.batch_size / self.num_examples, 2)

    def epoch_ended(self, step: int) -> int | None:
        """The epoch that ended exactly with `step`, or None."""
        epoch = min(step * self.batch_size // self.num_examples, self.epochs)
        return epoch if epoch and self.end_of_epoch(epoch) == step else None

    def next_stop(self, step: int) -> int:
        """Where the chunk that starts at `step` ends: at most `steps_per_call` later, and never across a pause.

        Chunks are counted from the last pause, so a resumed run stops where the first one would have.
        """
        epoch = step * self.batch_size // self.num_examples
        before = epoch - epoch % self.epochs_per_pause
        start, end = self.end_of_epoch(before), self.end_of_epoch(min(before + self.epochs_per_pause, self.epochs))
        chunk = (step - start) // self.steps_per_call + 1
        return min(start + chunk * self.steps_per_call, end)

    def rows(self, seed: int, step: int, stop: int) -> dict[str, np.ndarray]:
        """Returns which examples the steps from `step` to `stop` take.

        Returns:
          `index` int32, `mask` bool (all true: every batch is full) and `epoch` int32, which counts from 0; each
          `[stop - step, batch_size]`.
        """
        first, last = step * self.batch_size, stop * self.batch_size
        epochs = range(first // self.num_examples, (last - 1) // self.num_examples + 1)
        order = np.concatenate([_epoch_order(seed, epoch, self.num_examples) for epoch in epochs])
        offset = first - epochs[0] * self.num_examples
        index = order[offset : offset + last - first].reshape(-1, self.batch_size)
        epoch = (np.arange(first, last) // self.num_examples).astype(np.int32).reshape(index.shape)
        return {"index": index, "mask": np.ones(index.shape, bool), "epoch": epoch}


@functools.lru_cache(maxsize=64)  # many seeds ask in turns
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    key = rng.stream(rng.root(seed), "order", epoch)
    return np.asarray(_permutation(key, num_examples), np.int32)


_permutation = jax.jit(jax.random.permutation, static_argnums=1)
