"""The order of training examples: a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from cnn_jax import rng


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples each training step takes: a new permutation per epoch.

    Epochs follow each other without a gap: a batch may hold the last examples of one epoch and the first of the next.
    So every example is seen once per epoch, and every batch is full.

    Attributes:
      num_examples: training examples.
      batch_size: examples per step.
    """

    num_examples: int
    batch_size: int

    def rows(self, seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Returns the examples of the steps from `start` to `stop`.

        Returns:
          `index` int32, `mask` bool (all true: every batch is full) and `epoch` int32, which counts from 0; each
          `[stop - start, batch_size]`.
        """
        first, last = start * self.batch_size, stop * self.batch_size
        epochs = range(first // self.num_examples, (last - 1) // self.num_examples + 1)
        order = np.concatenate([np.asarray(_epoch_order(seed, epoch, self.num_examples), np.int32) for epoch in epochs])
        _epoch_order(seed, epochs[-1] + 1, self.num_examples)  # is computed while these steps are trained
        offset = first - epochs[0] * self.num_examples
        index = order[offset : offset + last - first].reshape(-1, self.batch_size)
        epoch = (np.arange(first, last) // self.num_examples).astype(np.int32).reshape(index.shape)
        return {"index": index, "mask": np.ones(index.shape, bool), "epoch": epoch}


@dataclasses.dataclass(frozen=True)
class Orders:
    """`orders(start, stop)`: the examples that each step takes, of all seeds.

    Attributes:
      order: of each seed.
      seeds: of the run; each has an order of its own.
    """

    order: Order
    seeds: Sequence[int]

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Returns `Order.rows`, with a seed axis `[stop - start, seeds, batch_size]` where there are several seeds."""
        rows = [self.order.rows(seed, start, stop) for seed in self.seeds]
        return rows[0] if len(rows) == 1 else {name: np.stack([own[name] for own in rows], 1) for name in rows[0]}


@functools.lru_cache(maxsize=128)  # the seeds of one run take turns
def _epoch_order(seed: int, epoch: int, num_examples: int) -> jax.Array:
    """Returns a permutation, which may still be computed."""
    order = _permutation(rng.stream(rng.root(seed), "order", epoch), num_examples)
    order.copy_to_host_async()
    return order


_permutation = jax.jit(jax.random.permutation, static_argnums=1)
