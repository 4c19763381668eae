"""From splits to batches: images stay on the device, and each step gathers the examples of its row."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from cnn_jax.data.duplicates import Duplicates
from cnn_jax.data.images import Unreadable
from cnn_jax.data.order import Order
from cnn_jax.data.splits import Dataset
from cnn_jax.parallel.placement import Placement

Features = Callable[[np.ndarray, str], Float[np.ndarray, "n features"]]


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


@runtime_checkable
class Pipeline(Protocol):
    """What feeds the training steps.

    Attributes:
      shared: arrays that stay on the device; one for all seeds.
    """

    @property
    def shared(self) -> PyTree: ...  # noqa: D102

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Returns what the steps from `start` to `stop` take from the host: `[steps, ...]`, or `[steps, seeds, ...]`.

        It is a function of the seeds and the steps alone, so that a resumed run takes the same examples.
        """
        ...

    @staticmethod
    def batch(row: dict[str, Any], shared: PyTree) -> Batch:
        """Returns the batch of one step; called inside the compiled step, so it must be pure."""
        ...


@dataclasses.dataclass(frozen=True)
class Resident:
    """A `Pipeline` whose examples are all on the device; a row holds their numbers.

    Attributes:
      shared: "image" or "features", and "label", of all training examples.
      order: which examples each step takes.
      seeds: of the run; each has an order of its own.
    """

    shared: dict[str, jax.Array]
    order: Order
    seeds: Sequence[int]

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """See `Pipeline`."""
        rows = [self.order.rows(seed, start, stop) for seed in self.seeds]
        return rows[0] if len(rows) == 1 else {name: np.stack([own[name] for own in rows], 1) for name in rows[0]}

    @staticmethod
    def batch(row: dict[str, Any], shared: dict[str, Any]) -> Batch:
        """Gathers a batch of examples.

        Args:
          row: "index" int32 `[batch]` and "mask" bool `[batch]`; in training also "epoch" int32 `[batch]`.
          shared: "image" `[n, height, width, 3]` or "features" `[n, features]`, and "label" `[n]`.
        """
        batch: Any = {name: array[row["index"]] for name, array in shared.items()} | row
        return batch


class Splits:
    """The splits of a data set, on the host and on the device, each read when it is first asked for.

    Attributes:
      dataset: where they come from.
      duplicates: for each split that has been read, one line per split with which it shares images.
      fingerprint: a hash of the pixels and labels that a run learns and chooses from.
    """

    def __init__(self, dataset: Dataset, place: Placement):
        """Reads the training and the validation images, and of image files all: those to be replaced are named at once.

        Args:
          dataset: where the images come from.
          place: where the arrays go.
        """
        self.dataset, self._place = dataset, place
        self.duplicates: dict[str, list[str]] = {}
        self._seen = Duplicates()
        self._host: dict[str, dict[str, np.ndarray]] = {}
        self._images: dict[str, dict[str, jax.Array]] = {}
        self._features: dict[str, dict[str, jax.Array]] = {}
        unreadable: list[str] = []
        for split in ("train", "validation", "test") if dataset.files else ():
            try:
                self.host(split)
            except Unreadable as error:
                unreadable += error.reasons
        if unreadable:
            raise Unreadable(unreadable)
        self.fingerprint = _fingerprint({split: self.host(split) for split in ("train", "validation")})

    def host(self, split: str) -> dict[str, np.ndarray]:
        """Returns "image" uint8 `[n, height, width, 3]` and "label" int32 `[n]` of a split."""
        if split not in self._host:
            part = getattr(self.dataset, split)
            images = part.images()
            self.duplicates[split] = self._seen.add(split, part, images)
            self._host[split] = {"image": images, "label": part.labels}
        return self._host[split]

    def images(self, split: str) -> dict[str, jax.Array]:
        """Returns "image" and "label" of a split on the device."""
        if split not in self._images:
            self._images[split] = self._place.put(self.host(split), self._place.replicated)
        return self._images[split]

    def features(self, split: str, compute: Features) -> dict[str, jax.Array]:
        """Returns "features" float32 `[n, features]` and "label" of a split on the device.

        Args:
          split: which one.
          compute: from images and the name of their split to features; called once per split.
        """
        if split not in self._features:
            host = self.host(split)
            arrays = {"features": compute(host["image"], split), "label": host["label"]}
            self._features[split] = self._place.put(arrays, self._place.replicated)
        return self._features[split]

    def has_features(self, *splits: str) -> bool:
        """Whether the features of all these splits have been computed."""
        return all(split in self._features for split in splits)


def _fingerprint(arrays: dict[str, dict[str, np.ndarray]]) -> str:
    """Returns a hash of the pixels and labels that a run learns and chooses from."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
