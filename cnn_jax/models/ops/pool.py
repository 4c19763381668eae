"""Max-pooling over 2x2 windows with an elementwise gradient.

The gradient of XLA's own max-pooling, `select_and_scatter`, searches each window again and cannot be fused with other
operations: on a CPU it takes a third of the ladder's train step. Here the forward pass stores the position of the
maximum, one byte per window, so that the gradient is elementwise and XLA fuses it with its neighbours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num, UInt8


def max_pool(images: Num[Array, "*batch height width channels"]) -> Num[Array, "*batch height2 width2 channels"]:
    """Returns the maxima of the 2x2 windows at stride 2; an odd last row or column is dropped ("VALID").

    Equals `flax.linen.max_pool(images, (2, 2), strides=(2, 2))`, also in its gradient: of equal values, the first in
    row order receives all of it. Unlike Flax's, it has derivatives of any order, in forward and reverse mode.
    """
    height, width = images.shape[-3] // 2, images.shape[-2] // 2
    return max_pool_2x2(images[..., : 2 * height, : 2 * width, :])


@jax.custom_jvp
@jax.jit  # the diagram of a network finds this name in the traced program
def max_pool_2x2(images: Num[Array, "*batch height width channels"]) -> Num[Array, "*batch height2 width2 channels"]:
    """Returns `max_pool` of images with even sides."""
    return _first_maximum(images)[0]


@max_pool_2x2.defjvp
def _max_pool_jvp(primals, tangents):
    """Returns the tangent of each window's maximum; its transpose is the gradient of `max_pool`."""
    maxima, place = _first_maximum(*primals)
    *batch, height, width, channels = place.shape
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    chosen = jnp.expand_dims(place, (-4, -2)) == jnp.broadcast_to(places, (*batch, height, 2, width, 2, channels))
    (tangent,) = tangents
    return maxima, jnp.where(chosen, tangent.reshape(chosen.shape), 0).sum((-4, -2), dtype=tangent.dtype)


def _first_maximum(
    images: Num[Array, "*batch height width channels"],
) -> tuple[Num[Array, "*batch height2 width2 channels"], UInt8[Array, "*batch height2 width2 channels"]]:
    """Returns the maximum of each window and its position: 0 and 1 in the first row, 2 and 3 in the second."""
    first, *others = (images[..., row::2, column::2, :] for row in (0, 1) for column in (0, 1))
    maxima, place = first, jnp.zeros(first.shape, jnp.uint8)
    for index, other in enumerate(others, 1):
        place = jnp.where(other > maxima, jnp.uint8(index), place)
        maxima = jnp.maximum(maxima, other)
    return maxima, jax.lax.platform_dependent(place, cpu=_keep, default=lambda place: place)


def _keep(place: UInt8[Array, "..."]) -> UInt8[Array, "..."]:
    """Returns its argument unchanged, by an operation that XLA does not recompute.

    XLA recomputes cheap values at each use: here, for the gradient of each pixel, the four values of its window from
    the output of the convolution, a sixth of a train step. It does not recompute an integer remainder by an unknown
    divisor, and 0 to 3 modulo 4 to 7 are unchanged. `lax.optimization_barrier` does not help: on a CPU it is removed
    before fusion.
    """
    # The divisor comes from the same pixel, because examples and rows may be on several devices.
    divisor = jax.lax.slice_in_dim(place, 0, 1, axis=-1) | jnp.uint8(4)
    return place % divisor
