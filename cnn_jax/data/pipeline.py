"""From splits to batches: images stay on the device, and each step gathers those of its row, or they are streamed."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cnn_jax.data.duplicates import Duplicates
from cnn_jax.data.images import Unreadable
from cnn_jax.data.order import Order, Orders
from cnn_jax.data.splits import Dataset, Split
from cnn_jax.data.stream import Choose, Reader, Streamed, budget, identity
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Rows
from cnn_jax.workdir.provenance import FILES

UNREADABLE = "unreadable"  # in the records
SPLITS = ("train", "validation", "test")

Features = Callable[[Any, str], Float[np.ndarray, "n features"]]


class Batch(TypedDict):
    """What the steps take: stored images or features, labels, and a mask that is false where an example is padding.

    Evaluation and metrics skip padding. The train step does so in part: its loss is the mean over the real examples,
    but BatchNorm's batch statistics, and so every output and gradient, include the padding. The training batches of a
    run are always full (see `cnn_jax.data.order.Order`).
    """

    image: NotRequired[UInt8[Array, "batch height width 3"]]
    features: NotRequired[Float[Array, "batch features"]]
    label: Int[Array, " batch"]
    mask: Bool[Array, " batch"]
    index: NotRequired[Int[Array, " batch"]]  # each example's number in its split
    epoch: NotRequired[Int[Array, " batch"]]  # the epoch of training it belongs to, counted from 0


def gather(row: dict[str, Any], shared: dict[str, Any]) -> Batch:
    """Returns the batch of one step; called inside the compiled step.

    Args:
      row: "index" int32 `[batch]` and "mask" bool `[batch]`; in training also "epoch" int32 `[batch]`. Of streamed
        images also "image" `[batch, height, width, 3]` and "label" `[batch]`.
      shared: "image" `[n, height, width, 3]` or "features" `[n, features]`, and "label" `[n]`; of streamed images
        nothing.
    """
    batch: Any = {name: array[row["index"]] for name, array in shared.items()} | row
    return batch


@runtime_checkable
class Examples(Protocol):
    """The examples of a split, from which compiled steps take batches: `Resident` or `Streamed`.

    Attributes:
      shared: arrays that stay on the device; one for all seeds.
      unreadable: the positions of images that cannot be read, as far as that is known.
    """

    @property
    def shared(self) -> dict[str, jax.Array]: ...  # noqa: D102

    @property
    def unreadable(self) -> Sequence[int]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def rows(self, choose: Choose, start: int, stop: int, *, train: bool) -> Rows:
        """Returns what the steps from `start` to `stop` take from the host.

        Args:
          choose: which examples each step takes.
          start: the first step.
          stop: the step after the last.
          train: whether another image stands for one that cannot be read; otherwise that one is masked.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Resident:
    """Examples that are all on the device; a row holds their numbers.

    Attributes:
      shared: "image" or "features", and "label", of all examples.
      unreadable: the positions of images for which others stand.
    """

    shared: dict[str, jax.Array]
    unreadable: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.shared["label"])

    def rows(self, choose: Choose, start: int, stop: int, *, train: bool) -> dict[str, np.ndarray]:
        """See `Examples`."""
        rows = choose(start, stop)
        if train or not self.unreadable:
            return rows
        return rows | {"mask": rows["mask"] & ~np.isin(rows["index"], self.unreadable)}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What feeds the training steps.

    Attributes:
      examples: of the training split.
      order: which examples each step takes.
      seeds: of the run; each has an order of its own.
    """

    examples: Examples
    order: Order
    seeds: Sequence[int]

    batch = staticmethod(gather)

    @property
    def shared(self) -> dict[str, jax.Array]:
        """The arrays that stay on the device; one for all seeds."""
        return self.examples.shared

    def rows(self, start: int, stop: int) -> Rows:
        """Returns what the steps from `start` to `stop` take from the host, of one seed or with a seed axis.

        It is a function of the seeds and the steps alone, so that a resumed run takes the same examples.
        """
        return self.examples.rows(Orders(self.order, self.seeds), start, stop, train=True)


class Splits:
    """The splits of a data set, each held in memory and on the device when it is first asked for, or streamed.

    Attributes:
      dataset: where they come from.
      streamed: whether images are decoded while the steps run.
      remarks: lines on how they are read.
      duplicates: for each split that has been read, one line per split with which it shares images; of streamed splits
        this is not known.
      fingerprint: a hash of what a run learns and chooses from: pixels and labels, or of streamed images `FILES` and
        what `cnn_jax.data.stream.identity` returns.
    """

    def __init__(
        self, dataset: Dataset, place: Placement, *, stream: str = "auto", memory: float = 0.0, skip: bool = False
    ):
        """Reads the training and the validation images, and of image files all: those to be replaced are named at once.

        Of streamed images only the first is read.

        Args:
          dataset: where the images come from.
          place: where the arrays go.
          stream: `config.data.stream`.
          memory: `config.data.memory`.
          skip: whether another image stands for one that cannot be read.
        """
        self.dataset, self._place = dataset, place
        self.duplicates: dict[str, list[str]] = {}
        self.remarks: list[str] = []
        self._seen = Duplicates()
        self._read = {split: Reader(getattr(dataset, split), skip) for split in SPLITS}
        self._host: dict[str, dict[str, np.ndarray]] = {}
        self._examples: dict[str, Resident | Streamed] = {}
        self._features: dict[str, Resident] = {}
        self._image_shape = _image_shape(dataset.train)
        self.streamed = self._must_stream(stream, memory)
        if self.streamed:
            parts = [identity(getattr(dataset, split), times=False) for split in SPLITS[:2]]
            self.fingerprint = FILES + "-".join(parts)
            return
        unreadable: list[str] = []
        for split in SPLITS if dataset.files else ():
            try:
                self.host(split)
            except Unreadable as error:
                unreadable += error.reasons
        if unreadable:
            raise Unreadable(unreadable)
        self.fingerprint = _fingerprint({split: self.host(split) for split in SPLITS[:2]})

    def first(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Returns the first training images, as many as there are."""
        if self.streamed:
            return self._read["train"](np.arange(min(count, len(self.dataset.train))))
        return self.host("train")["image"][:count]

    def host(self, split: str) -> dict[str, np.ndarray]:
        """Returns "image" uint8 `[n, height, width, 3]` and "label" int32 `[n]` of a split that is not streamed."""
        if split not in self._host:
            part, read = getattr(self.dataset, split), self._read[split]
            images = part.images(read if read.skip else None)
            self.duplicates[split] = self._seen.add(split, part, images, read.unreadable)
            self._host[split] = {"image": images, "label": read.labels(np.arange(len(part)))}
        return self._host[split]

    def examples(self, split: str) -> Resident | Streamed:
        """Returns the images of a split as the steps take them."""
        if split not in self._examples:
            read = self._read[split]
            if self.streamed:
                self.duplicates[split] = []
                self._examples[split] = Streamed(read, self._image_shape, self._place)
            else:
                self._examples[split] = Resident(self._place.put_examples(self.host(split)), read.unreadable)
        return self._examples[split]

    def features(self, split: str, compute: Features) -> Resident:
        """Returns the features of a split as the steps take them.

        Args:
          split: which one.
          compute: from images, an array or `Streamed`, and the name of their split to features; called once per split.
        """
        if split not in self._features:
            images: Any = self.examples(split) if self.streamed else self.host(split)["image"]
            features, read = compute(images, split), self._read[split]
            arrays = {"features": features, "label": read.labels(np.arange(len(features)))}
            self._features[split] = Resident(self._place.put_examples(arrays), read.unreadable)
        return self._features[split]

    def count_unreadable(self, split: str) -> dict[str, int]:
        """Returns how many images of a split cannot be read, as far as that is known, by its name in the records."""
        unreadable = self._read[split].unreadable
        return {UNREADABLE: len(unreadable)} if unreadable else {}

    def has_features(self, *splits: str) -> bool:
        """Whether the features of all these splits have been computed."""
        return all(split in self._features for split in splits)

    def _must_stream(self, stream: str, memory: float) -> bool:
        count = sum(len(getattr(self.dataset, split)) for split in SPLITS)
        size, most = count * math.prod(self._image_shape), budget(memory, self._place)
        streamed = stream == "always" or (stream == "auto" and size > most)
        if streamed:
            why = f", more than config.data.memory allows ({most / 1e9:.3g} GB)" if size > most else ""
            self.remarks.append(
                f"Images are decoded while the network trains: together they would take {size / 1e9:.3g} GB{why}."
            )
        return streamed


def _image_shape(split: Split) -> tuple[int, ...]:
    """Returns height, width and channels of the first image of a split that can be read; all have the same."""
    for position in range(len(split)):
        with contextlib.suppress(UserError):
            return split.source.images(split.indices[position : position + 1]).shape[1:]
    return split.images().shape[1:]  # raises, naming all


def _fingerprint(arrays: dict[str, dict[str, np.ndarray]]) -> str:
    """Returns a hash of the pixels and labels that a run learns and chooses from."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
