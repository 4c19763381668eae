"""A network that was trained on other images, and a new head on its features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cnn_jax.errors import UserError


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
    """

    num_classes: int
    network: type[nn.Module]
    hidden: tuple[int, ...] = (1024, 512)
    dropout: tuple[float, ...] = (0.2, 0.3)
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the two parts."""
        self.backbone = self.network(dtype=self.dtype)
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
