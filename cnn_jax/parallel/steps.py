"""Runs a step once per row: as a scan or a loop, for one seed or many."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from cnn_jax.parallel.placement import Placement


@runtime_checkable
class Output(Protocol):
    """What a step returns besides the state: sums, to which zeros add nothing."""

    def merge(self, other: Any) -> Any:
        """Returns the sum of both."""


# step(state, row, shared, own) -> (state, output). `own` and the state have a seed axis where there are several seeds,
# `shared` has none.
Step = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, Output]]


class Chunk:
    """A compiled step, run once per row, whose outputs are merged."""

    def __init__(self, step: Step, place: Placement, *, seed_rows: bool = True):
        """Compiles when it is first called.

        Args:
          step: pure, of one seed.
          place: how steps and seeds are laid out.
          seed_rows: whether each seed has rows of its own.
        """
        self._step, self._place, self._seed_rows = step, place, seed_rows
        self._zeros: Callable[[], Any] | None = None
        self._run = self._scan(self._over_seeds(self._merging)) if place.scan else self._loop(self._merging)

    def __call__(self, state: PyTree, rows: PyTree, shared: PyTree, own: PyTree, length: int = 0) -> tuple[PyTree, Any]:
        """Returns the state after the rows, whose buffers are those of `state`, and the merged outputs; does not wait.

        Args:
          state: what a step changes.
          rows: NumPy arrays `[steps, ...]`, or `[steps, seeds, ...]` where each seed has its own.
          shared: what no step changes and all seeds share.
          own: what no step changes and each seed has for itself.
          length: scanned chunks of fewer rows are padded to it, so that one program serves all; 0 for no padding.
        """
        if self._zeros is None:
            self._zeros = self._make_zeros(state, rows, shared, own)
        return self._run((state, self._zeros()), rows, shared, own, length)

    def _merging(self, carry: tuple, row: PyTree, shared: PyTree, own: PyTree) -> tuple:
        state, merged = carry
        state, output = self._step(state, row, shared, own)
        return state, merged.merge(output)

    def _over_seeds(self, function: Callable) -> Callable:
        if self._place.seeds is None:
            return function
        return self._place.shard_seeds(function, (True, self._seed_rows, False, True))

    def _make_zeros(self, *arguments: PyTree) -> Callable[[], Any]:
        state, rows, shared, own = arguments
        row = jax.tree.map(lambda x: x[0], rows)
        _, shapes = jax.eval_shape(self._over_seeds(self._step), state, row, shared, own)
        return jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=self._place.state
        )

    def _scan(self, body: Callable) -> Callable:
        def scanned(carry, rows, real, shared, own):
            def step(carry, row_and_real):
                row, real = row_and_real
                new = body(carry, row, shared, own)
                return jax.tree.map(lambda a, b: jnp.where(real, a, b), new, carry) if padded else new, None

            padded = real is not None
            return jax.lax.scan(step, carry, (rows, real))[0]

        compiled = jax.jit(scanned, donate_argnums=0)

        def run(carry, rows, shared, own, length):
            real = None
            if length:
                rows, real = _pad(rows, length)
                real = self._place.put(real, self._place.replicated)
            sharding = self._place.rows(steps=True, seeds=self._seed_rows)
            return compiled(carry, self._place.put(rows, sharding), real, shared, own)

        return run

    def _loop(self, body: Callable) -> Callable:
        place = self._place
        one_by_one = place.seed_layout == "loop"
        compiled = jax.jit(body if one_by_one else self._over_seeds(body), donate_argnums=0)
        sharding = place.rows(steps=False, seeds=self._seed_rows and not one_by_one)

        def over_rows(carry, rows, shared, own):
            for index in range(len(jax.tree.leaves(rows)[0])):
                row = place.put(jax.tree.map(lambda x: x[index], rows), sharding)  # noqa: B023
                carry = compiled(carry, row, shared, own)
            return carry

        def over_seeds(carry, rows, shared, own):
            results = []
            for index, (one, constants) in enumerate(zip(place.unstack(carry), place.unstack(own), strict=True)):
                own_rows = jax.tree.map(lambda x: x[:, index], rows) if self._seed_rows else rows  # noqa: B023
                results.append(over_rows(one, own_rows, shared, constants))
            return place.stack(results)

        run = over_seeds if one_by_one else over_rows
        return lambda carry, rows, shared, own, length: run(carry, rows, shared, own)


def _pad(rows: PyTree, length: int) -> tuple[PyTree, np.ndarray]:
    """Returns the rows, the last one repeated until there are `length`, and which of them are real."""
    count = len(jax.tree.leaves(rows)[0])
    padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], length - count, axis=0)]), rows)
    return padded, np.arange(length) < count
