"""Preprocessing of images, the same for training, evaluation, prediction and exported models."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizes images, scales them to [0, 1] and normalises them, on the device.

    Attributes:
      image_size: side in pixels of the network's square input; 0 keeps the size of the stored images.
      mean: subtracted from each of the three channels, in units of [0, 1].
      std: divides each of the three channels, in units of [0, 1].
    """

    image_size: int = 0
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)

    @classmethod
    def from_config(cls, config: Any, mean: Colour = (0.0, 0.0, 0.0), std: Colour = (1.0, 1.0, 1.0)) -> "Preprocessing":
        """Returns the preprocessing for `config.data`; `mean` and `std` replace those of the config where empty."""
        return cls(config.image_size, tuple(config.mean) or mean, tuple(config.std) or std)

    @classmethod
    def from_metadata(cls, fields: dict[str, Any]) -> "Preprocessing":
        """Returns the preprocessing for the output of `dataclasses.asdict`, as read from JSON."""
        return cls(fields["image_size"], tuple(fields["mean"]), tuple(fields["std"]))

    def scale(self, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch size_h size_w 3"]:
        """Returns images resized (bilinear, antialiased) and scaled to [0, 1]. Augmentation comes after this."""
        images = images.astype(jnp.float32) / 255
        size = self.image_size
        if size and images.shape[1:3] != (size, size):
            images = jax.image.resize(images, (images.shape[0], size, size, 3), "bilinear", antialias=True)
        return images

    def normalise(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
        """Returns images minus the mean, divided by the standard deviation, per channel."""
        # Skipped where it would change nothing, because it costs a pass over the images.
        if any(self.mean):
            images = images - jnp.asarray(self.mean, images.dtype).reshape(1, 1, 1, 3)
        if set(self.std) != {1.0}:
            images = images / jnp.asarray(self.std, images.dtype).reshape(1, 1, 1, 3)
        return images

    def __call__(self, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch size_h size_w 3"]:
        """Returns the network's input, without augmentation."""
        return self.normalise(self.scale(images))
