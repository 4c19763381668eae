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
    """A compiled step, run once per row, whose outputs are merged.

    Attributes:
      program: what is compiled, by `jax.jit`: the scan of all rows, or the step of one row.
    """

    def __init__(self, step: Step, place: Placement, *, seed_rows: bool = True):
        """Compiles when it is first called.

        Args:
          step: pure, of one seed.
          place: how steps and seeds are laid out.
          seed_rows: whether each seed has rows of its own.
        """
        self._step, self._place, self._seed_rows = step, place, seed_rows
        self._zeros: Callable[[], Any] | None = None
        one_by_one = place.seed_layout == "loop" and not place.scan
        body = self._merging if one_by_one else self._over_seeds(self._merging)
        self.program = jax.jit(
            _scanned(body) if place.scan else body, donate_argnums=0, compiler_options=place.compiler_options
        )
        self._run = self._scan if place.scan else self._loop_over_seeds if one_by_one else self._loop

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

    def abstract(self, state: PyTree, rows: PyTree, shared: PyTree, own: PyTree, length: int = 0) -> tuple[PyTree, ...]:
        """Returns shapes, types and shardings of the arguments that a call gives a scan's `program`.

        With them it can be compiled before the arrays exist, and for devices that are not there.

        Args:
          state: as in a call; this and the following may be shapes with shardings.
          rows: likewise.
          shared: likewise.
          own: likewise.
          length: see `__call__`.
        """
        zeros = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._place.state),
            self._output(state, rows, shared, own),
        )
        real = jax.ShapeDtypeStruct((length,), np.bool_, sharding=self._place.replicated) if length else None
        sharding = self._place.rows(steps=True, seeds=self._seed_rows)
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((length or len(x), *x.shape[1:]), x.dtype, sharding=sharding), rows
        )
        return (state, zeros), rows, real, shared, own

    def _output(self, state: PyTree, rows: PyTree, shared: PyTree, own: PyTree) -> PyTree:
        """Returns shapes and types of a step's output."""
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
        return jax.eval_shape(self._over_seeds(self._step), state, row, shared, own)[1]

    def _make_zeros(self, *arguments: PyTree) -> Callable[[], Any]:
        shapes = self._output(*arguments)
        return jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=self._place.state
        )

    def _scan(self, carry: tuple, rows: PyTree, shared: PyTree, own: PyTree, length: int) -> tuple:
        real = None
        if length:
            rows, real = _pad(rows, length)
            real = self._place.put(real, self._place.replicated)
        rows = self._place.put(rows, self._place.rows(steps=True, seeds=self._seed_rows))
        return self.program(carry, rows, real, shared, own)

    def _loop(self, carry: tuple, rows: PyTree, shared: PyTree, own: PyTree, length: int = 0) -> tuple:
        return self._over_rows(carry, rows, shared, own, self._place.rows(steps=False, seeds=self._seed_rows))

    def _loop_over_seeds(self, carry: tuple, rows: PyTree, shared: PyTree, own: PyTree, length: int) -> tuple:
        place, results = self._place, []
        sharding = place.rows(steps=False, seeds=False)
        for index, (one, constants) in enumerate(zip(place.unstack(carry), place.unstack(own), strict=True)):
            own_rows = jax.tree.map(lambda x: x[:, index], rows) if self._seed_rows else rows  # noqa: B023
            results.append(self._over_rows(one, own_rows, shared, constants, sharding))
        return place.stack(results)

    def _over_rows(self, carry: tuple, rows: PyTree, shared: PyTree, own: PyTree, sharding: Any) -> tuple:
        for index in range(len(jax.tree.leaves(rows)[0])):
            row = self._place.put(jax.tree.map(lambda x: x[index], rows), sharding)  # noqa: B023
            carry = self.program(carry, row, shared, own)
        return carry


def _scanned(body: Callable) -> Callable:
    """Returns the scan over rows, of which those with a false `real` change nothing; None if all are real."""

    def scanned(carry, rows, real, shared, own):
        def step(carry, row_and_real):
            row, real = row_and_real
            new = body(carry, row, shared, own)
            return jax.tree.map(lambda a, b: jnp.where(real, a, b), new, carry) if padded else new, None

        padded = real is not None
        return jax.lax.scan(step, carry, (rows, real))[0]

    return scanned


def _pad(rows: PyTree, length: int) -> tuple[PyTree, np.ndarray]:
    """Returns the rows, the last one repeated until there are `length`, and which of them are real."""
    count = len(jax.tree.leaves(rows)[0])
    padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], length - count, axis=0)]), rows)
    return padded, np.arange(length) < count
