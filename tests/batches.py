"""Random batches of images."""

import jax.numpy as jnp
import numpy as np


def make_batch(size=8, side=16, seed=0):
    generator = np.random.RandomState(seed)
    images = generator.randint(0, 256, (size, side, side, 3)).astype(np.uint8)
    labels = generator.randint(0, 10, size).astype(np.int32)
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels), "mask": jnp.ones(size, bool)}
