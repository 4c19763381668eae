"""The convolution that suits shape and device: what `flax.linen.Conv` takes as its `conv_general_dilated`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnn_jax.ops import direct, winograd

# Below so many products of channels, the transforms cost more than they save: measured with 32 x 32 and 32 x 64.
LEAST_CHANNELS = 2048
# A kernel's gradient with fewer input channels than this is better left to XLA: measured with 3 and 32.
LEAST_INPUTS = 16


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """Is `jax.lax.conv_general_dilated`, but on a CPU, where that is faster, by other means.

    There the derivative exists in reverse mode alone.
    """

    def plain(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)

    if not _is_3x3(lhs, rhs, window_strides, padding, **options) or rhs.shape[2] < LEAST_INPUTS:
        return plain(lhs, rhs)
    tiles = all(side % winograd.TILE == 0 for side in lhs.shape[1:3]) and lhs.dtype == jnp.float32
    suits = tiles and rhs.shape[2] * rhs.shape[3] >= LEAST_CHANNELS
    return lax.platform_dependent(lhs, rhs, cpu=(winograd if suits else direct).convolve, default=plain)


def _is_3x3(
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
    """Whether it is a plain convolution of 3x3 to the same size, whose channels are last."""
    if lhs.ndim != 4 or rhs.shape[:2] != (3, 3) or padding != "SAME":
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    channels_last = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    steps = (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ()))
    return (
        numbers == channels_last
        and all(step == 1 for step in steps)
        and (feature_group_count, batch_group_count, precision) == (1, 1, None)
        and lhs.dtype == rhs.dtype == (preferred_element_type or lhs.dtype)
    )
