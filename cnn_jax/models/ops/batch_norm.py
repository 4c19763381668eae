"""Batch normalisation by batch statistics, with sums that are fast on a CPU.

The forward and the backward pass need two sums per channel each (Ioffe and Szegedy 2015, arXiv:1502.03167). Automatic
differentiation adds a third, and all are slow reductions on XLA:CPU (see `cnn_jax.models.ops.sums`).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnn_jax.models.ops.sums import channel_sum

Channels = Float[Array, " channels"]
Values = Float[Array, "*axes channels"]


def batch_norm(
    x: Values, scale: Channels, bias: Channels, epsilon: float, axis_name: str | None = None
) -> tuple[Values, Channels, Channels]:
    """Normalises each channel to mean 0 and variance 1 over the batch, then scales and shifts it.

    Args:
      x: the values to normalise.
      scale: multiplies the normalised values.
      bias: added to the scaled values.
      epsilon: added to the variance.
      axis_name: the mapped axis over which the batch is split (`jax.pmap`); None for none.

    Returns:
      The normalised values, in float32 or higher precision, and the mean and the (biased) variance of each channel. On
      a CPU only reverse-mode derivatives exist.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    plain, fast = (functools.partial(f, epsilon=epsilon, axis_name=axis_name) for f in (_plain, _fast))
    return lax.platform_dependent(x, scale, bias, cpu=fast, default=plain)


def _plain(x, scale, bias, epsilon, axis_name):
    axes = tuple(range(x.ndim - 1))
    return _by_moments(x, scale, bias, epsilon, _over_devices((x.mean(axes), (x * x).mean(axes)), axis_name))


def _over_devices(means, axis_name):
    return means if axis_name is None else lax.pmean(means, axis_name)


def _by_moments(x, scale, bias, epsilon, moments):
    mean, square = moments
    variance = jnp.maximum(square - mean * mean, 0)
    return normalise(x, scale, bias, mean, variance, epsilon), mean, variance


def normalise(x: Values, scale: Channels, bias: Channels, mean: Channels, variance: Channels, epsilon: float) -> Values:
    """Returns `(x - mean) / sqrt(variance + epsilon) * scale + bias`, at least float32; see `batch_norm`."""
    spread = functools.partial(jnp.expand_dims, axis=tuple(range(x.ndim - 1)))
    return (x - spread(mean)) * spread(lax.rsqrt(variance + epsilon) * scale) + spread(bias)


def _fast(x, scale, bias, epsilon, axis_name):
    return _batch_norm(x, scale, bias, epsilon, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x, scale, bias, epsilon, axis_name):
    count = x.size // x.shape[-1]
    moments = _over_devices((channel_sum(x) / count, channel_sum(x * x) / count), axis_name)
    return _by_moments(x, scale, bias, epsilon, moments)


def _forward(x, scale, bias, epsilon, axis_name):
    y, mean, variance = _batch_norm(x, scale, bias, epsilon, axis_name)  # pyright: ignore[reportGeneralTypeIssues]
    return (y, mean, variance), (x, scale, mean, variance)


def _backward(epsilon, axis_name, saved, gradients):
    x, scale, mean, variance = saved
    of_y, of_mean, of_variance = gradients
    count = x.size // x.shape[-1]
    spread = functools.partial(jnp.expand_dims, axis=tuple(range(x.ndim - 1)))
    centred = x - spread(mean)
    inverse = lax.rsqrt(variance + epsilon)
    of_bias, product = channel_sum(of_y), channel_sum(of_y * centred)
    # The gradient through y and through the mean and the variance of each channel.
    constant = (of_mean - inverse * scale * of_bias) / count
    slope = (2 * of_variance - inverse**3 * scale * product) / count
    constant, slope = _over_devices((constant, slope), axis_name)
    of_x = of_y * spread(inverse * scale) + spread(constant) + centred * spread(slope)
    return of_x, product * inverse, of_bias


_batch_norm.defvjp(_forward, _backward)
