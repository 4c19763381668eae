"""Augmentations that mix pairs of training images and their targets.

Each function takes images, targets `[batch, classes]` such as one-hot labels, a key and a parameter `alpha` > 0, and
returns mixed images and targets; `Mixing` applies those that are enabled. Every example is mixed with a partner from
the same batch, chosen by a random permutation; all examples of a batch share one mixing factor, as in the authors'
implementations. The batch must be full: a padded example would be mixed into real ones.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cnn_jax import rng

Images = Float[Array, "batch height width 3"]
Targets = Float[Array, "batch classes"]


def mixup(images: Images, targets: Targets, key: PRNGKeyArray, alpha: float) -> tuple[Images, Targets]:
    """Returns weighted means of pairs, `f x_i + (1 - f) x_j`, of both the images and the targets.

    Source: Zhang et al. 2018, arXiv:1710.09412.

    Args:
      images: in any range.
      targets: a distribution over the classes per image.
      key: of this batch.
      alpha: the factor f is drawn from Beta(alpha, alpha).
    """
    partner, factor = _draw(key, len(images), alpha)
    return _blend(images, partner, factor), _blend(targets, partner, factor)


def cutmix(images: Images, targets: Targets, key: PRNGKeyArray, alpha: float) -> tuple[Images, Targets]:
    """Returns images in which a rectangle comes from a partner, and targets mixed in proportion to the areas.

    The rectangle has the image's aspect ratio and the fraction 1 - f of its area. Its centre is uniform over the image;
    it is clipped at the edges, and the targets follow the clipped area. Source: Yun et al. 2019, arXiv:1905.04899.

    Args:
      images: in any range.
      targets: a distribution over the classes per image.
      key: of this batch.
      alpha: the factor f is drawn from Beta(alpha, alpha).
    """
    partner, factor = _draw(key, len(images), alpha)
    height, width = images.shape[1:3]
    sides = jnp.array([height, width])
    size = (jnp.sqrt(1 - factor) * sides.astype(factor.dtype)).astype(sides.dtype)  # rounded down
    top, left = start = jax.random.randint(rng.stream(key, "box"), (2,), 0, sides) - size // 2
    bottom, right = start + size
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    mixed = jnp.where(inside[None, :, :, None], images[partner], images)
    return mixed, _blend(targets, partner, 1 - inside.astype(targets.dtype).mean())


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The enabled functions of this module; both are off by default.

    Where both are enabled, each batch draws one of them with equal probability. The training loss is that of the mixed
    targets; the training accuracy compares with the labels before mixing, and so is low.

    Attributes:
      mixup: `alpha` of `mixup`; 0 for off.
      cutmix: `alpha` of `cutmix`; 0 for off.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> "Mixing":
        """Returns the mixing that `config.augment` describes."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    @property
    def enabled(self) -> bool:
        """Whether any function is on."""
        return bool(self._functions)

    @property
    def _functions(self) -> list[Callable[..., tuple[Images, Targets]]]:
        every = ((mixup, self.mixup), (cutmix, self.cutmix))
        return [functools.partial(function, alpha=alpha) for function, alpha in every if alpha]

    def __call__(self, images: Images, targets: Targets, key: PRNGKeyArray) -> tuple[Images, Targets]:
        """Returns a batch, mixed; the batch itself where nothing is enabled.

        Args:
          images: in any range.
          targets: a distribution over the classes per image.
          key: of this batch.
        """
        functions = self._functions
        if not functions:
            return images, targets
        if len(functions) == 1:
            return functions[0](images, targets, key)
        choice = jax.random.randint(rng.stream(key, "choice"), (), 0, len(functions))
        return jax.lax.switch(choice, functions, images, targets, key)


def _draw(key: PRNGKeyArray, count: int, alpha: float) -> tuple[Array, Array]:
    """Returns each example's partner and the mixing factor."""
    factor = jax.random.beta(rng.stream(key, "factor"), alpha, alpha)
    return jax.random.permutation(rng.stream(key, "partner"), count), factor


def _blend(values: Array, partner: Array, factor: Array) -> Array:
    return factor * values + (1 - factor) * values[partner]
