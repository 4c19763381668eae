"""Inception-ResNet-v2 without its classifier: residual blocks of parallel convolutions of several sizes.

Szegedy, Ioffe, Vanhoucke, Alemi: "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
2016, https://arxiv.org/abs/1602.07261, in the form of Keras' published weights.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.errors import UserError
from cnn_jax.models.layers import ConvBN

SMALLEST = 75  # pixels: the last reduction needs 3x3


class Conv(NamedTuple):
    """A convolution, followed by BatchNorm and ReLU: the first fields of `cnn_jax.models.layers.ConvBN`.

    Attributes:
      features: output channels.
      kernel: height and width.
      stride: in both directions.
      padding: "SAME" or "VALID".
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def max_pool(x: Array) -> Array:
    """Halves the height and the width."""
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def average_pool(x: Array) -> Array:
    """Averages over 3x3 pixels; at the border, over the pixels inside the image."""
    with jax.numpy_dtype_promotion("standard"):  # flax divides by a number of pixels in float32
        return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halving(features: int) -> Conv:
    return Conv(features, (3, 3), stride=2, padding="VALID")


Chain = tuple[Conv | Callable[[Array], Array], ...]


class BlockSpec(NamedTuple):
    """A block: parallel chains of layers whose outputs are concatenated.

    Attributes:
      chains: its branches.
      scale: factor of the residual branch, which is projected to the input's channels; None for no residual connection.
      relu: whether a ReLU follows the sum.
    """

    chains: tuple[Chain, ...]
    scale: float | None = None
    relu: bool = True


STEM: Chain = (
    _halving(32),
    Conv(32, (3, 3), padding="VALID"),
    Conv(64, (3, 3)),
    max_pool,
    Conv(80),
    Conv(192, (3, 3), padding="VALID"),
    max_pool,
)
_MIXED_5B = (
    (Conv(96),),
    (Conv(48), Conv(64, (5, 5))),
    (Conv(64), Conv(96, (3, 3)), Conv(96, (3, 3))),
    (average_pool, Conv(64)),
)
_BLOCK35 = ((Conv(32),), (Conv(32), Conv(32, (3, 3))), (Conv(32), Conv(48, (3, 3)), Conv(64, (3, 3))))
_MIXED_6A = ((_halving(384),), (Conv(256), Conv(256, (3, 3)), _halving(384)), (max_pool,))
_BLOCK17 = ((Conv(192),), (Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))))
_MIXED_7A = (
    (Conv(256), _halving(384)),
    (Conv(256), _halving(288)),
    (Conv(256), Conv(288, (3, 3)), _halving(320)),
    (max_pool,),
)
_BLOCK8 = ((Conv(192),), (Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))
BLOCKS: dict[str, BlockSpec] = {
    "mixed_5b": BlockSpec(_MIXED_5B),
    **{f"block35_{index}": BlockSpec(_BLOCK35, 0.17) for index in range(1, 11)},
    "mixed_6a": BlockSpec(_MIXED_6A),
    **{f"block17_{index}": BlockSpec(_BLOCK17, 0.1) for index in range(1, 21)},
    "mixed_7a": BlockSpec(_MIXED_7A),
    **{f"block8_{index}": BlockSpec(_BLOCK8, 0.2) for index in range(1, 10)},
    "block8_10": BlockSpec(_BLOCK8, 1.0, relu=False),
}


def conv_names(chains: tuple[Chain, ...]) -> list[list[str]]:
    """Returns the names of each branch's convolutions: branch0; branch1_1, branch1_2; and so on."""
    counts = [sum(isinstance(layer, Conv) for layer in chain) for chain in chains]
    return [
        [f"branch{index}_{place}" for place in range(1, count + 1)] if count > 1 else [f"branch{index}"] * count
        for index, count in enumerate(counts)
    ]


class Block(nn.Module):
    """The block that a `BlockSpec` describes; `dtype` as in `InceptionResNetV2`."""

    spec: BlockSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 c2"]:
        """Returns the concatenated branches, or `x` plus a multiple of their projection."""
        chains, scale, relu = self.spec
        names = conv_names(chains)
        branches = [_run(self, chain, names, x, train) for chain, names in zip(chains, names)]
        mixed = jnp.concatenate(branches, axis=-1)
        if scale is None:
            return mixed
        project = nn.Conv(
            x.shape[-1], (1, 1), dtype=self.dtype, kernel_init=nn.initializers.glorot_uniform(), name="project"
        )
        x = x + scale * project(mixed)
        return nn.relu(x) if relu else x


class InceptionResNetV2(nn.Module):
    """Inception-ResNet-v2 as a feature extractor: 54,336,736 parameters, including the statistics of its BatchNorms.

    Attributes:
      num_features: number of features per image.
      mean: subtracted from each channel of the images that it was trained on, in units of [0, 1].
      std: each channel was divided by it, in units of [0, 1].
      dtype: type in which the layers compute; parameters, statistics and features are float32.
    """

    num_features: ClassVar[int] = 1536
    mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch features"]:
        """Returns the last activations, averaged over the image, float32.

        With `train`, BatchNorm uses batch statistics (make the collection "batch_stats" mutable).

        Raises:
          UserError: the images are too small.
        """
        height, width = images.shape[1:3]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"Images of {height}x{width} pixels are too small for InceptionResNetV2: set config.data.image_size "
                f"to at least {SMALLEST}."
            )
        stem = [f"stem_{place}" for place in range(1, 6)]
        x = _run(self, STEM, stem, images.astype(self.dtype), train)
        for name, spec in BLOCKS.items():
            x = Block(spec, self.dtype, name=name)(x, train=train)
        x = _conv_bn(Conv(self.num_features), self.dtype, "conv_7b")(x, train=train)
        return x.astype(jnp.float32).mean(axis=(1, 2))


def _run(parent: Block | InceptionResNetV2, chain: Chain, names: list[str], x: Array, train: bool) -> Array:
    """Applies the layers of a chain in order, as submodules of `parent`, whose `__call__` calls it."""
    left = iter(names)
    for layer in chain:
        x = _conv_bn(layer, parent.dtype, next(left))(x, train=train) if isinstance(layer, Conv) else layer(x)
    return x


def _conv_bn(conv: Conv, dtype: Any, name: str) -> ConvBN:
    return ConvBN(*conv, kernel_init=nn.initializers.glorot_uniform(), use_scale=False, dtype=dtype, name=name)
