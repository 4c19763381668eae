"""Random numbers as a pure function of (seed, stream name, step).

Nothing random is ever stored. A stream is found by its name, so that adding one changes no other, and a step by its
number, so that a run resumed at step t draws what the run that never stopped would have drawn.
"""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray


def root(seed: int) -> PRNGKeyArray:
    """Returns the key of a run. The generator is named, so that no global setting can change the numbers."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(key: PRNGKeyArray, name: str, step: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """Returns the key of the stream `name` at `step`.

    Args:
      key: a run's root key (see `root`).
      name: what the numbers are for: "init", "order", "augment", "dropout".
      step: the training step; the epoch for "order".
    """
    # CRC-32 rather than hash(): Python salts the latter anew in every process.
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)
