"""Random changes of training images, on the device.

Each transform takes one image `[height, width, 3]` with values in [0, 1] and a key of its own; `Augmentation` chains
those that are switched on and maps them over a batch. Every image of a batch draws its own numbers.
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
    """Mirrors left and right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def alternate(key: PRNGKeyArray, index: Int[Array, " batch"], epoch: Int[Array, " batch"]) -> Bool[Array, " batch"]:
    """Returns which images are mirrored so that each is in every second epoch.

    Two epochs in a row then show both forms of every image, where independent flips show the same form twice to half of
    them. A hash of its number in the training set says with which form an image begins. Source: airbench (Jordan 2024,
    arXiv:2404.00498).

    Args:
      key: the run's stream "alternate_flip", the same in every step.
      index: each image's number in the training set.
      epoch: which epoch of the run each image is in.
    """
    hashes = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), dtype=jnp.uint32))(index)
    return (hashes + epoch.astype(jnp.uint32)) % 2 == 1


def shift(image: Image, key: PRNGKeyArray, fraction: float) -> Image:
    """Moves by whole pixels, up to `fraction` of the side each way, repeating the edge.

    Whole pixels keep the image as sharp as it was; interpolating would blur it. The largest move is rounded down.
    """
    height, width, _ = image.shape
    limits = jnp.array([int(fraction * height), int(fraction * width)])
    dy, dx = jax.random.randint(key, (2,), -limits, limits + 1)
    rows = jnp.clip(jnp.arange(height) + dy, 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + dx, 0, width - 1)
    return image[rows[:, None], columns[None, :]]


def crop(image: Image, key: PRNGKeyArray, padding: int, mode: str) -> Image:
    """Pads every side by `padding` pixels and cuts the original size out again at a random place.

    `mode` is "constant" (black, He et al. 2015, arXiv:1512.03385) or "reflect".
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)


def rotate_zoom(image: Image, key: PRNGKeyArray, degrees: float, zoom: float) -> Image:
    """Turns about the centre by up to `degrees` each way and scales by a factor in [1 - zoom, 1 + zoom].

    One bilinear interpolation serves both; what lies outside repeats the edge. A factor above 1 magnifies.
    """
    height, width, _ = image.shape
    angle_key, zoom_key = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-degrees, maxval=degrees))
    factor = jax.random.uniform(zoom_key, minval=1 - zoom, maxval=1 + zoom)
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - cy, jnp.arange(width) - cx, indexing="ij")
    # Where each output pixel comes from: the inverse of the rotation and of the scaling.
    source_y = (jnp.cos(angle) * y - jnp.sin(angle) * x) / factor + cy
    source_x = (jnp.sin(angle) * y + jnp.cos(angle) * x) / factor + cx

    def sample(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
        return map_coordinates(channel, [source_y, source_x], order=1, mode="nearest")

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def cutout(image: Image, key: PRNGKeyArray, size: int, fill: tuple[float, float, float]) -> Image:
    """Covers a square of `size` pixels, its centre anywhere in the image, with the colour `fill`.

    Source: DeVries and Taylor 2017, arXiv:1708.04552. The square may stand out over the edge, as theirs may.
    """
    height, width, _ = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    covered = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return jnp.where(covered[:, :, None], jnp.asarray(fill, image.dtype).reshape(1, 1, 3), image)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The transforms that a config switches on, in the order of the fields; all off by default.

    Attributes:
      flip: mirror left and right, at random.
      alternate_flip: mirror left and right in every second epoch (see `alternate`).
      shift: largest move, as a fraction of the side; in whole pixels, rounded down.
      rotate: largest angle in degrees.
      zoom: largest change of scale: factors lie in [1 - zoom, 1 + zoom].
      crop_padding: pixels of padding before a random crop.
      crop_mode: what the padding is: "constant" (black) or "reflect".
      cutout: side in pixels of the covered square.
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
        """Builds it from `config.augment`.

        Args:
          config: the fields of this class but the last.
          mean: what normalisation subtracts; the colour of cutout.
          image_size: height and width of the images that it will be given.

        Raises:
          UserError: random and alternating flips together, which are random flips; a shift of less than one pixel.
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
        return cls(**{name: value for name, value in config.items() if name in own}, cutout_fill=tuple(mean))

    @property
    def enabled(self) -> bool:
        """Whether anything is switched on."""
        options = ("crop_mode", "cutout_fill")  # of other fields
        return any(getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in options)

    def one(self, image: Image, key: PRNGKeyArray) -> Image:
        """Augments one image."""
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
        """Augments a batch.

        Args:
          images: values in [0, 1].
          key: the stream "augment" at this step.
          offset: position of `images[0]` in the global batch. An image's numbers hang on its position there alone, so
            that a batch spread over devices is augmented exactly as on one.
          mirrored: which images are mirrored first, by `alternate`; None for none.
        """
        if mirrored is not None:
            images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        positions = jnp.arange(images.shape[0]) + offset
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        return jax.vmap(self.one)(images, keys)
