"""Test-time augmentation: the weighted mean of the logits for several views of each image."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "batch height width 3"]
Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True)
class TTA:
    """The views of each image whose logits are averaged.

    The errors of a network on different views of an image are partly independent and cancel in part. Validation during
    training, `evaluate`, `predict` and exported models use the same views. Source: the multi-crop evaluation of
    airbench (Jordan 2024, arXiv:2404.00498).

    Attributes:
      mirror: also use the mirror image.
      shift: also use the image shifted by this many pixels up and left, and down and right, padded by reflection; 0 for
        neither. As in airbench, the unshifted image has half of the weight.
    """

    mirror: bool = False
    shift: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "TTA":
        """Returns the views that `config.eval` describes; runs of earlier versions have none."""
        return cls(config.get("mirror", False), config.get("shift", 0))

    @property
    def enabled(self) -> bool:
        """Whether there are views besides the image itself."""
        return self.mirror or self.shift > 0

    def __call__(self, predict: Callable[[Images], Logits], images: Images) -> Logits:
        """Returns the weighted mean of the logits.

        Args:
          predict: from preprocessed images to logits, in inference mode.
          images: preprocessed.
        """
        if not self.enabled:
            return predict(images)
        views, weights = self._views(images)
        # One large batch, so that the network is compiled once rather than once per view.
        logits = predict(jnp.concatenate(views)).reshape(len(views), images.shape[0], -1)
        return (jnp.asarray(weights, logits.dtype).reshape(-1, 1, 1) * logits).sum(0)

    def _views(self, images: Images) -> tuple[list[Images], list[float]]:
        views, weights = [images], [1.0]
        if self.shift:
            height, width = images.shape[1:3]
            around = ((0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0))
            padded = jnp.pad(images, around, "reflect")
            views += [padded[:, at : at + height, at : at + width] for at in (0, 2 * self.shift)]
            weights = [0.5, 0.25, 0.25]
        if self.mirror:
            views += [view[:, :, ::-1] for view in views]
            weights = [weight / 2 for weight in weights] * 2
        return views, weights


NO_TTA = TTA()
