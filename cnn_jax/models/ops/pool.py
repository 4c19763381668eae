"""Max-pooling over 2x2 windows whose gradient is a mask rather than a search.

XLA differentiates its own max-pooling by `select_and_scatter`, which walks over every window again and which no other
operation can be fused with: on a CPU it costs a third of the ladder's train step. Here the forward pass remembers
which of the four was the maximum, in a byte a window, and the gradient goes there: elementwise work, which XLA fuses
with its neighbours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num, UInt8


def max_pool(images: Num[Array, "*batch height width channels"]) -> Num[Array, "*batch height2 width2 channels"]:
    """Returns the maxima of the 2x2 windows at stride 2; an odd last row or column is left out ("VALID").

    Equals `flax.linen.max_pool(images, (2, 2), strides=(2, 2))`, and so does its gradient: among equals the first, row
    by row, has all of it. Unlike there, a derivative of any order and in either direction exists.
    """
    height, width = images.shape[-3] // 2, images.shape[-2] // 2
    return max_pool_2x2(images[..., : 2 * height, : 2 * width, :])


@jax.custom_jvp
@jax.jit  # whose name stands in the traced program, where the drawing of the network finds it
def max_pool_2x2(images: Num[Array, "*batch height width channels"]) -> Num[Array, "*batch height2 width2 channels"]:
    """Is `max_pool`, for even sides."""
    return _first_maximum(images)[0]


@max_pool_2x2.defjvp
def _max_pool_jvp(primals, tangents):
    """The tangent of a window is that of its maximum; transposed, it is the gradient described above."""
    maxima, place = _first_maximum(*primals)
    *batch, height, width, channels = place.shape
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    chosen = jnp.expand_dims(place, (-4, -2)) == jnp.broadcast_to(places, (*batch, height, 2, width, 2, channels))
    (tangent,) = tangents
    return maxima, jnp.where(chosen, tangent.reshape(chosen.shape), 0).sum((-4, -2), dtype=tangent.dtype)


def _first_maximum(
    images: Num[Array, "*batch height width channels"],
) -> tuple[Num[Array, "*batch height2 width2 channels"], UInt8[Array, "*batch height2 width2 channels"]]:
    """Returns the maximum of every window and its place in it: 0 1 above 2 3."""
    first, *others = (images[..., row::2, column::2, :] for row in (0, 1) for column in (0, 1))
    maxima, place = first, jnp.zeros(first.shape, jnp.uint8)
    for index, other in enumerate(others, 1):
        place = jnp.where(other > maxima, jnp.uint8(index), place)
        maxima = jnp.maximum(maxima, other)
    return maxima, jax.lax.platform_dependent(place, cpu=_keep, default=lambda place: place)


def _keep(place: UInt8[Array, "..."]) -> UInt8[Array, "..."]:
    """Returns places unchanged, by an operation that XLA does not repeat.

    XLA computes cheap values again wherever they are used: here, for the gradient of every pixel, the four values of
    its window from the output of the convolution, a sixth of a train step. It does not repeat an integer remainder
    by an unknown number, and dividing 0 to 3 by 4 to 7 leaves them as remainders. `lax.optimization_barrier` does
    not help: on a CPU it is removed before operations are fused.
    """
    # From the same pixel, because examples and rows may be on several devices.
    divisor = jax.lax.slice_in_dim(place, 0, 1, axis=-1) | jnp.uint8(4)
    return place % divisor
