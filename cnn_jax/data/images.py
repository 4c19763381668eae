"""Decoding of image files to RGB pixels, for training and inference.

Files may be hostile, since users upload them: images are refused by the size in their header before they are decoded,
the number of pixels decoded at the same time is limited across threads, and every error of Pillow becomes one line that
names the file.
"""

import contextlib
import functools
import importlib.util
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

HEIC = frozenset({".heic", ".heif", ".hif"})
HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None  # the extra [heic]
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}) | (
    HEIC if HAS_HEIC else frozenset()
)
FITS = ("crop", "stretch", "pad")  # see `fit`
STANDARD_INPUT = "-"
MAX_PIXELS = 61_000_000  # of the largest full-frame cameras; decoding takes up to 16 bytes per pixel (WebP)
MAX_SIDE = 65_535  # the limit of JPEG; Pillow's resizing weights for longer sides take gigabytes
MAX_BYTES = 2**28
SHOWN_REASONS = 50

# Pillow supports dozens of other formats that no camera writes, and starts Ghostscript for one of them.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_READ = f"BMP, GIF, {'HEIC, ' * HAS_HEIC}JPEG, PNG, PPM, TIFF or WebP"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # bytes 8 to 12 of a file
_NEEDS_HEIC = "HEIC, which needs pip install 'cnn_jax[heic]'; or convert it to JPEG"
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
    """Returns the images named by arguments of the command line: files, the images in folders, `-` for standard input.

    Raises:
      UserError: no argument, a URL, a folder without images, or `-` twice.
    """
    if not arguments:
        raise UserError("Name the images: files, folders, or - for one on standard input.")
    if arguments.count(STANDARD_INPUT) > 1:
        raise UserError("Standard input (-) can be read once only.")
    names = []
    for argument in arguments:
        if _URL.match(argument):
            raise UserError(f"{argument} is a URL, and URLs are not supported: download it and name the file.")
        if not os.path.isdir(argument):
            names.append(argument)
            continue
        found = in_folder(argument)
        if not found:
            raise UserError(
                f"There is no image in {argument}: the names of images end in {', '.join(sorted(EXTENSIONS))}."
            )
        names += map(str, found)
    return names


def in_folder(folder: str | Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, sorted; hidden files and folders are skipped.

    Raises:
      UserError: a folder cannot be read.
    """

    return [path for path in _walk(folder) if path.suffix.lower() in EXTENSIONS]


def others_in_folder(folder: str | Path) -> dict[str, int]:
    """Returns how many files of `in_folder` are no images, by their extensions, such as ".txt"."""
    found: dict[str, int] = {}
    for path in _walk(folder):
        extension = path.suffix.lower()
        if extension not in EXTENSIONS:
            found[extension or path.name] = found.get(extension or path.name, 0) + 1
    return found


def _walk(folder: str | Path) -> list[Path]:
    """Returns the files in a folder and its subfolders, sorted; hidden files and folders are skipped."""

    def fail(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}).")

    found = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return sorted(found)


def size(file: Any) -> tuple[int, int]:
    """Returns width and height of an image file as stored, reading only its header.

    Raises:
      UserError: not an image.
    """
    try:
        with _without_warnings(), _open(file) as image:
            return image.size
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files.
        raise UserError(f"{file}: {_reason(error)}. Replace or remove the file.") from None


class Unreadable(UserError):
    """Images that cannot be read.

    Attributes:
      reasons: a line for each.
    """

    def __init__(self, reasons: Sequence[str]):
        """Takes the reasons, each of which names the file; the message has up to `SHOWN_REASONS` of them."""
        self.reasons = list(reasons)
        more = [f"and {len(reasons) - SHOWN_REASONS} more"] if len(reasons) > SHOWN_REASONS else []
        lines = [f"{len(reasons)} images cannot be read:", *self.reasons[:SHOWN_REASONS], *more]
        super().__init__("\n  ".join(lines) if len(reasons) > 1 else reasons[0])


def decode(file: Any, name: str | None = None) -> Image.Image:
    """Returns an image file as an upright RGB image.

    The EXIF orientation is applied, transparency is composited on white, grey, palette, CMYK and 16-bit images are
    converted, and the first frame of an animation is used.

    Args:
      file: a path, or the encoded bytes.
      name: the name in error messages; the path by default.

    Raises:
      UserError: not an image, damaged, or suspiciously large; the message names the file.
    """
    with _decoded(file, name) as image:
        return image


def read(
    file: Any, height: int, width: int, how: str = "crop", name: str | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns `fit(decode(file), ...)` as an array; may be called by many threads, whose total memory is limited."""
    with _decoded(file, name) as image:
        return np.asarray(fit(image, height, width, how))


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an upright RGB copy (see `decode`), without EXIF, so that converting it again changes nothing."""
    upright = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    # Exactly one copy, because the copies of a large image dominate the memory.
    image = image if image.mode == "RGB" and upright is not None else image.convert("RGB")
    image = image if upright is None else image.transpose(upright)
    image.info = {}
    return image


def fit(image: Image.Image, height: int, width: int, how: str = "crop") -> Image.Image:
    """Returns an image resized to `height` x `width`, antialiased.

    Args:
      image: RGB.
      height: in pixels.
      width: in pixels.
      how: one of `FITS`: "crop" takes the largest centred part of that aspect ratio, "pad" adds black bars, "stretch"
        changes the aspect ratio.
    """
    if image.size == (width, height):
        return image
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if how == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width / image.width, height / image.height)
    # At least one pixel: `ImageOps.pad` fails on images that are one pixel wide.
    inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    padded = Image.new("RGB", (width, height))
    padded.paste(
        image.resize(inner, Image.Resampling.BICUBIC),
        (round((width - inner[0]) / 2), round((height - inner[1]) / 2)),
    )
    return padded


@contextlib.contextmanager
def _decoded(file: Any, name: str | None) -> Iterator[Image.Image]:
    """Yields the image; during the `with` block, its pixels count against `MAX_PIXELS`."""
    name = name or (os.fspath(file) if isinstance(file, str | os.PathLike) else "the image")
    try:
        with _without_warnings(), _open(file) as image:
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


def _open(file: Any) -> Image.Image:
    """Returns an image of which only the header has been read."""
    source = _checked(file)
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:12]
    else:
        with open(source, "rb") as opened:
            head = opened.read(12)
    if head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS:
        if not HAS_HEIC:
            raise UserError(f"{_NEEDS_HEIC}.")
        _register_heic()
        return Image.open(source, formats=("HEIF",))
    return Image.open(source, formats=_FORMATS)


@functools.cache
def _register_heic() -> None:
    """Teaches Pillow HEIC."""
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

    register_heif_opener()


def _checked(file: Any) -> Any:
    """Returns the file for `Image.open`; refuses files that could block or fill the memory."""
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
    """Returns the EXIF orientation, 1 to 8 or an invalid value; broken EXIF is ignored, as the pixels are intact."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Returns an image with more than 8 bits scaled to 8, where Pillow would clip; 16-bit PNG has mode "I"."""
    pixels = np.asarray(image)
    # The white of floating-point images is not standardised: the smallest common value that no pixel exceeds.
    brightest = np.nanmax(pixels, initial=0) if image.mode == "F" else 65535
    white = next((white for white in (1, 255) if brightest <= white), 65535)
    grey = np.empty(pixels.shape, np.uint8)
    for row in range(len(pixels)):  # by rows, because a floating-point copy of the image is large
        scaled = np.nan_to_num(pixels[row].astype(np.float64)) * (255 / white)
        grey[row] = np.clip(np.round(scaled), 0, 255)
    return Image.fromarray(grey)


class _Shared:
    """State shared by the threads of this process."""

    changed = threading.Condition()
    pixels = 0  # of the images that are being decoded
    quiet = 0  # threads inside `_without_warnings`
    filters: Any = None


@contextlib.contextmanager
def _room_for(pixels: int) -> Iterator[None]:
    """Waits until these pixels can be decoded without exceeding `MAX_PIXELS` in total."""
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
    """Silences the warnings of Pillow, mostly on unusual EXIF data.

    `warnings.catch_warnings` is not thread-safe: of two overlapping threads, the last to leave would restore the
    filters that the other had set. Here the first thread to enter sets them, and the last to leave restores them.
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
