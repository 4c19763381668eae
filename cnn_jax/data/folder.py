"""Folders of photographs: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*` with a seeded split."""

from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.data import images
from cnn_jax.data.splits import EncodedSource
from cnn_jax.errors import UserError
from cnn_jax.utils import text

_LAYOUT = "DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg, or DIR/CLASS/*.jpg"


def load(config: Any) -> tuple[EncodedSource, EncodedSource | None]:
    """Returns the training images and, if there is a folder "test", the test images.

    Photographs differ in size, so each is cropped to a centred square and resized on access.

    Args:
      config: `dir`, the folder, and `image_size`, the side of the squares in pixels.

    Raises:
      UserError: there is no such folder, it has no images or fewer than two classes, or the test images have a class
        that the training images lack.
    """
    if not config.dir:
        raise UserError(f"The data set 'folder' needs --config.data.dir=DIR, with {_LAYOUT}.")
    if not config.image_size:
        raise UserError(
            "Photographs differ in size: set config.data.image_size to the side in pixels to resize them to."
        )
    root = Path(config.dir).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: set --config.data.dir to one with {_LAYOUT}.")
    if not (root / "train").is_dir():
        return scan(root, config.image_size), None
    train = scan(root / "train", config.image_size)
    test = scan(root / "test", config.image_size, train.class_names) if (root / "test").is_dir() else None
    return train, test


def scan(root: Path, size: int, class_names: tuple[str, ...] | None = None) -> EncodedSource:
    """Returns the images of `root/CLASS/*`, including subfolders, as squares of `size` pixels.

    Args:
      root: the folder.
      size: the side of the squares.
      class_names: the allowed classes; None for the names of the folders.

    Raises:
      UserError: there are no images, a class is not in `class_names`, or without them there are fewer than two classes.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: images.in_folder(folder) for folder in folders}
    remarks = _remarks(root, [name for name, paths in files.items() if not paths])
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        found = " ".join(remarks)
        raise UserError(f"No images in {root}: put them into one folder per class, as in {_LAYOUT}. {found}".rstrip())
    if class_names is None:
        if len(files) < 2:
            raise UserError(
                f"{root} has images of one class only ({next(iter(files))}): add a folder for another class. "
                + " ".join(remarks)
            )
        class_names = tuple(files)
    for name in files:
        if name not in class_names:
            raise UserError(f"{root / name}: the training images have no class {name!r}; they have {class_names}.")
    items = [(path, class_names.index(name)) for name, paths in files.items() for path in paths]
    paths, labels = zip(*items)
    return EncodedSource(class_names, np.array(labels, np.int32), paths, [str(path) for path in paths], size, remarks)


def _remarks(root: Path, empty: list[str]) -> tuple[str, ...]:
    """Returns lines on the folders without images and on the files that are no images."""
    others, lines = images.others_in_folder(root), []
    heic = sum(number for extension, number in others.items() if extension in images.HEIC)
    if heic:
        lines.append(
            f"{text.count(heic, 'HEIC photograph')} in {root} {'is' if heic == 1 else 'are'} left out: to read them, "
            "pip install 'cnn_jax[heic]'."
        )
    rest = {extension: number for extension, number in others.items() if extension not in images.HEIC}
    if rest:
        kinds = ", ".join(f"{extension} ({number:,})" for extension, number in sorted(rest.items())[:8])
        lines.append(f"{text.count(sum(rest.values()), 'other file')} in {root}, ignored: {kinds}.")
    if empty:
        lines.append(f"Folders without images in {root}, which are no classes: {', '.join(empty)}.")
    return tuple(lines)
