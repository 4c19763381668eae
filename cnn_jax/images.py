"""From an image file to RGB pixels, for training and prediction alike."""

import io
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cnn_jax.errors import UserError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def decode(file: Any, name: str | None = None) -> Image.Image:
    """Reads an image as a person would see it: RGB, upright.

    The EXIF orientation is applied; transparency is composited on white; grey, palette, CMYK and 16-bit images are
    converted; of an animation the first frame is taken.

    Args:
      file: a path, or the encoded bytes.
      name: what to call it in an error; the path by default.

    Raises:
      UserError: not an image, damaged, or too large to be honest; it names the file.
    """
    name = name or (os.fspath(file) if isinstance(file, str | os.PathLike) else "the image")
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a decompression bomb up to twice its limit, and of odd EXIF data.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()
                return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first.") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files.
        reason = "not an image that Pillow can read" if "cannot identify" in str(error) else f"damaged ({error})"
        raise UserError(f"{name}: {reason}. Replace or remove the file.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes an image RGB and upright: see `decode`."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 8 bits instead of scaling it. 32-bit integers hold 16-bit data in PNG files.
        pixels = np.asarray(image).astype(np.float64)
        scale = 255 if image.mode == "F" and pixels.max(initial=0) <= 1 else 255 / 65535
        image = Image.fromarray(np.clip(np.round(pixels * scale), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int, how: str = "crop") -> Image.Image:
    """Makes an image this size, antialiased.

    Args:
      image: RGB.
      height: in pixels.
      width: in pixels.
      how: "crop" cuts out the largest centred part of the wanted shape; "pad" adds black bars instead; "stretch"
        gives up the aspect ratio.
    """
    if image.size == (width, height):
        return image
    method = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}[how]
    return method(image, (width, height), Image.Resampling.BICUBIC)
