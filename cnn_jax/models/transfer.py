"""Transfer learning: a pretrained backbone and a new head on its features."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.errors import UserError
from cnn_jax.keys import SHARE, TEXT, Key, field, tuple_of, whole


class Head(nn.Module):
    """Dense layers with ReLU and dropout, then a linear layer.

    Attributes:
      num_classes: number of logits.
      hidden: units of each hidden layer.
      dropout: rate after each hidden layer; empty for none.
      dtype: type in which the layers compute; parameters are float32.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "batch features"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32; with `train`, dropout draws from the stream "dropout"."""
        if self.dropout and len(self.dropout) != len(self.hidden):
            raise UserError(
                f"config.model.dropout has {len(self.dropout)} rates for {len(self.hidden)} hidden layers: give one "
                "per layer, or none."
            )
        x = features.astype(self.dtype)
        for index, (units, rate) in enumerate(zip(self.hidden, self.dropout or (0.0,) * len(self.hidden)), 1):
            x = nn.relu(self._dense(units, f"dense{index}")(x))
            x = nn.Dropout(rate)(x, deterministic=not train)
        return self._dense(self.num_classes, "logits")(x).astype(jnp.float32)

    def _dense(self, units: int, name: str) -> nn.Dense:
        return nn.Dense(units, dtype=self.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


class Transfer(nn.Module):
    """A pretrained backbone and a head: `head(backbone(images))`, whose variables are under these two names.

    Attributes:
      num_classes: number of logits.
      network: class of the backbone (see `cnn_jax.models.protocols.Backbone`).
      hidden: see `Head`; the defaults are those of the Keras study that the ladder reproduces.
      dropout: see `Head`.
      dtype: type in which the layers compute; parameters, statistics, features and logits are float32.
      backbone_name: name of the backbone's module.
    """

    num_classes: int
    network: type[nn.Module]
    weights: ClassVar[Key] = Key("imagenet", TEXT, "weights of the backbone: imagenet, the path of a file, or random")
    hidden: tuple[int, ...] = field((1024, 512), tuple_of(whole(1)), "units of each dense layer before the logits")
    dropout: tuple[float, ...] = field((0.2, 0.3), tuple_of(SHARE), "rate after each hidden layer; () for none")
    dtype: Any = jnp.float32

    backbone_name: ClassVar[str] = "backbone"

    def setup(self):
        """Makes the two parts."""
        self.backbone = self.network(dtype=self.dtype)
        self.head = Head(self.num_classes, self.hidden, self.dropout, self.dtype)

    def __call__(self, images: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32, of images normalised by the backbone's mean and standard deviation.

        With `train`, dropout draws from the stream "dropout" and BatchNorms of the backbone use the statistics of the
        batch (make the collection "batch_stats" mutable).
        """
        return self.classify(self.backbone(images, train=train), train=train)

    def features(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        """Returns the backbone's features in inference mode, float32."""
        return self.backbone(images, train=False)

    def classify(self, features: Float[Array, "batch features"], *, train: bool) -> Float[Array, "batch classes"]:
        """Returns logits, float32, from the backbone's features."""
        return self.head(features, train=train)
