"""What happens in each layer of a network while it learns, as scalars of a step.

They are computed from what the step has at hand, and change no number of training.
"""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from cnn_jax.models.ops.sums import channel_sum

_RELU = "relu_"  # begins the names under which a network sows activations


def of_layers(
    params: PyTree,
    grads: PyTree,
    updates: PyTree,
    sown: Mapping[str, tuple[Array, ...]],
    logits: Float[Array, "batch classes"],
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Returns scalars by name, KIND/LAYER. With their kinds, they are

    - grad_norm, weight_norm: the Euclidean norms of the kernel's gradient, and of the kernel before the step;
    - update_ratio: the norm of the step's change of the kernel, as a multiple of weight_norm;
    - activation_mean, activation_std: over the batch, all positions and units of the output of the layer's ReLU; of the
      layer "head", over the logits;
    - dead_relu: the share of units (channels or neurons) that are zero everywhere, on the whole batch: no gradient
      passes through them.

    Args:
      params: the trained parameters before the step; None where one is not trained.
      grads: their gradients, before the optimizer clips them.
      updates: what the step adds to them.
      sown: the collection "intermediates" of the network, with the outputs of ReLUs as "relu_LAYER".
      logits: of the batch.
      axis_name: the mapped axis over which the batch, but not `grads`, is spread, under `jax.pmap`.
    """
    values = {}
    norms = [jax.tree.map(jnp.linalg.norm, _kernels(tree)) for tree in (grads, params, updates)]
    for layer, gradient in norms[0].items():
        weight, update = norms[1][layer], norms[2][layer]
        values[f"grad_norm/{layer}"], values[f"weight_norm/{layer}"] = gradient, weight
        values[f"update_ratio/{layer}"] = update / weight
    outputs = {name.removeprefix(_RELU): value for name, (value,) in sown.items() if name.startswith(_RELU)}
    for layer, output in (outputs | {"head": logits}).items():
        size = output.size // output.shape[-1]
        output = output.astype(jnp.float32)
        means = channel_sum(output) / size, channel_sum(output * output) / size
        mean, square = means if axis_name is None else jax.lax.pmean(means, axis_name)
        if layer in outputs:
            values[f"dead_relu/{layer}"] = (mean == 0).mean(dtype=jnp.float32)  # of numbers that are not negative
        mean, square = mean.mean(), square.mean()
        values[f"activation_mean/{layer}"] = mean
        values[f"activation_std/{layer}"] = jnp.sqrt(jnp.maximum(square - mean * mean, 0))
    return values


def _kernels(tree: PyTree) -> dict[str, Array]:
    """Returns the kernels of a tree of parameters by their layers' paths, those that are not trained left out."""
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(tree)
    return {"/".join(path[:-1]): leaf for path, leaf in flat.items() if path[-1] == "kernel" and leaf is not None}
