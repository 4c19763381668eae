"""The seeds of a run with several: one of them is used, or all of them as an ensemble."""

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.errors import UserError
from cnn_jax.utils import text

ENSEMBLE = "ensemble"  # the value of `--seed` for the mean of all seeds' probabilities
Seed = int | str  # an index, or ENSEMBLE


def select(path: Path, variables: Any, metadata: dict[str, Any], seed: Seed | None) -> tuple[list[Any], dict[str, Any]]:
    """Returns the variables of the chosen seeds, and the metadata with the choice as "seed".

    The metadata of one seed has the config of the run with this seed alone. Of a run with one seed, it is unchanged.

    Args:
      path: the workdir, for messages.
      variables: of the run; with a leading seed axis if it has several seeds.
      metadata: what the run recorded.
      seed: the index of a seed, or `ENSEMBLE`; None for the first.

    Raises:
      UserError: the run has no such seed, or has only one and the ensemble is asked for.
    """
    config = metadata["config"]
    seeds = config.get("seeds", 1)  # runs of earlier versions have no such key
    chosen = 0 if seed is None else seed
    _check(path, seeds, chosen)
    if seeds == 1:
        return [variables], metadata
    if chosen == ENSEMBLE:
        members = range(seeds)
    else:
        members, config = [chosen], config | {"seed": config["seed"] + chosen, "seeds": 1}
    own = [jax.tree.map(operator.itemgetter(index), variables) for index in members]
    return own, metadata | {"config": config, "seed": chosen}


def _check(path: Path, seeds: int, seed: Seed) -> None:
    if seeds == 1 and seed != 0:
        raise UserError(
            f"{path} has 1 seed: leave out --seed={seed}, or train several seeds with --config.seeds=8, for example."
        )
    exists = seed == ENSEMBLE if isinstance(seed, str) else 0 <= seed < seeds
    if not exists:
        raise UserError(
            f"{path} has {text.count(seeds, 'seed')}: --seed={seed} must be a number below {seeds} (0 is the first), "
            f"or {ENSEMBLE}."
        )


def describe(seed: Seed) -> str:
    """Returns the choice of a seed in words."""
    return "ensemble of all seeds" if seed == ENSEMBLE else f"seed {seed} (0 is the first)"


def make_mean(
    score: Callable[[Any, Any], jax.Array], members: Sequence[Any], classes: int
) -> Callable[[Any], jax.Array]:
    """Returns a function from images to the logarithm of the mean of the members' probabilities.

    It calls one compiled program per member, one after the other: batched over members, convolutions are slow on a CPU
    (see cnn_jax/parallel/placement.py). Each call takes the sum of the previous ones, so that the activations of only
    one member at a time are in memory.

    Args:
      score: from variables and images to log-probabilities, `[batch, classes]`.
      members: the variables of each member, at least one.
      classes: the number of classes.
    """
    if len(members) == 1:
        return jax.jit(lambda images: score(members[0], images))

    @jax.jit
    def add(total, variables, images):
        return jnp.logaddexp(total, score(variables, images))

    def log_probabilities(images):
        images = jnp.asarray(images)
        total = jnp.full((images.shape[0], classes), -jnp.inf, jnp.float32)
        for variables in members:
            total = add(total, variables, images)
        return total - math.log(len(members))

    return log_probabilities
