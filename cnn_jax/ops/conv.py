"""The convolution that suits shape and device: what `flax.linen.Conv` takes as its `conv_general_dilated`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn_jax.ops import winograd

# Below so many products of channels, the transforms cost more than they save: measured with 32 x 32 and 32 x 64.
LEAST_CHANNELS = 2048


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """Is `jax.lax.conv_general_dilated`, but on a CPU by Winograd's algorithm where that is faster.

    There the derivative exists in reverse mode alone.
    """

    def plain(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)

    if _winograd_suits(lhs, rhs, window_strides, padding, **options):
        return lax.platform_dependent(lhs, rhs, cpu=winograd.convolve, default=plain)
    return plain(lhs, rhs)


def _winograd_suits(
    lhs,
    rhs,
    window_strides,
    padding,
    *,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
) -> bool:
    """Whether it is a plain float32 convolution, 3x3 to the same size, whose channels are many and last."""
    if lhs.ndim != 4 or rhs.shape[:2] != (3, 3) or padding != "SAME":
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    channels_last = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    steps = (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ()))
    return (
        numbers == channels_last
        and all(step == 1 for step in steps)
        and (feature_group_count, batch_group_count, precision) == (1, 1, None)
        and lhs.dtype == rhs.dtype == (preferred_element_type or lhs.dtype) == jnp.float32
        and all(side % winograd.TILE == 0 for side in lhs.shape[1:3])
        and rhs.shape[2] * rhs.shape[3] >= LEAST_CHANNELS
    )
