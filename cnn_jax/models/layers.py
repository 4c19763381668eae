"""Flax's layers, with operations that are also fast on a CPU; parameters and statistics are Flax's."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.models.ops.batch_norm import batch_norm, normalise
from cnn_jax.models.ops.conv import convolve_3x3
from cnn_jax.models.ops.depthwise import depthwise
from cnn_jax.models.ops.sums import add_bias

_batch_axis: ContextVar[str | None] = ContextVar("batch_axis", default=None)


@contextlib.contextmanager
def batch_axis(name: str | None) -> Iterator[None]:
    """Makes every `BatchNorm` called in the `with` block average its batch statistics over a mapped axis.

    The axis is read while the network is traced: `with batch_axis("batch"): model.apply(...)` within a function that
    is mapped by `jax.pmap(..., axis_name="batch")`. Under `jax.jit` over a mesh it is not needed.

    Args:
      name: of the axis over which the batch is split; None for none.
    """
    token = _batch_axis.set(name)
    try:
        yield
    finally:
        _batch_axis.reset(token)


class Conv(nn.Module):
    """A 3x3 convolution at stride 1, zero-padded to the same size, with a bias: `nn.Conv(features, (3, 3))`.

    Attributes:
      features: output channels.
      dtype: type in which it computes; parameters are float32.
      kernel_init: draws the kernel, `[3, 3, channels, features]`.
      winograd: whether to use Winograd's algorithm on a CPU, where it is faster; see `cnn_jax.models.ops.conv`.
    """

    kernel_size: ClassVar[tuple[int, int]] = (3, 3)
    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    winograd: bool = True

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the convolution, in `dtype`."""
        kernel = self.param(
            "kernel", self.kernel_init, (*self.kernel_size, images.shape[-1], self.features), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        images, kernel, bias = (jnp.asarray(value, self.dtype) for value in (images, kernel, bias))
        return add_bias(convolve_3x3(images, kernel, self.winograd), bias)


class ConvBN(nn.Module):
    """A convolution without bias, BatchNorm, and an activation.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      strides: in both directions.
      padding: "SAME", "VALID", or how many zeros to add on each side.
      depthwise: whether each channel is convolved by itself; `features` is then the number of input channels.
      activation: applied last; None for none.
      kernel_init: draws the kernel.
      use_scale: whether the BatchNorm has a scale.
      momentum: share of the running statistics that a step keeps.
      epsilon: added to the variance.
      dtype: type in which it computes; parameters and statistics are float32.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str | int = "SAME"
    depthwise: bool = False
    activation: Callable[[Array], Array] | None = nn.relu
    kernel_init: Any = nn.initializers.lecun_normal()
    use_scale: bool = True
    momentum: float = 0.99
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], *, train: bool) -> Array:
        """Returns the activations `[batch, h, w, features]`, in `dtype`; `train` as in `protocols.Network`."""
        x = nn.Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            feature_group_count=self.features if self.depthwise else 1,
            conv_general_dilated=depthwise if self.depthwise else None,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        norm = BatchNorm(
            momentum=self.momentum, epsilon=self.epsilon, use_scale=self.use_scale, dtype=self.dtype, name="bn"
        )
        x = norm(x, use_running_average=not train)
        return self.activation(x) if self.activation else x


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the last axis, with sums that are fast on a CPU (see `cnn_jax.models.ops.batch_norm`).

    Batch statistics are averaged over the field `axis_name`, or else over the axis of `batch_axis`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "*axes channels"], use_running_average: bool | None = None) -> Array:
        """Returns `x` normalised by the running statistics, or by batch statistics, which also update the former."""
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        scale = self.param("scale", self.scale_init, (channels,)) if self.use_scale else jnp.ones(channels)
        bias = self.param("bias", self.bias_init, (channels,)) if self.use_bias else jnp.zeros(channels)
        x, scale, bias = map(jnp.asarray, (x, scale, bias))  # weights may be NumPy arrays
        if use_running_average or self.is_initializing():
            y = normalise(x, scale, bias, jnp.asarray(mean.value), jnp.asarray(variance.value), self.epsilon)
        else:
            axis = self.axis_name or _batch_axis.get()
            y, batch_mean, batch_variance = batch_norm(x, scale, bias, self.epsilon, axis)
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1 - self.momentum) * batch_variance
        return y.astype(self.dtype or x.dtype)
