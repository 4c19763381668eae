"""Runs a step once per row: as a scan or a loop, for one seed or many."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
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


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows that are made while the steps run, in place of arrays that hold the rows of all steps.

    Attributes:
      shapes: of a row: `jax.ShapeDtypeStruct`s, with a leading seed axis where each seed has rows of its own.
      make: returns an iterator over the rows: NumPy arrays, of each batch the part of this process
        (`Placement.part`).
    """

    shapes: PyTree
    make: Callable[[], Iterator[PyTree]]

    def __iter__(self) -> Iterator[PyTree]:
        return self.make()


Rows = PyTree | Stream  # NumPy arrays `[steps, ...]`, or `[steps, seeds, ...]` where each seed has its own; or a stream


def first_row(rows: Rows) -> PyTree:
    """Returns the row of the first step."""
    return next(iter(rows)) if isinstance(rows, Stream) else jax.tree.map(lambda x: x[0], rows)


def repeat_first(rows: Rows, times: int) -> Rows:
    """Returns the row of the first step so many times."""
    if not isinstance(rows, Stream):
        return jax.tree.map(lambda x: np.repeat(x[:1], times, axis=0), rows)
    return Stream(rows.shapes, lambda: itertools.repeat(first_row(rows), times))


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
        self._one_by_one = place.seed_layout == "loop" and not place.scan
        body = self._merging if self._one_by_one else self._over_seeds(self._merging)
        options: dict[str, Any] = {"donate_argnums": 0, "compiler_options": place.compiler_options}
        self._of_row = jax.jit(body, **options)
        self.program = jax.jit(_scanned(body), **options) if place.scan else self._of_row

    def __call__(self, state: PyTree, rows: Rows, shared: PyTree, own: PyTree, length: int = 0) -> tuple[PyTree, Any]:
        """Returns the state after the rows, whose buffers are those of `state`, and the merged outputs; does not wait.

        Args:
          state: what a step changes.
          rows: of the steps. A stream is never scanned, because a scan takes the rows of all steps at once.
          shared: what no step changes and all seeds share.
          own: what no step changes and each seed has for itself.
          length: scanned chunks of fewer rows are padded to it, so that one program serves all; 0 for no padding.
        """
        if self._zeros is None:
            self._zeros = self._make_zeros(state, rows, shared, own)
        carry = state, self._zeros()
        if self._place.scan and not isinstance(rows, Stream):
            return self._scan(carry, rows, shared, own, length)
        return self._loop(carry, rows, shared, own)

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
        if isinstance(rows, Stream):
            row = rows.shapes
        else:
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

    def _loop(self, carry: tuple, rows: Rows, shared: PyTree, own: PyTree) -> tuple:
        place, streamed = self._place, isinstance(rows, Stream)
        sharding = place.rows(steps=False, seeds=self._seed_rows and not self._one_by_one)
        put = place.put_part if streamed else place.put
        carries, constants = (place.unstack(x) if self._one_by_one else [x] for x in (carry, own))
        for row in rows if streamed else _each(rows):
            parts = [row] * len(carries)
            if self._one_by_one and self._seed_rows:
                parts = [jax.tree.map(lambda x: x[index], row) for index in range(len(carries))]  # noqa: B023
            parts = [put(part, sharding) for part in parts]
            if streamed:  # only now, so that the row is decoded and sent while the step before it runs
                jax.block_until_ready(carries)
            triples = zip(carries, parts, constants, strict=True)
            carries = [self._of_row(each, part, shared, mine) for each, part, mine in triples]
        return place.stack(carries) if self._one_by_one else carries[0]


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


def _each(rows: PyTree) -> Iterator[PyTree]:
    """Yields the row of each step."""
    for index in range(len(jax.tree.leaves(rows)[0])):
        yield jax.tree.map(lambda x: x[index], rows)  # noqa: B023


def _pad(rows: PyTree, length: int) -> tuple[PyTree, np.ndarray]:
    """Returns the rows, the last one repeated until there are `length`, and which of them are real."""
    count = len(jax.tree.leaves(rows)[0])
    padded = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], length - count, axis=0)]), rows)
    return padded, np.arange(length) < count
