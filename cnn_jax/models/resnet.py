"""ResNet for small images: residual blocks of 3x3 convolutions on a stem that keeps the resolution.

Residual blocks: He et al. 2016, arXiv:1512.03385. The CIFAR form of the 18-layer network, with a 3x3 stem at stride 1
and no max-pooling before the blocks, is that of github.com/kuangliu/pytorch-cifar; the networks that He et al. train on
CIFAR-10 are narrower.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.keys import SHARE, field, number, whole
from cnn_jax.models.layers import ConvBN


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input, then ReLU.

    Where the shape changes, a 1x1 convolution with BatchNorm projects the input to the new one.

    Attributes:
      features: output channels.
      strides: of the first convolution and of the projection.
      conv_bn: makes the layers; a partial of `cnn_jax.models.layers.ConvBN`.
    """

    features: int
    strides: int
    conv_bn: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width in"], *, train: bool) -> Float[Array, "batch h w out"]:
        """Returns the block's output."""
        y = self.conv_bn(self.features, (3, 3), self.strides, padding=1, name="conv1")(x, train=train)
        y = self.conv_bn(self.features, (3, 3), padding=1, activation=None, name="conv2")(y, train=train)
        if x.shape != y.shape:
            x = self.conv_bn(self.features, strides=self.strides, activation=None, name="project")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of basic blocks, global average pooling, a linear head.

    Each stage has twice the channels of the one before; its first block halves the height and the width, except in the
    first stage. Kernels are initialised as in He et al. 2015 (arXiv:1502.01852), by their fan-out.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage.
      width: channels of the first stage.
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      dtype: type in which the layers compute; parameters, statistics and logits are float32.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    width: int = field(64, whole(1), "channels of the first stage")
    bn_momentum: float = field(0.9, SHARE, "share of BatchNorm's running statistics that a step keeps")
    bn_epsilon: float = field(1e-5, number(0), "added to the variance in BatchNorm")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32. With `train`, BatchNorm uses batch statistics ("batch_stats" must be mutable)."""
        conv_bn = functools.partial(
            ConvBN,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            dtype=self.dtype,
        )
        x = conv_bn(self.width, (3, 3), padding=1, name="stem")(images.astype(self.dtype), train=train)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = BasicBlock(self.width * 2**stage, strides, conv_bn, name=name)(x, train=train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
