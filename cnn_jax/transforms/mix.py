"""Augmentations that mix pairs of training images and their targets.

Each function takes a batch with targets `[batch, classes]`, such as one-hot labels, and returns a mixed one. Every
example is mixed with a partner of the same batch, by a random permutation; one mixing factor serves the whole batch, as
in the authors' implementations. The batch must be full: a padded example would be mixed into real ones.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cnn_jax import rng

Images = Float[Array, "batch height width 3"]
Targets = Float[Array, "batch classes"]


def mixup(images: Images, targets: Targets, key: PRNGKeyArray, alpha: float) -> tuple[Images, Targets]:
    """Returns weighted means of pairs: `x = f x_i + (1 - f) x_j`, and likewise of their targets.

    Source: Zhang et al. 2018, arXiv:1710.09412.

    Args:
      images: in any range.
      targets: a distribution over the classes per image.
      key: for this batch alone.
      alpha: the factor f is drawn from Beta(alpha, alpha); 0 leaves the batch as it is.
    """
    if not alpha:
        return images, targets
    partner, factor = _draw(key, len(images), alpha)
    return _blend(images, partner, factor), _blend(targets, partner, factor)


def cutmix(images: Images, targets: Targets, key: PRNGKeyArray, alpha: float) -> tuple[Images, Targets]:
    """Returns images in which a rectangle is replaced by that of a partner, and targets in proportion to the area.

    The rectangle has the image's aspect ratio and the share 1 - f of its area. Its centre is anywhere in the image;
    what lies outside is cut off, and targets follow the area that is left. Source: Yun et al. 2019, arXiv:1905.04899.

    Args:
      images: in any range.
      targets: a distribution over the classes per image.
      key: for this batch alone.
      alpha: the factor f is drawn from Beta(alpha, alpha); 0 leaves the batch as it is.
    """
    if not alpha:
        return images, targets
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


def mix(
    images: Images, targets: Targets, key: PRNGKeyArray, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> tuple[Images, Targets]:
    """Returns the batch after `mixup` or `cutmix`; with both, each batch draws one of them with equal probability."""
    if not (mixup_alpha and cutmix_alpha):
        return mixup(*cutmix(images, targets, key, cutmix_alpha), key, mixup_alpha)
    return jax.lax.cond(
        jax.random.bernoulli(rng.stream(key, "choice")),
        lambda: mixup(images, targets, key, mixup_alpha),
        lambda: cutmix(images, targets, key, cutmix_alpha),
    )


def _draw(key: PRNGKeyArray, count: int, alpha: float) -> tuple[Array, Array]:
    """Returns each example's partner and the mixing factor."""
    factor = jax.random.beta(rng.stream(key, "factor"), alpha, alpha)
    return jax.random.permutation(rng.stream(key, "partner"), count), factor


def _blend(values: Array, partner: Array, factor: Array) -> Array:
    return factor * values + (1 - factor) * values[partner]
