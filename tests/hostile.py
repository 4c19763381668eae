"""A few hundred deterministic hostile image files."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

GOOD, BAD, EITHER = "good", "bad", "either"  # must be read; must be refused; may be either, with no harm done


def photograph(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth image, like a photograph."""
    coarse = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def originals() -> dict[str, bytes]:
    """One good file of each kind, by extension."""
    image, turned = photograph(), photograph().rotate(90)
    return {
        "jpg": encode(image, "jpeg"),
        "progressive.jpg": encode(image, "jpeg", progressive=True),
        "png": encode(image, "png"),
        "palette.png": encode(image.quantize(16), "png"),
        "gif": encode(image.quantize(32), "gif"),
        "animated.gif": encode(image.quantize(32), "gif", save_all=True, append_images=[turned.quantize(32)]),
        "bmp": encode(image, "bmp"),
        "ppm": encode(image, "ppm"),
        "tif": encode(image, "tiff"),
        "lzw.tif": encode(image, "tiff", compression="tiff_lzw"),
        "jpeg.tif": encode(image, "tiff", compression="jpeg"),
        "webp": encode(image, "webp"),
        "lossless.webp": encode(image, "webp", lossless=True),
    }


def files() -> Iterator[tuple[str, bytes, str]]:
    """Yields the name, the content and what may come of it."""
    for suffix, content in originals().items():
        yield f"original.{suffix}", content, GOOD
    yield from _odd_but_good()
    yield from _no_images()
    yield from _bombs()
    yield from _truncated()
    yield from _fuzzed()


def _odd_but_good() -> Iterator[tuple[str, bytes, str]]:
    for width, height in [(1, 1), (1, 5000), (5000, 1), (3, 2)]:
        yield f"size-{width}x{height}.png", encode(photograph(width, height), "png"), GOOD
        yield f"size-{width}x{height}.jpg", encode(photograph(width, height), "jpeg"), GOOD
    grey = photograph().convert("L")
    yield "bilevel.png", encode(grey.convert("1"), "png"), GOOD
    yield "cmyk.jpg", encode(photograph().convert("CMYK"), "jpeg"), GOOD
    yield "sixteen.png", encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "png"), GOOD
    nothing = np.array([[np.nan, np.inf], [-np.inf, 0.5]], np.float32)
    yield "not-a-number.tif", encode(Image.fromarray(nothing), "tiff"), GOOD
    yield "clear.png", encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0)), "png"), GOOD
    yield "wrong-extension.png", encode(photograph(), "jpeg"), GOOD
    yield "trailing-bytes.jpg", encode(photograph(), "jpeg") + b"\0" * 1000, GOOD


def _no_images() -> Iterator[tuple[str, bytes, str]]:
    yield "empty.jpg", b"", BAD
    yield "text.jpg", b"This is not an image.\n" * 50, BAD
    yield "zeros.png", b"\0" * 5000, BAD
    yield "page.gif", b"<html><script>alert(1)</script></html>", BAD
    yield "drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='30000' height='30000'/>", BAD
    yield "archive.webp", b"PK\3\4" + b"\0" * 100, BAD
    # Pillow would run Ghostscript on it.
    yield "program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", BAD
    noise = random.Random(0)
    for i, start in enumerate(
        [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6\n", b"RIFF"]
    ):
        yield f"noise-{i}.jpg", start + noise.randbytes(2000), BAD if start in (b"\x89PNG\r\n\x1a\n",) else EITHER


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    for width, height in [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (100_000_000, 1), (1, 70_000), (0, 0)]:
        yield f"bomb-{width}x{height}.png", _png(width, height), BAD
    side = struct.pack(">HH", 30_000, 30_000)
    jpeg = originals()["jpg"]
    at = jpeg.index(b"\xff\xc0") + 5
    yield "bomb.jpg", jpeg[:at] + side + jpeg[at + 4 :], BAD
    gif = originals()["gif"]
    yield "bomb-screen.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:], BAD
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    yield "bomb-frame.gif", gif[:frame] + struct.pack("<HH", 65_535, 65_535) + gif[frame + 4 :], BAD
    bmp = originals()["bmp"]
    yield "bomb.bmp", bmp[:18] + struct.pack("<ii", 30_000, 30_000) + bmp[26:], BAD
    yield "bomb.ppm", b"P6 30000 30000 255\n" + b"\0" * 100, BAD
    yield "digits.ppm", b"P6 " + b"9" * 100_000 + b" 1 255\n", BAD
    yield "bomb-text.png", _png(4, 4, [(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8))]), EITHER
    # As large as is allowed, and nothing behind it: what is reserved for it must not stay.
    for i in range(5):
        yield f"hollow-{i}.png", _png(7_800, 7_800 - i), BAD


def _png(width: int, height: int, chunks: list[tuple[bytes, bytes]] = ()) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    joined = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(joined)


def _truncated() -> Iterator[tuple[str, bytes, str]]:
    for suffix, content in originals().items():
        for cut in [1, 2, 4, 8, 12, 20, 30, len(content) // 4, len(content) // 2, len(content) * 9 // 10]:
            # The first frame of an animation may well be whole.
            yield f"cut-{cut}.{suffix}", content[:cut], EITHER if suffix == "animated.gif" else BAD
        yield f"cut-last.{suffix}", content[:-1], EITHER


def _fuzzed() -> Iterator[tuple[str, bytes, str]]:
    noise = random.Random(0)
    for suffix, content in originals().items():
        for i in range(12):
            fuzzed = bytearray(content)
            for _ in range(noise.choice([1, 2, 8])):
                fuzzed[noise.randrange(min(len(fuzzed), 64 if i % 2 else len(fuzzed)))] = noise.randrange(256)
            yield f"fuzzed-{i}.{suffix}", bytes(fuzzed), EITHER
