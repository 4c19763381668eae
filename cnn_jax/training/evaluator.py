"""Scores a network on a split on the device: every example once, whatever the batch size."""

import jax
import numpy as np
from jaxtyping import PyTree

from cnn_jax.data.batching import padded_batches
from cnn_jax.data.pipeline import Resident
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk
from cnn_jax.training.metrics import Classification
from cnn_jax.training.step import EvalStep


class Evaluator:
    """`evaluate(variables, arrays) -> metrics`, compiled.

    Attributes:
      chunk: which takes no state, and the variables as what each seed has for itself.
    """

    def __init__(self, step: EvalStep, batch_size: int, place: Placement | None = None):
        """Compiles when it is first called.

        Args:
          step: scores a batch.
          batch_size: examples per batch: a matter of memory and speed, not of the result.
          place: how seeds and batches are laid out; None for one seed on one device.
        """

        def score(state, row, arrays, variables):
            return state, step(variables, Resident.batch(row, arrays))

        place = place or Placement.choose()
        self.chunk = Chunk(score, place, seed_rows=False)
        self._batch_size = -(-batch_size // place.data) * place.data  # a multiple of the devices that share it

    def __call__(self, variables: PyTree, arrays: dict[str, jax.Array]) -> Classification:
        """Returns the sums and counts of all examples, for each seed where there are several; does not wait.

        Args:
          variables: {params, batch_stats}.
          arrays: "image" uint8 `[n, height, width, 3]` or "features" `[n, features]`, and "label" int32 `[n]`.
        """
        return self.chunk((), self.rows(len(arrays["label"])), arrays, variables)[1]

    def rows(self, count: int) -> dict[str, np.ndarray]:
        """Returns the rows of the chunk that scores `count` examples."""
        return padded_batches(count, self._batch_size)
