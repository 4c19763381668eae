"""A folder of photographs: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*` and a seeded split."""

from pathlib import Path

import numpy as np

from cnn_jax.data import images
from cnn_jax.data.splits import EncodedSource
from cnn_jax.errors import UserError

_LAYOUT = "DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, or DIR/CLASS/*.jpg"


def load(directory: str, image_size: int) -> tuple[EncodedSource, EncodedSource | None]:
    """Returns the training images and, where there is a folder for them, the test images.

    Photographs differ in size, so each is made into a centred square of `image_size` pixels when it is read.

    Raises:
      UserError: no such folder, no images, fewer than two classes, test classes that training lacks.
    """
    if not directory:
        raise UserError(f"The data set 'folder' needs --config.data.dir=DIR, with {_LAYOUT}.")
    if not image_size:
        raise UserError("Photographs differ in size: set config.data.image_size to the side to make them all.")
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: set --config.data.dir to one with {_LAYOUT}.")
    if not (root / "train").is_dir():
        return scan(root, image_size), None
    train = scan(root / "train", image_size)
    test = scan(root / "test", image_size, train.class_names) if (root / "test").is_dir() else None
    return train, test


def scan(root: Path, size: int, class_names: tuple[str, ...] | None = None) -> EncodedSource:
    """Returns the images of `root/CLASS/*` as squares of `size` pixels.

    Args:
      root: the folder.
      size: side of the squares.
      class_names: what the classes must be among; None to take the folders' names.

    Raises:
      UserError: no images, or, without `class_names`, fewer than two classes.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: _images(folder) for folder in folders}
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise UserError(f"No images in {root}: put them into one folder a class, as in {_LAYOUT}.")
    if class_names is None:
        if len(files) < 2:
            raise UserError(f"{root} has images of one class only ({next(iter(files))}): add a folder for another.")
        class_names = tuple(files)
    for name in files:
        if name not in class_names:
            raise UserError(f"{root / name}: the training images have no class {name!r}; they have {class_names}.")
    items = [(path, class_names.index(name)) for name, paths in files.items() for path in paths]
    paths, labels = zip(*items)
    return EncodedSource(class_names, np.array(labels, np.int32), paths, [str(path) for path in paths], size)


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in images.EXTENSIONS and path.is_file() and not path.name.startswith(".")
    )
