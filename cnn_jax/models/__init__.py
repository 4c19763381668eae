"""The networks, by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.models.cnn import CNN

# To add one: its class here, its fields in cnn_jax.config.MODEL_RULES.
MODELS = {"cnn": CNN}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: Any, num_classes: int, dtype: str = "float32", axis_name: str | None = None) -> nn.Module:
    """Builds the network that `config.model` describes.

    Args:
      config: `name` (see `MODELS`) and the fields of that network, valid by `cnn_jax.config.validate`.
      num_classes: number of logits.
      dtype: what the layers compute in, "float32" or "bfloat16"; parameters and statistics stay float32.
      axis_name: the axis of `jax.pmap` or `shard_map` over which batch statistics are averaged.
    """
    fields = dict(config)
    network = MODELS[fields.pop("name")]
    # JSON has lists for tuples, and linen wants fields that can be hashed.
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return network(num_classes=num_classes, dtype=DTYPES[dtype], axis_name=axis_name, **fields)
