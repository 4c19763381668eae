"""Test-time augmentation: several views of an image, one answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "batch height width 3"]
Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True)
class Views:
    """Which views of an image are shown to the network; the weighted mean of their logits is the answer.

    A network that was trained on mirrored and shifted images answers each of them with errors of its own, which cancel
    in part. The same rule is used while training, by `evaluate`, by `predict` and in what `export` writes: what is
    served is what was scored. Source: airbench's multi-crop evaluation (Jordan 2024, arXiv:2404.00498).

    Attributes:
      mirror: also show the mirror image.
      shift: also show the image moved by so many pixels, up and left, and down and right, filled up by reflection; 0
        for neither. The image in its place has half of the weight, as in airbench.
    """

    mirror: bool = False
    shift: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "Views":
        """Builds it from `config.eval`; a run of an earlier version has none."""
        return cls(config.get("mirror", False), config.get("shift", 0))

    @property
    def enabled(self) -> bool:
        """Whether there is more than the image itself."""
        return self.mirror or self.shift > 0

    def __call__(self, predict: Callable[[Images], Logits], images: Images) -> Logits:
        """Returns the mean of the logits.

        Args:
          predict: the network, at test time.
          images: as it sees them.
        """
        if not self.enabled:
            return predict(images)
        views, weights = self._views(images)
        # One large batch: the network is compiled once, not once a view.
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


ITSELF = Views()  # the image alone
