"""From an image file to RGB pixels, for training and prediction alike.

Whoever uploads a photograph chooses every byte of it. So a file is refused by what its header declares, before
memory is spent on it; what is decoded at once has a limit, however many threads decode; whatever Pillow raises
becomes one line that names the file.
"""

import contextlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from cnn_jax.errors import UserError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FITS = ("crop", "stretch", "pad")  # see `fit`
STANDARD_INPUT = "-"
MAX_PIXELS = 61_000_000  # the largest full-frame cameras; decoding takes up to 16 bytes a pixel (WebP)
MAX_SIDE = 65_535  # as in a JPEG file; resizing from longer sides takes gigabytes for its weights
MAX_BYTES = 2**28

# No others: Pillow knows dozens of formats that no camera writes, and for one it starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_READ = "BMP, GIF, JPEG, PNG, PPM, TIFF or WebP"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find(arguments: Sequence[str]) -> list[str]:
    """Returns the images that are meant: files as given, those in folders sorted, `-` for standard input.

    Raises:
      UserError: nothing is given, a URL, a folder without images, `-` twice.
    """
    if not arguments:
        raise UserError("Name the images: files, folders, or - for one on standard input.")
    if arguments.count(STANDARD_INPUT) > 1:
        raise UserError("Standard input (-) can be read once only.")
    names = []
    for argument in arguments:
        if _URL.match(argument):
            raise UserError(f"{argument} is a URL, and nothing is fetched: download it and name the file.")
        names += _images_in(argument) if os.path.isdir(argument) else [argument]
    return names


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
    with _decoded(file, name) as image:
        return image


def read(
    file: Any, height: int, width: int, how: str = "crop", name: str | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns `fit(decode(file), ...)` as an array; meant for many threads, which together stay within memory."""
    with _decoded(file, name) as image:
        return np.asarray(fit(image, height, width, how))


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes an image RGB and upright: see `decode`. The result carries no EXIF, so that doing it again is harmless."""
    upright = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    # A copy in any case, and no more of them than that: these are what memory goes to.
    image = image if image.mode == "RGB" and upright is not None else image.convert("RGB")
    image = image if upright is None else image.transpose(upright)
    image.info = {}
    return image


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
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if how == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width / image.width, height / image.height)
    # A line a pixel wide stays a line: Pillow's own `pad` fails on it.
    inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    padded = Image.new("RGB", (width, height))
    padded.paste(
        image.resize(inner, Image.Resampling.BICUBIC),
        (round((width - inner[0]) / 2), round((height - inner[1]) / 2)),
    )
    return padded


def _images_in(folder: str) -> list[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}).")

    found = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(root, name)
            for name in files
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"There is no image in {folder}: the names of images end in {', '.join(sorted(EXTENSIONS))}.")
    return [str(path) for path in sorted(found)]


@contextlib.contextmanager
def _decoded(file: Any, name: str | None) -> Iterator[Image.Image]:
    """Yields the image; while the `with` statement lasts, it counts against what may be decoded at once."""
    name = name or (os.fspath(file) if isinstance(file, str | os.PathLike) else "the image")
    try:
        with _without_warnings(), Image.open(_checked(file), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise Image.DecompressionBombError
            with _room_for(width * height):
                image.load()
                yield to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file.") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{name}: more than {MAX_PIXELS:,} pixels, or {MAX_SIDE:,} on a side; make it smaller first."
        ) from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files.
        raise UserError(f"{name}: {_reason(error)}. Replace or remove the file.") from None


def _checked(file: Any) -> Any:
    """Returns what Pillow opens; raises where reading it could go on for ever or fill the memory."""
    if isinstance(file, bytes):
        size, source = len(file), io.BytesIO(file)
    else:
        status, source = os.stat(file), file
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise UserError("a folder, not an image." if stat.S_ISDIR(status.st_mode) else "not a regular file.")
    if size > MAX_BYTES:
        raise UserError(f"a file of more than {MAX_BYTES >> 20} MiB; make it smaller first.")
    if not size:
        raise UserError("empty. Replace or remove the file.")
    return source


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image that can be read ({_READ})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return f"damaged ({' '.join(str(error).split()) or type(error).__name__})"


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8, or anything else. Cameras and editors write broken EXIF around good pixels."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey of 16 bits and more, which Pillow would clip. 32-bit integers hold 16-bit data in PNG files."""
    pixels = np.asarray(image)
    # Floating point has no agreed white: the smallest usual one that nothing exceeds.
    brightest = np.nanmax(pixels, initial=0) if image.mode == "F" else 65535
    white = next((white for white in (1, 255) if brightest <= white), 65535)
    grey = np.empty(pixels.shape, np.uint8)
    for row in range(len(pixels)):  # by rows, because the copies in floating point are large
        scaled = np.nan_to_num(pixels[row].astype(np.float64)) * (255 / white)
        grey[row] = np.clip(np.round(scaled), 0, 255)
    return Image.fromarray(grey)


class _Shared:
    """What the threads of this process share."""

    changed = threading.Condition()
    pixels = 0  # of the photographs that are being decoded
    quiet = 0  # threads inside `_without_warnings`
    filters: Any = None


@contextlib.contextmanager
def _room_for(pixels: int) -> Iterator[None]:
    """Waits until no more than `MAX_PIXELS` are being decoded with these."""
    with _Shared.changed:
        _Shared.changed.wait_for(lambda: not _Shared.pixels or _Shared.pixels + pixels <= MAX_PIXELS)
        _Shared.pixels += pixels
    try:
        yield
    finally:
        with _Shared.changed:
            _Shared.pixels -= pixels
            _Shared.changed.notify_all()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences Pillow's warnings, of odd EXIF data mostly.

    `warnings.catch_warnings` by itself is not for threads: of two that overlap, the one to leave last puts back the
    filters that the other had set. Here the first to enter sets them and the last to leave puts them back.
    """
    with _Shared.changed:
        if not _Shared.quiet:
            _Shared.filters = warnings.catch_warnings()
            _Shared.filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\b")
        _Shared.quiet += 1
    try:
        yield
    finally:
        with _Shared.changed:
            _Shared.quiet -= 1
            if not _Shared.quiet:
                _Shared.filters.__exit__(None, None, None)
