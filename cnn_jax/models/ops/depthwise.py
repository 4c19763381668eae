"""Depthwise convolution, for which XLA generates slow code on CPUs."""

import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def depthwise(
    lhs: Float[Array, "batch height width channels"],
    rhs: Float[Array, "rows columns 1 channels"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options,
) -> Float[Array, "batch h w channels"]:
    """Drop-in for a depthwise `lax.conv_general_dilated`, with a faster CPU implementation.

    On a CPU it is a sum of shifted products, one per kernel element, which XLA fuses into one loop. On 2 cores (jax
    0.10.2) a layer takes between a fifth and a fortieth of the time, and its gradient less than a tenth.

    Args:
      lhs: the images.
      rhs: the kernel.
      window_strides: vertical and horizontal.
      padding: "SAME", "VALID", or (low, high) pairs.
      **options: the other arguments that `nn.Conv` passes to `lax.conv_general_dilated`; without dilation.
    """
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    padding = tuple((low, high) for low, high in padding)

    def grouped(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **options)

    # Chosen at compile time, because an exported model is compiled for several platforms.
    return lax.platform_dependent(lhs, rhs, cpu=lambda x, w: _shifted(x, w, strides, padding), default=grouped)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(images: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    weights = kernel.astype(jnp.float32)
    rows, columns = kernel.shape[:2]
    shifts = iter(_shifts(_pad(images, padding), rows, columns, strides))
    total = jnp.float32(0)
    for row in range(rows):
        for column in range(columns):
            total += next(shifts) * weights[row : row + 1, column : column + 1]
    return total.astype(images.dtype)


def _forward(images: Array, kernel: Array, strides: tuple, padding: tuple) -> tuple[Array, tuple[Array, Array]]:
    return _shifted(images, kernel, strides, padding), (images, kernel)


def _backward(strides: tuple, padding: tuple, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Returns the gradients of both inputs; XLA takes ten times as long for those that JAX would derive."""
    images, kernel = saved
    gradient = gradient.astype(jnp.float32)
    # Of the images: the gradient, dilated by the strides, convolved with the flipped kernel.
    edges = []
    for axis, (low, _) in enumerate(padding):
        spread = (gradient.shape[axis + 1] - 1) * strides[axis] + 1
        before = kernel.shape[axis] - 1 - low
        edges.append((before, images.shape[axis + 1] + kernel.shape[axis] - 1 - before - spread))
    spread = _pad(gradient, edges, strides)
    of_images = _shifted(spread, kernel[::-1, ::-1].astype(jnp.float32), (1, 1), ((0, 0), (0, 0)))
    # Of the kernel: one sum per element, all in one pass; first over each image, which is faster in XLA.
    rows, columns = kernel.shape[:2]
    shifts = _shifts(_materialise(_pad(images, padding)), rows, columns, strides)
    zeros = [jnp.float32(0)] * len(shifts)
    products = [shift * gradient for shift in shifts]
    sums = lax.reduce(products, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], (1, 2))
    of_kernel = jnp.stack(_materialise(sums)).sum(1).reshape(kernel.shape)
    return cast(Array, of_images).astype(images.dtype), of_kernel.astype(kernel.dtype)


_shifted.defvjp(_forward, _backward)


def _pad(images: Array, edges: Sequence[tuple[int, int]], spread: tuple[int, int] = (1, 1)) -> Array:
    """Pads by `edges` (negative: crops), with `spread` - 1 zeros between neighbouring pixels; float32."""
    inner = [(*edge, step - 1) for edge, step in zip(edges, spread, strict=True)]
    return lax.pad(images.astype(jnp.float32), jnp.float32(0), [(0, 0, 0), *inner, (0, 0, 0)])


def _shifts(padded: Array, rows: int, columns: int, strides: tuple[int, int]) -> list[Array]:
    """Returns the pixels that each kernel element is multiplied with, row by row."""
    batch, height, width, channels = padded.shape
    down, right = strides
    last_row, last_column = (height - rows) // down * down, (width - columns) // right * right
    return [
        lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + last_row + 1, column + last_column + 1, channels),
            (1, down, right, 1),
        )
        for row in range(rows)
        for column in range(columns)
    ]


# Prevents XLA from recomputing the value at each use.
_materialise = lax.optimization_barrier
