"""Table of a network's parameters, with the cost of a forward pass."""

import dataclasses
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from clu import parameter_overview
from jaxtyping import PyTree

from cnn_jax.models.trainable import FROZEN, TRAINED


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of the table; the names are its headings."""

    parameters: str
    shape: str
    size: int
    trained: str


def model_table(
    model: Any, variables: PyTree, image_size: tuple[int, int], labels: PyTree | None = None, most_rows: int = 60
) -> str:
    """Returns a table of the parameters, and the floating-point operations of one image's forward pass.

    Args:
      model: a `flax.linen` module, called with images and `train`.
      variables: {params, batch_stats}.
      image_size: height and width of the network's input.
      labels: of a `cnn_jax.models.trainable.Partition`, which parameters are trained; None for all.
      most_rows: a network with more parameter arrays has one row per module instead.
    """
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
    cost = _cost(forward.lower(variables, images))
    flops = f"{cost['flops'] / 1e6:,.3g} million FLOPs per image" if "flops" in cost else "FLOPs unknown"
    params: dict[Any, Any] = flax.traverse_util.flatten_dict(variables["params"])
    names: dict[Any, Any] = flax.traverse_util.flatten_dict(labels) if labels else dict.fromkeys(params, TRAINED)
    depth = max(map(len, params)) if len(params) <= most_rows else 2
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in sorted(params, key=_natural):
        groups.setdefault(path[:depth], []).append(path)
    rows = [
        _row("/".join(group), [params[p] for p in paths], {names[p] for p in paths}) for group, paths in groups.items()
    ]
    total = sum(row.size for row in rows)
    trained = sum(int(params[path].size) for path in params if names[path] != FROZEN)
    count = f"Total: {total:,}" + (f", trained: {trained:,}" if trained != total else "")
    return f"{parameter_overview.make_table(rows)}\n{count}\n{type(model).__name__}: {flops} (forward)"


def _cost(lowered: jax.stages.Lowered) -> dict[str, float]:
    """Returns XLA's analysis of a program; empty where it has none."""
    try:
        cost = lowered.cost_analysis()
    except NotImplementedError:  # a GPU analyses only what it has compiled
        cost = lowered.compile().cost_analysis()
    return cost or {}


def _natural(path: tuple[str, ...]) -> list[Any]:
    """Sort key that puts block2 before block10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", "/".join(path))]


def _row(name: str, leaves: list[Any], labels: set[str]) -> _Row:
    shape = str(tuple(leaves[0].shape)) if len(leaves) == 1 else f"{len(leaves)} arrays"
    return _Row(name, shape, sum(int(leaf.size) for leaf in leaves), " and ".join(sorted(labels)))
