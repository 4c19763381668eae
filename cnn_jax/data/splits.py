"""What every data set is made of: sources of images at random access, and splits of them."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from cnn_jax.data import images
from cnn_jax.errors import UserError
from cnn_jax.utils import progress

TEST_SHARE = 0.2  # of a data set that comes without a test split


@runtime_checkable
class Source(Protocol):
    """Labelled images at random access."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions."""

    def name(self, index: int) -> str:
        """Returns what to call the image at a position."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are an array already."""

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    array: UInt8[np.ndarray, "n height width 3"]

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions."""
        return self.array[indices]

    def name(self, index: int) -> str:
        """Returns what to call the image at a position."""
        return f"example {index}"


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """Image files or encoded bytes, decoded when they are asked for.

    Attributes:
      class_names: one a class.
      labels: one an image.
      items: a path or encoded bytes an image.
      names: what to call each image in a message.
      size: side of the centred square that every image is made into; 0 where all have the same size.
    """

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    items: Sequence[Any]
    names: Sequence[str]
    size: int

    def images(self, indices: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images at these positions.

        Raises:
          UserError: an image cannot be read; it names the file.
        """
        if not len(indices):
            return self._decode(0)[None][:0]
        # Files wait for the disk and are large enough to decode beside each other; small bytes in memory are neither.
        workers = 1 if isinstance(self.items[0], bytes) else os.cpu_count()
        with ThreadPoolExecutor(workers) as pool:
            decoded = pool.map(self._decode, indices.tolist()) if workers > 1 else map(self._decode, indices.tolist())
            with progress.bar(shown=len(indices) >= 1000) as bar:
                return np.stack(list(bar.track(decoded, len(indices), description="Decoding images")))

    def name(self, index: int) -> str:
        """Returns what to call the image at a position."""
        return self.names[index]

    def _decode(self, index: int) -> np.ndarray:
        item, name = self.items[index], self.names[index]
        if self.size:
            return images.read(item, self.size, self.size, name=name)
        return np.asarray(images.decode(item, name))


@dataclasses.dataclass(frozen=True)
class Split:
    """Some images of a source, in the source's order."""

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """One class index an image."""
        return self.source.labels[self.indices]

    def images(self) -> UInt8[np.ndarray, "n height width 3"]:
        """Decodes all images of the split."""
        return self.source.images(self.indices)

    def name(self, position: int) -> str:
        """Returns what to call the image at a position of the split."""
        return self.source.name(int(self.indices[position]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, cut into splits.

    Attributes:
      name: as in `config.data.name`.
      class_names: the position of a name is the label.
      train: what is learned from.
      validation: what choices are made on; may be empty.
      test: what is scored once.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def describe(self) -> str:
        """One line for people."""
        sizes = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in ("train", "validation", "test"))
        return f"{self.name}: {len(self.class_names)} classes; images: {sizes}"


def cut(name: str, train: Source, test: Source | None, config: Any) -> Dataset:
    """Cuts validation, and a test split where there is none, out of the training images; all stratified and seeded.

    Args:
      name: of the data set.
      train: the source of the training images.
      test: the source of the test images, or None: a fifth of the training images then.
      config: `validation` (a fraction, or a count; 0 for none), `train_examples` (0 for all) and `split_seed`.

    Raises:
      UserError: fewer images than asked for.
    """
    pool = np.arange(len(train.labels))

    def take(count: int, what: str, draw: int) -> np.ndarray:
        nonlocal pool
        if count > len(pool):
            raise UserError(f"{what} asks for {count:,} images, but {name} has only {len(pool):,} left to take from.")
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
    splits = {
        "train": Split(train, pool),
        "validation": Split(train, validation),
        "test": Split(test, test_indices),
    }
    for split in ("train", "test"):
        if not len(splits[split]):
            raise UserError(f"The {split} split of {name} is empty: lower config.data.validation or add images.")
    return Dataset(name, train.class_names, **splits)


def stratified(
    labels: Int32[np.ndarray, " n"], pool: Int[np.ndarray, " m"], count: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` of `pool` so that every class has its share, to within one image.

    Args:
      labels: the class of every image of the source.
      pool: the positions to draw from.
      count: how many to draw.
      seed: of the draw.

    Returns:
      The drawn positions and the others, each in ascending order.
    """
    classes, sizes = np.unique(labels[pool], return_counts=True)
    exact = count * sizes / max(len(pool), 1)
    quota = np.floor(exact).astype(int)
    # What rounding down left over goes to the classes that lost most by it; of equals, to the first.
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    generator = np.random.RandomState(seed)
    drawn = [generator.permutation(pool[labels[pool] == label])[:n] for label, n in zip(classes, quota)]
    chosen = np.sort(np.concatenate(drawn)) if drawn else pool[:0]
    return chosen, np.setdiff1d(pool, chosen, assume_unique=True)
