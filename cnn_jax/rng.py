"""Random numbers as a pure function of (seed, stream name, step).

No random state is stored. Streams are derived from their names, so that adding one changes no other, and steps from
their numbers, so that a run resumed at step t draws the numbers of the uninterrupted run.
"""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray


def root(seed: int) -> PRNGKeyArray:
    """Returns the root key of a run. The generator is fixed, so that no global setting can change the numbers."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(key: PRNGKeyArray, name: str, step: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """Returns the key of the stream `name` at `step`.

    Args:
      key: a run's root key (see `root`).
      name: the use of the numbers, such as "init", "order", "augment" or "dropout".
      step: the training step; for "order", the epoch.
    """
    # CRC-32 rather than hash(), which differs between Python processes.
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)
