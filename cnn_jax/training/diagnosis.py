"""Where a run went wrong: replays the steps of a chunk to find the first value or gradient that is not finite.

A run is a function of its seed and step, so nothing is kept for this while it trains.
"""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from cnn_jax.data.pipeline import gather
from cnn_jax.parallel.steps import first_row
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.plan import Chunk
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import TrainStep
from cnn_jax.workdir.checkpoint import Checkpoints


def first_not_finite(experiment: Experiment, checkpoints: Checkpoints, chunk: Chunk) -> str | None:
    """Returns the first step of a chunk, and the layer, whose value or gradient is not finite; None if all are.

    Trains again from the last checkpoint, which is at the start of the chunk or before it.
    """
    now, state = experiment.restore(checkpoints) or (0, experiment.init())
    while now < chunk.start:
        now, state, _ = experiment.train_chunk(state, now)
    phase, place = experiment.phase(now), experiment.place
    if now and now == phase.start:
        state = phase.restart(state)
    pipeline, find = experiment.pipeline(phase, state.variables), _Finder(phase.step)
    for step in range(chunk.start, chunk.stop):
        rows = pipeline.rows(step, step + 1)
        first = first_row(rows)
        for index, seed in enumerate(experiment.seeds):
            row = place.seed(first, index)
            found = find(place.seed(state, index), row, pipeline.shared, place.seed(experiment.keys, index))
            if found:
                of_seed = f" of seed {seed}" if len(experiment.seeds) > 1 else ""
                return f"step {step + 1}{of_seed}, {found}"
        state, _ = phase.train(state, rows, pipeline.shared, experiment.keys, phase.longest_chunk)
    return None


class _Finder:
    """`find(state, row, shared, key)` returns what is not finite in one step, in the order of the computation."""

    def __init__(self, step: TrainStep):
        self._step = step
        self._names: list[str] = []
        self._compiled = jax.jit(self._finite)

    def __call__(self, *arguments: Any) -> str | None:
        finite = jax.device_get(self._compiled(*arguments))
        return next((name for name, good in zip(self._names, finite, strict=True) if not good), None)

    def _finite(self, state: TrainState, row: PyTree, shared: PyTree, key: PRNGKeyArray) -> jax.Array:
        order: list[tuple[str, ...]] = []

        def note(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.method_name == "__call__":
                order.append(context.module.path)
            return result

        with nn.intercept_methods(note):
            grads, (_, losses, updated) = self._step.gradients(
                state, gather(row, shared), key, capture_intermediates=True
            )
        values = flax.traverse_util.flatten_dict(updated["intermediates"])
        forward = [path for path in dict.fromkeys(order) if (*path, "__call__") in values]
        found = {f"the parameters of {layer}": tree for layer, tree in _by_layer(state.params).items()}
        found |= {f"the value of {_name(path)}": values[*path, "__call__"] for path in forward}
        found["the loss"] = losses
        # Gradients are computed from the last layer to the first.
        position = {_name(path): number for number, path in enumerate(forward)}
        backward = sorted(_by_layer(grads).items(), key=lambda item: -position.get(item[0], 0))
        found |= {f"the gradient of {layer}": tree for layer, tree in backward}
        self._names = list(found)
        return jnp.stack([_all_finite(tree) for tree in found.values()])


def _by_layer(tree: PyTree) -> dict[str, list[PyTree]]:
    layers: dict[str, list[PyTree]] = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
        if leaf is not None:
            layers.setdefault(_name(path[:-1]), []).append(leaf)
    return layers


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the network"


def _all_finite(tree: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
