"""The networks, by name."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.models.cnn import CNN
from cnn_jax.models.efficientnet_lite import EfficientNetLite0
from cnn_jax.models.inception_resnet_v2 import InceptionResNetV2
from cnn_jax.models.speednet import SpeedNet
from cnn_jax.models.transfer import Transfer

# To add one: its class here, its fields in cnn_jax.config.MODEL_RULES. A backbone also has weights: models.pretrained.
BACKBONES = {"inception_resnet_v2": InceptionResNetV2, "efficientnet_lite0": EfficientNetLite0}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "speednet": SpeedNet,
    **{name: functools.partial(Transfer, network=network) for name, network in BACKBONES.items()},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_OF_TRAINING = ("trainable", "weights")  # keys of `config.model` that are no fields of a network


def build(config: Any, num_classes: int, dtype: str = "float32") -> nn.Module:
    """Builds the network that `config.model` describes.

    Args:
      config: `name` (see `MODELS`) and the fields of that network, valid by `cnn_jax.config.validate`.
      num_classes: number of logits.
      dtype: what the layers compute in, "float32" or "bfloat16"; parameters and statistics stay float32.
    """
    fields = {key: value for key, value in dict(config).items() if key not in _OF_TRAINING}
    network = MODELS[fields.pop("name")]
    # JSON has lists for tuples, and linen wants fields that can be hashed.
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return network(num_classes=num_classes, dtype=DTYPES[dtype], **fields)


def normalisation(config: Any) -> dict[str, tuple[float, float, float]]:
    """Returns the "mean" and the "std", in units of [0, 1], that the network of `config.model` was made for."""
    backbone = BACKBONES.get(config.name)
    return {"mean": backbone.mean, "std": backbone.std} if backbone else {"mean": (0.0,) * 3, "std": (1.0,) * 3}
