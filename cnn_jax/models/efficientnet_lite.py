"""EfficientNet-Lite0 as a feature extractor: the mobile network without squeeze-and-excitation and with ReLU6."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.errors import UserError
from cnn_jax.models.layers import ConvBN

# (blocks, kernel size, stride of the first, expansion, channels), in order.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
SMALLEST = 32  # pixels: the product of the strides; below it the last layers see one pixel and padding


class EfficientNetLite0(nn.Module):
    """A stem, 16 inverted residual blocks, a 1x1 convolution to 1,280 channels, global average pooling.

    As in the original (Tan and Le, EfficientNet, ICML 2019; github.com/tensorflow/tpu,
    models/official/efficientnet/lite), padding is TensorFlow's "SAME" and BatchNorm has momentum 0.99 and epsilon 1e-3.
    The classifier and stochastic depth are omitted.

    Attributes:
      dtype: type in which the layers compute; parameters, statistics and features are float32.
      num_features: number of features per image.
      mean: subtracted from each channel of the images that it was trained on, in units of [0, 1].
      std: each channel was divided by it, in units of [0, 1].
    """

    dtype: Any = jnp.float32

    num_features: ClassVar[int] = 1280
    mean: ClassVar[tuple[float, float, float]] = (127 / 255, 127 / 255, 127 / 255)
    std: ClassVar[tuple[float, float, float]] = (128 / 255, 128 / 255, 128 / 255)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch 1280"]:
        """Returns the features of normalised images, (image01 - mean) / std.

        With `train`, BatchNorm uses batch statistics (make the collection "batch_stats" mutable).

        Raises:
          UserError: the images are too small.
        """
        if min(images.shape[1:3]) < SMALLEST:
            raise UserError(
                f"Images of {images.shape[1]}x{images.shape[2]} pixels are too small for EfficientNet-Lite0: set "
                f"config.data.image_size to at least {SMALLEST} (it was trained at 224)."
            )
        x = images.astype(self.dtype)
        x = _conv_bn(32, kernel_size=(3, 3), strides=2, activation=nn.relu6, name="stem", dtype=self.dtype)(
            x, train=train
        )
        number = 0
        for blocks, kernel, first_stride, expansion, channels in STAGES:
            for index in range(blocks):
                number += 1
                stride = 1 if index else first_stride
                block = InvertedResidual(channels, kernel, stride, expansion, name=f"block{number}", dtype=self.dtype)
                x = block(x, train=train)
        x = _conv_bn(self.num_features, activation=nn.relu6, name="top", dtype=self.dtype)(x, train=train)
        return x.astype(jnp.float32).mean((1, 2))


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise convolution and a linear 1x1 projection, added to the input where shapes agree.

    Attributes:
      channels: output channels.
      kernel: height and width of the depthwise convolution.
      stride: of the depthwise convolution.
      expansion: hidden channels per input channel; 1 omits the first convolution.
      dtype: type in which the layers compute.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Float[Array, "batch h w out"]:
        """Returns the block's output."""
        shortcut, wide = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            x = _conv_bn(wide, activation=nn.relu6, name="expand", dtype=self.dtype)(x, train=train)
        depthwise = _conv_bn(
            wide,
            depthwise=True,
            kernel_size=(self.kernel, self.kernel),
            strides=self.stride,
            activation=nn.relu6,
            name="depthwise",
            dtype=self.dtype,
        )
        x = depthwise(x, train=train)
        x = _conv_bn(self.channels, activation=None, name="project", dtype=self.dtype)(x, train=train)
        return x + shortcut if x.shape == shortcut.shape else x


def _conv_bn(features: int, *, depthwise: bool = False, **fields: Any) -> ConvBN:
    # Flax counts the fan-out of a depthwise kernel over all channels; its fan-in is that of one channel.
    fan = "fan_in" if depthwise else "fan_out"
    init = nn.initializers.variance_scaling(2.0, fan, "normal")
    return ConvBN(features, depthwise=depthwise, kernel_init=init, **fields)
