"""A network that was trained on other images, and a new head on its features."""

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
      dtype: what the layers compute in; parameters are float32.
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
                "for each, or none at all."
            )
        x = features.astype(self.dtype)
        for index, (units, rate) in enumerate(zip(self.hidden, self.dropout or (0.0,) * len(self.hidden)), 1):
            x = nn.relu(self._dense(units, f"dense{index}")(x))
            x = nn.Dropout(rate)(x, deterministic=not train)
        return self._dense(self.num_classes, "logits")(x).astype(jnp.float32)

    def _dense(self, units: int, name: str) -> nn.Dense:
        return nn.Dense(units, dtype=self.dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


class Transfer(nn.Module):
    """A backbone and a head: `head(backbone(images))`. Their parameters are under these two names.

    Attributes:
      num_classes: number of logits.
      network: the class of the backbone.
      hidden: see `Head`; the defaults are those of the Keras study that the ladder rebuilds.
      dropout: see `Head`.
      dtype: what the layers compute in; parameters, statistics, features and logits are float32.
      axis_name: mapped axis over which batch statistics are averaged, under `jax.pmap`.
    """

    num_classes: int
    network: type[nn.Module]
    weights: ClassVar[Key] = Key("imagenet", TEXT, "weights of the backbone: imagenet, the path of a file, or random")
    hidden: tuple[int, ...] = field((1024, 512), tuple_of(whole(1)), "units of each dense layer before the logits")
    dropout: tuple[float, ...] = field((0.2, 0.3), tuple_of(SHARE), "rate after each hidden layer; () for none")
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def setup(self):
        """Makes the two parts."""
        self.backbone = self.network(dtype=self.dtype, axis_name=self.axis_name)
        self.head = Head(self.num_classes, self.hidden, self.dropout, self.dtype)

    def __call__(
        self, inputs: Float[Array, "batch height width 3"] | Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns logits, float32.

        Args:
          inputs: images as the backbone was trained to see them, or what `features` made of them.
          train: see `Head` and the backbone.
        """
        features = inputs if inputs.ndim == 2 else self.backbone(inputs, train=train)
        return self.head(features, train=train)

    def features(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        """Returns what the head sees of images, float32, when nothing is trained."""
        return self.backbone(images, train=False)
