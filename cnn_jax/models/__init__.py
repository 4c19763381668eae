"""The networks, by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.models.cnn import CNN

MODELS = {"cnn": CNN}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: Any, num_classes: int, dtype: str = "float32", axis_name: str | None = None) -> nn.Module:
    """Builds the network that `config.model` describes.

    Args:
      config: `name` (see `MODELS`) and the fields of that network.
      num_classes: number of logits.
      dtype: what the layers compute in, "float32" or "bfloat16"; parameters and statistics stay float32.
      axis_name: the axis of `jax.pmap` or `shard_map` over which batch statistics are averaged.

    Raises:
      UserError: no such network, or a field it does not have.
    """
    fields = dict(config)
    name = fields.pop("name")
    if name not in MODELS:
        raise UserError(f"config.model.name is {name!r}; the networks are: {', '.join(MODELS)}.")
    network = MODELS[name]
    unknown = [field for field in fields if field not in network.__dataclass_fields__]
    if unknown:
        raise UserError(f"config.model.{unknown[0]} is not a field of the network {name!r}.")
    return network(num_classes=num_classes, dtype=DTYPES[dtype], axis_name=axis_name, **fields)
