"""The ladder's network: blocks of 3x3 convolutions and max-pooling, then dense layers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.errors import UserError
from cnn_jax.keys import BOOLEAN, SHARE, field, number, one_of, tuple_of, whole
from cnn_jax.models.layers import BatchNorm, Conv
from cnn_jax.models.ops.pool import max_pool

# Random kernels by the name of `config.model.kernel_init`.
KERNELS = {
    "glorot": nn.initializers.glorot_uniform(),  # Glorot and Bengio 2010: Keras' default
    "he": nn.initializers.he_normal(),  # He et al. 2015, arXiv:1502.01852: for ReLUs
}


class CNN(nn.Module):
    """Blocks of [3x3 convolution, ReLU, BatchNorm] and 2x2 max-pooling, hidden dense layers, a linear head.

    The defaults are those of the Keras study that the ladder reproduces, and of Keras: Glorot-uniform kernels
    (Flax's default is LeCun-normal) and BatchNorm after the ReLU, with momentum 0.99 and epsilon 1e-3.

    Attributes:
      num_classes: number of logits.
      widths: channels of each block; each block halves the height and the width.
      convs_per_block: convolutions per block.
      hidden: units of each hidden dense layer.
      kernel_init: how random kernels are drawn, one of `KERNELS`.
      batch_norm: whether BatchNorm follows each ReLU.
      bn_momentum: share of the running statistics that a step keeps.
      bn_epsilon: added to the variance.
      dropout: rate after each block, then after each hidden layer; empty for none.
      winograd: whether to use Winograd's algorithm on a CPU, where it is faster; see `cnn_jax.models.ops.conv`.
      dtype: type in which the layers compute; parameters, statistics and logits are float32.
    """

    num_classes: int
    widths: tuple[int, ...] = field((32, 64, 128), tuple_of(whole(1)), "channels of each block")
    convs_per_block: int = field(2, whole(1), "convolutions in each block")
    hidden: tuple[int, ...] = field((128,), tuple_of(whole(1)), "units of each dense layer before the head")
    kernel_init: str = field("glorot", one_of(*KERNELS), "random kernels: Glorot uniform or He normal")
    batch_norm: bool = field(False, BOOLEAN, "BatchNorm after each ReLU")
    bn_momentum: float = field(0.99, SHARE, "share of BatchNorm's running statistics that a step keeps")
    bn_epsilon: float = field(1e-3, number(0), "added to the variance in BatchNorm")
    dropout: tuple[float, ...] = field((), tuple_of(SHARE), "rate after each block and hidden layer; () for none")
    winograd: bool = field(True, BOOLEAN, "faster 3x3 convolutions on a CPU, with ten times the rounding error")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32.

        With `train`, BatchNorm uses batch statistics (make the collection "batch_stats" mutable) and dropout draws
        from the stream "dropout". Where the collection "intermediates" is mutable, the output of each ReLU is sown into
        it, as "relu_LAYER".

        Raises:
          UserError: the images are too small for so many blocks, or `dropout` has the wrong length.
        """
        self._check(images)
        rates = iter(self.dropout or (0.0,) * (len(self.widths) + len(self.hidden)))
        x = images.astype(self.dtype)
        for block, width in enumerate(self.widths, 1):
            for conv in range(1, self.convs_per_block + 1):
                name = f"conv{block}_{conv}"
                layer = Conv(width, self.dtype, KERNELS[self.kernel_init], self.winograd, name=name)
                x = self._activate(layer(x), name, train)
            x = max_pool(x)
            x = nn.Dropout(next(rates))(x, deterministic=not train)
        x = x.reshape(x.shape[0], -1)
        for index, units in enumerate(self.hidden, 1):
            name = f"dense{index}"
            x = self._activate(self._dense(units, name)(x), name, train)
            x = nn.Dropout(next(rates))(x, deterministic=not train)
        return self._dense(self.num_classes, "head")(x).astype(jnp.float32)

    def _check(self, images):
        smallest = 2 ** len(self.widths)
        if min(images.shape[1:3]) < smallest:
            raise UserError(
                f"Images of {images.shape[1]}x{images.shape[2]} pixels are too small for {len(self.widths)} blocks: "
                f"set config.data.image_size to at least {smallest}, or fewer config.model.widths."
            )
        expected = len(self.widths) + len(self.hidden)
        if self.dropout and len(self.dropout) != expected:
            raise UserError(
                f"config.model.dropout has {len(self.dropout)} rates for {expected} layers: give one per block and "
                "one per hidden layer, or none."
            )

    def _dense(self, units: int, name: str) -> nn.Dense:
        return nn.Dense(units, dtype=self.dtype, kernel_init=KERNELS[self.kernel_init], name=name)

    def _activate(self, x: Array, layer: str, train: bool) -> Array:
        x = nn.relu(x)
        if not self.is_initializing():
            self.sow("intermediates", f"relu_{layer}", x)
        if self.batch_norm:
            x = BatchNorm(
                momentum=self.bn_momentum,
                epsilon=self.bn_epsilon,
                dtype=self.dtype,
                name=f"{layer}_bn",
            )(x, use_running_average=not train)
        return x
