"""Sources of labelled images with random access, and their division into splits."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.utils import progress, text

_PIECE = 512  # images decoded at once where all of a split are
Read = Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k height width 3"]]

TEST_SHARE = 0.2  # of the training images, for a data set without a test split


@runtime_checkable
class Source(Protocol):
    """What a data set must offer: labelled images with random access.

    `ArraySource` (images in memory) and `EncodedSource` (files or encoded bytes) cover most data sets. A source is
    immutable, and reading it is thread-safe and deterministic: resumed runs and feature caches rely on it.

    Attributes:
      class_names: one per class; the label of a class is its position.
      labels: one per image, from 0 to the number of classes - 1.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def labels(self) -> Int32[np.ndarray, " n"]: ...  # noqa: D102

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions, RGB from 0 to 255, all of one size; `indices` may be empty.

        Raises:
          UserError: an image cannot be read; the message names it.
        """
        ...

    def name(self, index: int) -> str:
        """Returns the name of the image at a position, such as its path, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in an array in memory."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    array: UInt8[np.ndarray, "n height width 3"]

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions."""
        return self.array[indices]

    def name(self, index: int) -> str:
        """Returns the name of the image at a position."""
        return f"example {index}"


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """Image files or encoded bytes, decoded on access.

    Attributes:
      class_names: one per class.
      labels: one per image.
      items: a path or encoded bytes per image.
      names: one per image, for messages.
      size: the images are cropped to a centred square and resized to this side; 0 if all have the same size.
      remarks: lines on what is there besides these images.
    """

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    items: Sequence[Any]
    names: Sequence[str]
    size: int
    remarks: tuple[str, ...] = ()

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions.

        Raises:
          UserError: some images cannot be read; the message names all of them.
        """
        if not len(indices):
            return np.zeros((0, self.size, self.size, 3), np.uint8) if self.size else self._decode(0)[None][:0]
        # Threads pay off for files, which wait for the disk, and not for small images in memory.
        workers = 1 if isinstance(self.items[0], bytes) else os.cpu_count() or 1
        if workers > 1 and len(indices) > 1:
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(self._try_decode, indices.tolist()))
        else:
            found = [self._try_decode(index) for index in indices.tolist()]
        reasons = [each for each in found if isinstance(each, str)]
        if reasons:
            raise images.Unreadable(reasons)
        return np.stack(found)

    def name(self, index: int) -> str:
        """Returns the name of the image at a position."""
        return self.names[index]

    def _try_decode(self, index: int) -> np.ndarray | str:
        """Returns the image at a position, or why it cannot be read."""
        try:
            return self._decode(index)
        except UserError as error:
            return str(error)

    def _decode(self, index: int) -> np.ndarray:
        item, name = self.items[index], self.names[index]
        if self.size:
            return images.read(item, self.size, self.size, name=name)
        return np.asarray(images.decode(item, name))


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of the images of a source, in the order of the source."""

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """One class index per image."""
        return self.source.labels[self.indices]

    def images(self, read: Read | None = None) -> UInt8[np.ndarray, "n height width 3"]:
        """Decodes all images of the split.

        Args:
          read: from positions in the split to images; None for those of the source.

        Raises:
          UserError: some images cannot be read; the message names all of them.
        """
        read = read or (lambda positions: self.source.images(self.indices[positions]))
        positions, reasons, found = np.arange(len(self)), [], None
        with progress.bar(shown=len(self) >= 1000 and isinstance(self.source, EncodedSource)) as bar:
            # In pieces, so that no image is held twice.
            starts = range(0, max(len(self), 1), _PIECE)
            for start in bar.track(starts, len(starts), description="Decoding images"):
                try:
                    piece = read(positions[start : start + _PIECE])
                except images.Unreadable as error:
                    reasons += error.reasons
                    continue
                if found is None:
                    found = np.empty((len(self), *piece.shape[1:]), np.uint8)
                found[start : start + _PIECE] = piece
        if reasons:
            raise images.Unreadable(reasons)
        assert found is not None
        return found

    def name(self, position: int) -> str:
        """Returns the name of the image at a position of the split."""
        return self.source.name(int(self.indices[position]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, divided into splits.

    Attributes:
      name: as in `config.data.name`.
      class_names: the label of a class is its position.
      train: the training images.
      validation: the images for choosing checkpoints and hyperparameters; may be empty.
      test: the images for the final evaluation.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def files(self) -> list[Path]:
        """The image files of all splits; empty where the images come from elsewhere."""
        sources = {id(split.source): split.source for split in (self.train, self.test)}.values()
        items = [item for source in sources if isinstance(source, EncodedSource) for item in source.items]
        return [item for item in items if isinstance(item, Path)]

    def describe(self) -> str:
        """Returns one line with the number of classes and images."""
        sizes = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in ("train", "validation", "test"))
        return f"{self.name}: {len(self.class_names)} classes; images: {sizes}"


def make_splits(name: str, train: Source, test: Source | None, config: Any) -> Dataset:
    """Returns a data set whose validation split is drawn from the training images, stratified and seeded.

    Args:
      name: the name of the data set.
      train: the source of the training images.
      test: the source of the test images; None to draw `TEST_SHARE` of the training images.
      config: `validation` (a fraction, or a count; 0 for none), `train_examples` (0 for all) and `split_seed`.

    Raises:
      UserError: there are fewer images than `config` requires.
    """
    pool = np.arange(len(train.labels))

    def take(count: int, what: str, draw: int) -> np.ndarray:
        nonlocal pool
        if count > len(pool):
            raise UserError(f"{what} needs {text.count(count, 'image')}, but {name} has only {len(pool):,} left.")
        chosen, pool = stratified(train.labels, pool, count, (config.split_seed, draw))
        return chosen

    if test is None:
        test, test_indices = train, take(round(TEST_SHARE * len(pool)), "The test split", 0)
    else:
        test_indices = np.arange(len(test.labels))
    count = config.validation if config.validation > 1 else round(config.validation * len(pool))
    validation = take(int(count), "config.data.validation", 1)
    if config.train_examples:
        pool = take(config.train_examples, "config.data.train_examples", 2)
    for source in (train, test):
        _check_labels(name, source)
    splits = {
        "train": Split(train, pool),
        "validation": Split(train, validation),
        "test": Split(test, test_indices),
    }
    for split in ("train", "test"):
        if not len(splits[split]):
            raise UserError(f"The {split} split of {name} is empty: lower config.data.validation or add images.")
    return Dataset(name, train.class_names, **splits)


def _check_labels(name: str, source: Source) -> None:
    """Raises a `UserError` for a label that is no class: it would be trained on as an image of no class at all."""
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{text.count(len(wrong), 'label')} of {name} {'is' if len(wrong) == 1 else 'are'} not from 0 to "
            f"{len(source.class_names) - 1}, the first {source.labels[first]} of {source.name(first)}."
        )


def stratified(
    labels: Int32[np.ndarray, " n"], pool: Int[np.ndarray, " m"], count: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` of `pool` in proportion to the classes, to within one image per class.

    Args:
      labels: the class of every image of the source.
      pool: the positions to draw from.
      count: the number of positions to draw.
      seed: the seed of the draw.

    Returns:
      The drawn and the remaining positions, each in ascending order.
    """
    classes, sizes = np.unique(labels[pool], return_counts=True)
    exact = count * sizes / max(len(pool), 1)
    quota = np.floor(exact).astype(int)
    # Largest-remainder rounding; ties go to the first class.
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    generator = np.random.RandomState(seed)
    drawn = [generator.permutation(pool[labels[pool] == label])[:n] for label, n in zip(classes, quota)]
    chosen = np.sort(np.concatenate(drawn)) if drawn else pool[:0]
    return chosen, np.setdiff1d(pool, chosen, assume_unique=True)


def balanced_weights(labels: Int32[np.ndarray, " n"], class_names: Sequence[str]) -> tuple[float, ...]:
    """Returns images / (classes * images of the class) for each class, scikit-learn's "balanced".

    Source: King and Zeng 2001, Logistic Regression in Rare Events Data. The mean over the images is 1,
    so that the size of gradients stays what it was.

    Args:
      labels: of the training images.
      class_names: of all classes.

    Raises:
      UserError: a class has no training images.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts) if not count]
    if missing:
        raise UserError(
            f"config.data.class_weights is 'balanced', but there are no training images of {', '.join(missing)}: add "
            "some, or set it to none."
        )
    return tuple((len(labels) / (len(class_names) * counts)).tolist())
