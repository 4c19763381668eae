"""XLA's 3x3 convolution with a faster gradient of the kernel.

That gradient is a convolution of the images with the gradient of the outputs, in which channels take the place of the
batch; one operand must be transposed so that the examples come last. XLA transposes the images. Where these are the
output of a BatchNorm, it recomputes that for each element, in an order that misses the caches: with 32 channels of
32x32 pixels, 128 images and one core, 28 ms, as long as the convolution itself. Transposing the gradient of the
outputs, which is already in memory, takes 8 ms (jax 0.10.2).
"""

import jax
from jax import lax
from jaxtyping import Array, Float

_NUMBERS = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def convolve(
    images: Float[Array, "batch height width channels"], kernel: Float[Array, "3 3 channels features"]
) -> Float[Array, "batch height width features"]:
    """Returns the convolution at stride 1, zero-padded to the same size."""
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_NUMBERS)


def _forward(images, kernel):
    return convolve(images, kernel), (images, kernel)


def _backward(residuals, gradient):
    images, kernel = residuals
    of_images = convolve(gradient, kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    turned = lax.conv_general_dilated(
        gradient, images, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("CHWN", "IHWO", "CHWN")
    )  # [channels, 3, 3, features], with both sides of the window reversed
    return of_images, turned[:, ::-1, ::-1].transpose(1, 2, 0, 3)


convolve.defvjp(_forward, _backward)
