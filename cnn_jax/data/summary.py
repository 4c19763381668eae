"""What is worth knowing about a data set before a network is trained on it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cnn_jax.data import images
from cnn_jax.data.splits import Dataset, EncodedSource
from cnn_jax.errors import UserError

_SPLITS = {"train": "training", "validation": "validation", "test": "test"}
_LISTED = 20  # classes
_IMBALANCED = 2.0


def describe(dataset: Dataset, skip: bool = False) -> list[str]:
    """Returns lines on classes, splits and what is unusual; of a folder also on its files, whose headers are read.

    Args:
      dataset: the data.
      skip: whether files that are no images are left out.

    Raises:
      UserError: some files are no images, and `skip` is false; the message names all of them.
    """
    names = dataset.class_names
    counts = {split: np.bincount(getattr(dataset, split).labels, minlength=len(names)) for split in _SPLITS}
    lines = [dataset.describe()]
    if dataset.files:
        lines += [_per_class(names, counts), _sizes(dataset, skip), *_remarks(dataset)]
    return lines + _imbalance(names, counts["train"]) + _missing(names, counts)


def _per_class(names: tuple[str, ...], counts: dict[str, np.ndarray]) -> str:
    rows = [f"{name} {', '.join(map(str, row))}" for name, *row in zip(names, *counts.values())]
    more = f"; and {len(rows) - _LISTED} more classes" if len(rows) > _LISTED else ""
    return f"Images per class ({', '.join(_SPLITS.values())}): {'; '.join(rows[:_LISTED])}{more}"


def _imbalance(names: tuple[str, ...], train: np.ndarray) -> list[str]:
    large, small = int(train.argmax()), int(np.where(train > 0, train, train.max()).argmin())
    ratio = train[large] / train[small]
    if ratio < _IMBALANCED:
        return []
    return [
        f"{names[large]} has {ratio:.1f} times as many training images as {names[small]}: "
        "--config.data.class_weights=balanced weights them equally in the loss."
    ]


def _missing(names: tuple[str, ...], counts: dict[str, np.ndarray]) -> list[str]:
    lines = []
    for split, meaning in (
        ("train", "nothing is learned of them"),
        ("validation", "the macro averages of this split leave them out, unless they are predicted"),
        ("test", "the macro averages of this split leave them out, unless they are predicted"),
    ):
        without = [name for name, count in zip(names, counts[split]) if not count]
        if without and len(without) < len(names):
            more = f" and {len(without) - _LISTED} more" if len(without) > _LISTED else ""
            lines.append(f"Classes without {_SPLITS[split]} images: {', '.join(without[:_LISTED])}{more}; {meaning}.")
    return lines


def _sizes(dataset: Dataset, skip: bool) -> str:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_size, dataset.files))
    reasons = [each for each in found if isinstance(each, str)]
    if reasons and not skip:
        raise images.Unreadable(reasons)
    sizes = np.array([each for each in found if not isinstance(each, str)])
    order = np.argsort(sizes.prod(1), kind="stable")
    smallest, median, largest = (" x ".join(map(str, sizes[order[at]])) for at in (0, len(order) // 2, -1))
    line = f"Sizes in pixels, as stored: {smallest} to {largest}, median {median}"
    side = dataset.train.source.size if isinstance(dataset.train.source, EncodedSource) else 0
    few = int((sizes.min(1) < side).sum())
    return line + (f"; {few:,} are enlarged to {side} x {side}" if few else "")


def _size(file: Path) -> tuple[int, int] | str:
    """Returns width and height, or why they cannot be read."""
    try:
        return images.size(file)
    except UserError as error:
        return str(error)


def _remarks(dataset: Dataset) -> list[str]:
    sources = (dataset.train.source, dataset.test.source)
    return list(dict.fromkeys(line for each in sources if isinstance(each, EncodedSource) for line in each.remarks))
