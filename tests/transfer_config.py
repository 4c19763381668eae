"""A run of seconds in two phases, on a backbone that is brought along: two blocks, 200 digits, 2 + 2 epochs.

python -m cnn_jax.main --config=tests/transfer_config.py --workdir=/tmp/small_transfer
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cnn_jax import models
from cnn_jax.configs import transfer_finetune


class Tiny(nn.Module):
    """Two blocks of convolution, BatchNorm and ReLU."""

    dtype: Any = jnp.float32

    num_features: ClassVar[int] = 8
    mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, float, float]] = (0.25, 0.25, 0.25)

    @nn.compact
    def __call__(self, images, *, train):
        x = images
        for block in ("block1", "block2"):
            x = nn.Conv(8, (3, 3), strides=2, use_bias=False, dtype=self.dtype, name=block)(x)
            norm = nn.BatchNorm(dtype=self.dtype, name=f"{block}_bn")
            x = nn.relu(norm(x, use_running_average=not train))
        return x.mean(axis=(1, 2)).astype(jnp.float32)


models.BACKBONES["tiny"] = Tiny
models.MODELS["tiny"] = functools.partial(models.Transfer, network=Tiny)


def get_config():
    config = transfer_finetune.get_config()
    config.model.update({"name": "tiny", "weights": "random", "hidden": (16,), "dropout": (0.1,)})
    config.data.update({"name": "digits", "train_examples": 200, "validation": 100, "image_size": 16})
    config.finetune.update({"epochs": 2, "trainable": "head|block2.*", "learning_rate": 1e-3})
    config.epochs = 2
    config.batch_size = 16
    config.eval_batch_size = 50
    config.steps_per_call = 5
    return config
