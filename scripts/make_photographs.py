"""Makes a folder of synthetic photographs, to measure training on more images than fit in memory.

    python scripts/make_photographs.py DIR [--count=20000] [--width=500] [--height=375] [--classes=10]

writes DIR/CLASS/NUMBER.jpg: JPEG of quality 90 and of the size in bytes of a photograph, each different and the same
whenever they are made. A class is a colour, so that a network can learn it. A larger folder begins with the images of a
smaller one.
"""

import argparse
import colorsys
import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(number: int, hue: float, width: int, height: int) -> bytes:
    """Returns a JPEG file: coloured fields of several sizes, with the noise of a camera."""
    generator = np.random.RandomState(number)
    grey = np.zeros((height, width), np.float32)
    for cells in (3, 8, 24, 80):
        small = generator.randint(0, 256, (cells, cells)).astype(np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        grey += np.asarray(large, np.float32) / cells**0.5
    grey = grey / grey.max() + generator.randn(height, width).astype(np.float32) * 0.02
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.5, 255), np.float32)
    pixels = np.clip(grey[..., None] * colour, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write(task: tuple[Path, int, float, int, int]) -> None:
    """Writes one file, unless it is there."""
    path, *rest = task
    if not path.exists():
        path.write_bytes(photograph(*rest))


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    for name, default in {"count": 20_000, "width": 500, "height": 375, "classes": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    tasks = []
    for number in range(options.count):
        label = number % options.classes
        folder = options.directory / f"class{label}"
        hue = label / options.classes
        tasks.append((folder / f"{number:06}.jpg", number, hue, options.width, options.height))
    for folder in {path.parent for path, *_ in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(write, tasks, chunksize=100):
            pass


if __name__ == "__main__":
    main()
