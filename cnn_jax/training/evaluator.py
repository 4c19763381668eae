"""Scores a network on a split: every example once, whatever the batch size."""

import numpy as np
from jaxtyping import PyTree

from cnn_jax.data.batching import padded_batches
from cnn_jax.data.pipeline import Examples, gather
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk
from cnn_jax.training.metrics import Classification
from cnn_jax.training.step import EvalStep


class Evaluator:
    """`evaluate(variables, examples) -> metrics`, compiled.

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
            return state, step(variables, gather(row, arrays))

        place = place or Placement.choose()
        self.chunk = Chunk(score, place, seed_rows=False)
        self._batch_size = -(-batch_size // place.data) * place.data  # a multiple of the devices that share it

    def __call__(self, variables: PyTree, examples: Examples) -> Classification:
        """Returns the sums and counts of all examples, for each seed where there are several; does not wait.

        Args:
          variables: {params, batch_stats}.
          examples: at least one. Those that cannot be read are not counted.
        """
        batches = self.rows(len(examples))

        def choose(start, stop):
            return {name: array[start:stop] for name, array in batches.items()}

        rows = examples.rows(choose, 0, len(batches["index"]), train=False)
        return self.chunk((), rows, examples.shared, variables)[1]

    def rows(self, count: int) -> dict[str, np.ndarray]:
        """Returns which of `count` examples each step scores."""
        return padded_batches(count, self._batch_size)
