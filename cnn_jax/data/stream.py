"""Images that are decoded while the steps run, for data sets that do not fit in memory.

Threads of the standard library decode the batches ahead. Grain does the same with more parts, and its state, a
position, is not needed where the examples of a step are a function of the step. `scripts/streams.py --only=grain`
compares their speed.
"""

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jaxtyping import Int, Int32, UInt8

from cnn_jax.data.splits import EncodedSource, Split
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Stream
from cnn_jax.utils.memory import total_memory

AHEAD = 2  # batches that are decoded while the steps run
SHARE = 0.25  # of the machine's memory, for decoded images: they are held twice, on the host and on the device
PIECE = 256  # images decoded at once where a whole split is read

# (start, stop) -> "index" and "mask" of the steps from `start` to `stop`, `[steps, batch]` or `[steps, seeds, batch]`,
# and perhaps more of that shape.
Choose = Callable[[int, int], dict[str, np.ndarray]]
_T = TypeVar("_T")
_R = TypeVar("_R")


def budget(gigabytes: float, place: Placement) -> float:
    """Returns up to how many bytes of decoded images are held in memory.

    Args:
      gigabytes: `config.data.memory`; 0 for `SHARE` of the memory of this machine.
      place: whose devices must hold them too.
    """
    return min(gigabytes * 1e9 or SHARE * total_memory(), place.room)


class Reader:
    """Reads images of a split; of those that cannot be read, it can take the next one of the split instead.

    Attributes:
      split: the images.
      skip: whether it does so; otherwise it raises.
    """

    def __init__(self, split: Split, skip: bool):
        """Reads nothing yet."""
        self.split, self.skip = split, skip
        self._unreadable: set[int] = set()

    @property
    def unreadable(self) -> list[int]:
        """The positions of the images that could not be read, so far."""
        return sorted(self._unreadable)

    def note(self, positions: Iterable[int] | Int[np.ndarray, " k"]) -> None:
        """Notes images that could not be read earlier."""
        self._unreadable.update(map(int, positions))

    def used(self, positions: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
        """Returns the positions of the images that stand for these: themselves, or the next one that can be read."""
        return np.array([self._next(each) for each in positions.tolist()], np.int64) if self._unreadable else positions

    def labels(self, positions: Int[np.ndarray, " k"]) -> Int32[np.ndarray, " k"]:
        """Returns the labels of the images that stand for these."""
        return self.split.source.labels[self.split.indices[self.used(positions)]]

    def __call__(self, positions: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        """Returns the images that stand for these.

        Raises:
          UserError: images cannot be read; the message names them.
        """
        try:
            return self._read(self.used(positions))
        except UserError as error:
            if not self.skip:
                raise UserError(f"{error} Or leave it out with --config.data.on_bad_image=skip.") from None
        return np.concatenate([self._read_one(position) for position in positions.tolist()])

    def _read(self, positions: np.ndarray) -> np.ndarray:
        return self.split.source.images(self.split.indices[positions])

    def _read_one(self, position: int) -> np.ndarray:
        while True:
            position = self._next(position)
            try:
                return self._read(np.array([position]))
            except UserError as error:
                if position not in self._unreadable:  # by another thread
                    logging.warning("Skipped: %s", error)
                self._unreadable.add(position)

    def _next(self, position: int) -> int:
        following = itertools.chain(range(position, len(self.split)), range(position))
        found = next((each for each in following if each not in self._unreadable), None)
        if found is None:
            raise UserError(f"None of the {len(self.split):,} images of a split can be read.")
        return found


class Streamed:
    """The examples of a split, decoded while the steps run; a row holds the images themselves.

    Attributes:
      shared: nothing.
      read: reads the images.
    """

    def __init__(self, read: Reader, image_shape: tuple[int, ...], place: Placement):
        """Decodes nothing yet.

        Args:
          read: reads the images.
          image_shape: of each of them.
          place: says which part of each batch this process decodes.
        """
        self.shared: dict[str, jax.Array] = {}
        self.read = read
        self._image_shape, self._place = image_shape, place
        self._training: tuple[Choose, int, Iterator[dict[str, np.ndarray]]] | None = None

    def __len__(self) -> int:
        return len(self.read.split)

    @property
    def unreadable(self) -> list[int]:
        """The positions of the images that could not be read, so far."""
        return self.read.unreadable

    def rows(self, choose: Choose, start: int, stop: int, *, train: bool) -> Stream:
        """Returns the rows of the steps from `start` to `stop`: "image", "label" and what `choose` returns.

        Args:
          choose: which examples each step takes.
          start: the first step.
          stop: the step after the last.
          train: whether steps after `stop` may follow, which are decoded ahead, and another image may stand for one
            that cannot be read; otherwise that one is masked.
        """
        shape = choose(start, start + 1)["index"].shape[1:]
        shapes = {"image": jax.ShapeDtypeStruct((*shape, *self._image_shape), np.uint8)}
        shapes["label"] = jax.ShapeDtypeStruct(shape, np.int32)
        shapes |= {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in choose(start, start + 1).items()}

        def row(step: int) -> dict[str, np.ndarray]:
            return self._row(choose, step, train)

        if train:
            return Stream(shapes, lambda: self._continue(choose, row, start, stop))
        return Stream(shapes, lambda: ahead(row, range(start, stop)))

    def batches(self, size: int, start: int, stop: int) -> Iterator[UInt8[np.ndarray, "size height width 3"]]:
        """Yields the images from `start` to `stop` in batches, the last of which may be smaller."""
        return ahead(lambda first: self.read(np.arange(first, min(first + size, stop))), range(start, stop, size))

    def _row(self, choose: Choose, step: int, train: bool) -> dict[str, np.ndarray]:
        row = {name: x[0] for name, x in choose(step, step + 1).items()}
        part = self._place.part(row["index"].shape[-1])
        row = {name: x[..., part] for name, x in row.items()}
        index = row["index"].ravel()
        images, used = self.read(index), self.read.used(index)
        if not train:
            row["mask"] = row["mask"] & (used == index).reshape(row["mask"].shape)
        shape = row["index"].shape
        labels = self.read.labels(index).reshape(shape)
        return row | {"image": images.reshape(*shape, *self._image_shape), "label": labels}

    def _continue(self, choose: Choose, row: Callable[[int], Any], start: int, stop: int) -> Iterator[dict]:
        """Yields the rows from `start` to `stop`, which the iterator of the steps before may have decoded ahead."""
        training, self._training = self._training, None
        if training is None or training[:2] != (choose, start):
            training = choose, start, ahead(row, itertools.count(start))
        for _ in range(start, stop):
            yield next(training[2])
        self._training = choose, stop, training[2]


def ahead(function: Callable[[_T], _R], items: Iterable[_T], count: int = AHEAD) -> Iterator[_R]:
    """Yields the results of a function in order, while threads compute those of the next items.

    Args:
      function: thread-safe.
      items: its arguments; may be endless.
      count: how many results are computed ahead.
    """
    pool = ThreadPoolExecutor(count)
    pending: deque = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def identity(split: Split, *, times: bool) -> str:
    """Returns a hash of what identifies the images of a split without decoding them.

    Of files these are the names and sizes, of encoded bytes the lengths, and of all the labels. Images of other sources
    are read and hashed.

    Args:
      split: the images.
      times: whether a file that has been written again, or copied, counts as another; and bytes are hashed.
    """
    source = split.source
    digest = hashlib.blake2b(np.ascontiguousarray(split.labels).data, digest_size=10)
    if not isinstance(source, EncodedSource):
        for start in range(0, len(split), PIECE):
            digest.update(np.ascontiguousarray(source.images(split.indices[start : start + PIECE])).data)
        return digest.hexdigest()
    digest.update(json.dumps(source.size).encode())
    for index in split.indices.tolist():
        item = source.items[index]
        if isinstance(item, Path):
            status = os.stat(item)
            digest.update(json.dumps([item.name, status.st_size, status.st_mtime_ns if times else 0]).encode())
        else:
            digest.update(item if times else json.dumps(len(item)).encode())
    return digest.hexdigest()
