"""A network designed for short training times: whitened patches, wide blocks, a small head.

The architecture is that of airbench (Jordan 2024, arXiv:2404.00498), which builds on Page 2019 ("How to train your
ResNet") and tysam-code/hlb-CIFAR10.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from cnn_jax.errors import UserError
from cnn_jax.keys import BOOLEAN, SHARE, field, number, one_of, tuple_of, whole
from cnn_jax.models.layers import BatchNorm
from cnn_jax.models.ops.pool import max_pool

ACTIVATIONS = {"gelu": nn.gelu, "silu": nn.silu, "relu": nn.relu}


class SpeedNet(nn.Module):
    """A whitening convolution, blocks of two 3x3 convolutions, a maximum over the image, a linear head.

    Each block is [convolution, 2x2 max-pooling, BatchNorm, activation, convolution, BatchNorm, activation]. Pooling
    before the first activation makes the rest of the block four times cheaper. Convolutions have no bias, because the
    BatchNorm after them would remove it; BatchNorms have no scale, because the next convolution can learn it.

    Attributes:
      num_classes: number of logits.
      widths: channels of each block; each block halves the height and the width.
      whiten_size: side in pixels of the whitened patches.
      whiten_epsilon: added to the variances of the patches (see `whitening_kernel`).
      activation: "gelu" (tanh form), "silu" or "relu".
      bn_momentum: share of the running statistics that a step keeps; low, because runs are short.
      bn_epsilon: added to the variance.
      dirac: whether convolutions are initialised as the identity on their first channels (see `dirac`).
      logit_scale: multiplies the logits; small, so that training starts with nearly equal probabilities.
      dtype: type in which the layers compute; parameters, statistics and logits are float32.
    """

    num_classes: int
    # Wide where the image is small: most accuracy for the time (airbench).
    widths: tuple[int, ...] = field((64, 256, 256), tuple_of(whole(1)), "channels of each block")
    # The first layer need not be learned (Page 2019; airbench).
    whiten_size: int = field(2, whole(1), "side in pixels of the patches that the first layer whitens")
    whiten_epsilon: float = field(5e-4, number(0), "added to the variances of the whitened patches")
    # A smooth activation learns more than ReLU in few steps (hlb-CIFAR10).
    activation: str = field("gelu", one_of(*ACTIVATIONS), "activation function; gelu in its tanh form")
    # Statistics of the last few steps: a run has two hundred (airbench).
    bn_momentum: float = field(0.6, SHARE, "share of BatchNorm's running statistics that a step keeps")
    bn_epsilon: float = field(1e-5, number(0), "added to the variance in BatchNorm")
    # Blocks start by passing on their input (airbench, section on identity initialisation).
    dirac: bool = field(True, BOOLEAN, "initialise convolutions as the identity")
    # Together with a factor of the head's learning rate, a head that starts unsure (airbench).
    logit_scale: float = field(0.0625, number(1e-6), "factor of the logits")
    dtype: Any = jnp.float32
    init_images: ClassVar[int] = 1000  # for `init_from_images`: a million patches, for twelve directions

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32. With `train`, BatchNorm uses batch statistics ("batch_stats" must be mutable).

        Raises:
          UserError: the images are too small for so many blocks.
        """
        self._check(images)
        activate = ACTIVATIONS[self.activation]
        size = self.whiten_size
        channels = 2 * size * size * images.shape[-1]  # each direction and its negative
        x = images.astype(self.dtype)
        x = activate(nn.Conv(channels, (size, size), padding="VALID", dtype=self.dtype, name="whiten")(x))
        for block, width in enumerate(self.widths, 1):
            x = self._conv(width, f"block{block}_conv1")(x)
            x = max_pool(x)
            x = activate(self._norm(f"block{block}_bn1")(x, use_running_average=not train))
            x = self._conv(width, f"block{block}_conv2")(x)
            x = activate(self._norm(f"block{block}_bn2")(x, use_running_average=not train))
        x = x.max(axis=(1, 2))
        logits = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32) * self.logit_scale

    def init_from_images(self, params: PyTree, images: Float[Array, "n height width 3"]) -> PyTree:
        """Returns `params` with the whitening kernel computed from preprocessed training images.

        Where parameters have a leading seed axis, all seeds get the same kernel, because they share the data.
        """
        kernel = whitening_kernel(images, self.whiten_size, self.whiten_epsilon)
        shape = params["whiten"]["kernel"].shape
        return params | {"whiten": params["whiten"] | {"kernel": jnp.broadcast_to(kernel, shape)}}

    def _conv(self, width: int, name: str) -> nn.Conv:
        # U(+-1/sqrt(fan_in)): PyTorch's default, for which the recipe's learning rates were tuned.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Conv(
            width,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=functools.partial(dirac, others=init) if self.dirac else init,
            name=name,
        )

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            use_scale=False,
            dtype=self.dtype,
            name=name,
        )

    def _check(self, images):
        smallest = 2 ** len(self.widths) + self.whiten_size - 1
        if min(images.shape[1:3]) < smallest:
            raise UserError(
                f"Images of {images.shape[1]}x{images.shape[2]} pixels are too small for {len(self.widths)} blocks: "
                f"set config.data.image_size and config.augment.sides to at least {smallest}, or fewer "
                "config.model.widths."
            )


def dirac(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, others: Any = None) -> Array:
    """Initialises a kernel `[rows, columns, in, out]` as the identity on its first channels, as in airbench.

    The first min(in, out) output channels equal the input channels; the kernels of the others are drawn by `others`.
    """
    rows, columns, inputs, outputs = shape
    same = jnp.arange(outputs) < inputs
    identity = jnp.zeros(shape, dtype).at[rows // 2, columns // 2].set(jnp.eye(inputs, outputs, dtype=dtype))
    return jnp.where(same, identity, others(key, shape, dtype))


def whitening_kernel(
    images: Float[Array, "n height width 3"], size: int, epsilon: float
) -> Float[Array, "size size 3 out"]:
    """Returns the kernel of a convolution whose outputs are uncorrelated and have variance 1.

    Let C = V diag(d) V^T be the second moments of all patches of `size` x `size` pixels. The kernels of the first
    outputs are v_i / sqrt(d_i + epsilon). Their negatives follow, so that no information is lost when an activation
    removes negative values. Neighbouring pixels of photographs are strongly correlated, which makes training the first
    layer badly conditioned without whitening. Sources: Page 2019 and hlb-CIFAR10; airbench for the negatives.

    Args:
      images: preprocessed, with a mean near zero: the mean of the patches is not subtracted.
      size: side of a patch in pixels.
      epsilon: limits the amplification of directions with little variance.
    """
    exact = lax.Precision.HIGHEST  # a GPU's default, TF32, has too few bits for the smallest variances
    patches = lax.conv_general_dilated_patches(
        images, (size, size), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=exact
    )
    patches = patches.reshape(-1, patches.shape[-1])  # ordered by channel, then by pixel
    covariance = jnp.matmul(patches.T, patches, precision=exact) / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    columns = directions / jnp.sqrt(variances + epsilon)[None]
    kernel = columns.reshape(images.shape[-1], size, size, -1).transpose(1, 2, 0, 3)
    return jnp.concatenate([kernel, -kernel], axis=-1)
