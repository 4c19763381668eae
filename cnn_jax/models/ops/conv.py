"""A 3x3 convolution by the fastest algorithm for the device, the shape and the type."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnn_jax.models.ops import direct, winograd

# With fewer input times output channels, the transforms cost more than they save: measured with 32 x 32 and 32 x 64.
LEAST_CHANNELS = 2048
# With fewer input channels, XLA's own gradient of the kernel is faster: measured with 3 and 32.
LEAST_INPUTS = 16


def convolve_3x3(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    fast: bool = True,
) -> Float[Array, "batch height width features"]:
    """Returns the convolution at stride 1, zero-padded to the same size, in the type of its arguments.

    On a CPU only reverse-mode derivatives exist.

    Args:
      images: the images.
      kernel: the kernel.
      fast: whether to use Winograd's algorithm on a CPU, for float32 and shapes where it is faster; rounding errors are
        then some 3e-6 of the result's norm instead of 3e-7 (see `cnn_jax.models.ops.winograd`).
    """
    channels, features = kernel.shape[2:]
    if channels < LEAST_INPUTS:
        return _plain(images, kernel)
    tiles = all(side % winograd.TILE == 0 for side in images.shape[1:3]) and images.dtype == jnp.float32
    suits = fast and tiles and channels * features >= LEAST_CHANNELS
    return lax.platform_dependent(images, kernel, cpu=(winograd if suits else direct).convolve, default=_plain)


def _plain(images: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
