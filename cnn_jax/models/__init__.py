"""The networks, by name."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

from cnn_jax.models.cnn import CNN
from cnn_jax.models.efficientnet_lite import EfficientNetLite0
from cnn_jax.models.inception_resnet_v2 import InceptionResNetV2
from cnn_jax.models.protocols import Backbone, Network
from cnn_jax.models.resnet import ResNet18
from cnn_jax.models.speednet import SpeedNet
from cnn_jax.models.transfer import Transfer

# To add a network: its class here; options are `cnn_jax.keys.field`s. To add a backbone: its class in BACKBONES, and a
# module of the same name in cnn_jax.models.pretrained, which reads its published weights.
BACKBONES: dict[str, type[Backbone]] = {
    "inception_resnet_v2": InceptionResNetV2,
    "efficientnet_lite0": EfficientNetLite0,
}
MODELS: dict[str, Callable[..., Network]] = {
    "cnn": CNN,
    "speednet": SpeedNet,
    "resnet18": ResNet18,
    **{name: functools.partial(Transfer, network=cast(Any, network)) for name, network in BACKBONES.items()},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_OF_TRAINING = ("trainable", "weights")  # keys of `config.model` that are not fields of a network


def build(config: Any, num_classes: int, dtype: str = "float32") -> Network:
    """Builds the network that `config.model` describes.

    Args:
      config: `name` (see `MODELS`) and the fields of that network, valid by `cnn_jax.config.validate`.
      num_classes: number of logits.
      dtype: type in which the layers compute, "float32" or "bfloat16"; parameters and statistics stay float32.
    """
    fields = {key: value for key, value in dict(config).items() if key not in _OF_TRAINING}
    network = MODELS[fields.pop("name")]
    # Tuples become lists in JSON; linen needs hashable fields.
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return network(num_classes=num_classes, dtype=DTYPES[dtype], **fields)


def normalisation(config: Any) -> dict[str, tuple[float, float, float]]:
    """Returns the channels' "mean" and "std", in units of [0, 1], that the network of `config.model` expects.

    Those of a backbone's training images; otherwise 0 and 1, for images in [0, 1].
    """
    backbone = BACKBONES.get(config.name)
    return (
        {"mean": backbone.mean, "std": backbone.std} if backbone else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
