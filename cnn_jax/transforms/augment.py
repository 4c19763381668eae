"""Random augmentation of training images on the device.

Each transform takes one image `[height, width, 3]` with values in [0, 1] and a key; `Augmentation` chains the enabled
ones and maps them over a batch, with separate random numbers per image. `cnn_jax.transforms.mix` has the augmentations
that also change labels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cnn_jax import rng
from cnn_jax.errors import UserError

Image = Float[Array, "height width 3"]


def flip(image: Image, key: PRNGKeyArray) -> Image:
    """Mirrors an image horizontally with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def alternate(key: PRNGKeyArray, index: Int[Array, " batch"], epoch: Int[Array, " batch"]) -> Bool[Array, " batch"]:
    """Returns which images to mirror so that each one is mirrored in every second epoch.

    Any two consecutive epochs then show both versions of every image, whereas independent flips show half of the images
    in the same version twice. A hash of the image's index decides which version comes first. Source: airbench (Jordan
    2024, arXiv:2404.00498).

    Args:
      key: the run's stream "alternate_flip", the same in every step.
      index: each image's index in the training set.
      epoch: the epoch in which each image is used.
    """
    hashes = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), dtype=jnp.uint32))(index)
    return (hashes + epoch.astype(jnp.uint32)) % 2 == 1


def shift(image: Image, key: PRNGKeyArray, fraction: float) -> Image:
    """Shifts an image by whole pixels, up to `fraction` of each side in either direction, repeating the edge.

    Whole pixels need no interpolation, which would blur the image. The largest shift is rounded down.
    """
    height, width, _ = image.shape
    limits = jnp.array([int(fraction * height), int(fraction * width)])
    dy, dx = jax.random.randint(key, (2,), -limits, limits + 1)
    rows = jnp.clip(jnp.arange(height) + dy, 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + dx, 0, width - 1)
    return image[rows[:, None], columns[None, :]]


def crop(image: Image, key: PRNGKeyArray, padding: int, mode: str) -> Image:
    """Pads each side by `padding` pixels and crops the original size at a random position.

    `mode` is "constant" (black, He et al. 2016, arXiv:1512.03385) or "reflect".
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def rotate_zoom(image: Image, key: PRNGKeyArray, degrees: float, zoom: float) -> Image:
    """Rotates about the centre by up to `degrees` in either direction and scales by a factor in [1 - zoom, 1 + zoom].

    Both are one bilinear interpolation; pixels from outside repeat the edge. A factor above 1 magnifies.
    """
    height, width, _ = image.shape
    angle_key, zoom_key = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-degrees, maxval=degrees))
    factor = jax.random.uniform(zoom_key, minval=1 - zoom, maxval=1 + zoom)
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(float(height)) - cy, jnp.arange(float(width)) - cx, indexing="ij")
    # Source coordinates of each output pixel: the inverse of the rotation and of the scaling.
    source_y = (jnp.cos(angle) * y - jnp.sin(angle) * x) / factor + cy
    source_x = (jnp.sin(angle) * y + jnp.cos(angle) * x) / factor + cx

    def sample(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
        return map_coordinates(channel, [source_y, source_x], order=1, mode="nearest")

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def cutout(image: Image, key: PRNGKeyArray, size: int, fill: tuple[float, float, float]) -> Image:
    """Fills a square of `size` x `size` pixels, centred anywhere in the image, with the colour `fill`.

    Source: DeVries and Taylor 2017, arXiv:1708.04552. As there, the square may extend beyond the edge.
    """
    height, width, _ = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    covered = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return jnp.where(covered[:, :, None], jnp.asarray(fill, image.dtype).reshape(1, 1, 3), image)


def resize(images: Float[Array, "batch height width 3"], side: int) -> Float[Array, "batch side side 3"]:
    """Returns images resized to `side` x `side` pixels, bilinearly and without antialiasing.

    Smaller images make the first epochs of a run cheaper, which learn what can be seen in them: progressive resizing
    (Howard 2018, fast.ai's entry to DAWNBench). Whole images are resized, since a crop loses what is outside of it. On
    CIFAR-10, 24, 28 and then 32 pixels saved 0.08 s of 1.9 s (github.com/fulcrumresearch/cifar-10-speedrun).
    """
    shape = (images.shape[0], side, side, images.shape[3])
    return jax.image.resize(images, shape, "bilinear", antialias=False)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The enabled transforms, applied in the order of the fields; all are off by default.

    Attributes:
      flip: mirror images horizontally at random.
      alternate_flip: mirror each image horizontally in every second epoch (see `alternate`).
      shift: largest shift, as a fraction of the side; rounded down to whole pixels.
      rotate: largest angle in degrees.
      zoom: largest change of scale: factors lie in [1 - zoom, 1 + zoom].
      crop_padding: pixels of padding before a random crop.
      crop_mode: padding mode: "constant" (black) or "reflect".
      cutout: side of the covered square in pixels.
      cutout_fill: its colour in [0, 1]; the training mean makes it zero after normalisation, as in the paper.
    """

    flip: bool = False
    alternate_flip: bool = False
    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    crop_padding: int = 0
    crop_mode: str = "constant"
    cutout: int = 0
    cutout_fill: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def from_config(cls, config: Any, mean: tuple[float, float, float], image_size: tuple[int, int]) -> "Augmentation":
        """Returns the augmentation that `config.augment` describes.

        Args:
          config: the fields of this class except the last.
          mean: mean of the normalisation, used as the colour of cutout.
          image_size: height and width of the images to augment.

        Raises:
          UserError: random and alternating flips are both on (their combination is random); or a shift is less than one
            pixel.
        """
        if config.flip and config.alternate_flip:
            raise UserError(
                "config.augment.flip and config.augment.alternate_flip cannot be combined: set one of them to False."
            )
        side = min(image_size)
        if config.shift and not int(config.shift * side):
            raise UserError(
                f"config.augment.shift is {config.shift}, less than one pixel of an image side of {side}: set it to at "
                f"least {math.ceil(10**4 / side) / 10**4}, or to 0 for no shift."
            )
        own = {field.name for field in dataclasses.fields(cls)}  # the others are of cnn_jax.transforms.mix
        return cls(**{name: value for name, value in config.items() if name in own}, cutout_fill=mean)

    @property
    def enabled(self) -> bool:
        """Whether anything is switched on."""
        options = ("crop_mode", "cutout_fill")  # of other fields
        return any(getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in options)

    def one(self, image: Image, key: PRNGKeyArray) -> Image:
        """Returns one image, augmented."""
        if self.flip:
            image = flip(image, rng.stream(key, "flip"))
        if self.shift:
            image = shift(image, rng.stream(key, "shift"), self.shift)
        if self.rotate or self.zoom:
            image = rotate_zoom(image, rng.stream(key, "rotate_zoom"), self.rotate, self.zoom)
        if self.crop_padding:
            image = crop(image, rng.stream(key, "crop"), self.crop_padding, self.crop_mode)
        if self.cutout:
            image = cutout(image, rng.stream(key, "cutout"), self.cutout, self.cutout_fill)
        return image

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        key: PRNGKeyArray,
        offset: int | Int[Array, ""] = 0,
        mirrored: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width 3"]:
        """Returns a batch, augmented.

        Args:
          images: values in [0, 1].
          key: the stream "augment" at this step.
          offset: position of `images[0]` in the global batch. An image's random numbers depend only on its position
            there, so that a batch spread over devices is augmented exactly as on one.
          mirrored: which images to mirror first, from `alternate`; None for none.
        """
        if mirrored is not None:
            images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        positions = jnp.arange(images.shape[0]) + offset
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        return jax.vmap(self.one)(images, keys)
