"""On-disk cache of frozen-backbone features, keyed by a hash of all inputs."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from rich.console import Console

from cnn_jax.data.batching import pad
from cnn_jax.data.stream import Streamed, identity
from cnn_jax.errors import UserError
from cnn_jax.models.protocols import TransferNetwork
from cnn_jax.transforms.preprocess import Preprocessing
from cnn_jax.utils import files, progress

IMAGES_IN_A_FILE = 1000  # an interruption may cost so many: a minute for a large backbone on a CPU
_KEY, _UNREADABLE = "features", "unreadable"  # of the arrays in a file


class Stopped(Exception):
    """The computation was asked to stop; the features so far are on disk."""


class FeatureCache:
    """Features in files of `IMAGES_IN_A_FILE` images, in a folder named by a hash of all that they depend on.

    Attributes:
      folder: of this backbone and this preprocessing.
    """

    def __init__(
        self,
        directory: Path,
        model: TransferNetwork,
        variables: Mapping[str, PyTree],
        preprocess: Preprocessing,
        batch_size: int,
    ):
        """Finds the folder; compiles when it is first used.

        Args:
          directory: where caches are; created when something is written.
          model: a network with a method `features`, such as `cnn_jax.models.transfer.Transfer`.
          variables: of the whole network: {params, batch_stats}.
          preprocess: what is done to every image.
          batch_size: images at once. It is part of the hash, because rounding depends on it.
        """
        name = model.backbone_name
        backbone = {kind: tree.get(name, {}) for kind, tree in variables.items()}
        network = [type(model).__name__, model.network.__name__, str(np.dtype(model.dtype)), repr(preprocess)]
        self.folder = directory / fingerprint([*network, str(batch_size)], backbone)
        self._batch_size, self._num_features = batch_size, model.network.num_features
        self._variables = {kind: {name: tree} for kind, tree in backbone.items()}
        self._features = jax.jit(make_extractor(model, preprocess))

    def get(
        self,
        images: UInt8[np.ndarray, "n height width 3"] | Streamed,
        name: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> Float[np.ndarray, "n features"]:
        """Returns the features of images; computes and stores those that are not there yet.

        Args:
          images: as stored; or decoded batch by batch. Those are known by what `cnn_jax.data.stream.identity` returns,
            and which of them cannot be read is stored with the features.
          name: of the split; for folder names and progress.
          stop: asked between batches.

        Raises:
          Stopped: `stop` said so.
          UserError: the disk is full, or the folder cannot be written.
        """
        streamed = isinstance(images, Streamed)
        own = f"files-{identity(images.read.split, times=True)}" if streamed else fingerprint([], {name: images})
        folder = self.folder / f"{name}-{own}"
        starts = range(0, len(images), IMAGES_IN_A_FILE)
        stored = {start: _read(folder / f"{start:07}.npz") for start in starts}
        missing = any(found is None for found in stored.values())
        parts = [np.zeros((0, self._num_features), np.float32)]
        with _progress(f"Features of {len(images):,} {name} images", len(images), missing) as advance:
            for start, found in stored.items():
                end = min(start + IMAGES_IN_A_FILE, len(images))
                if found is None:
                    features = self._compute(_batches(images, self._batch_size, start, end), stop, advance)
                    arrays = {_KEY: features}
                    if streamed and (unreadable := [each for each in images.unreadable if start <= each < end]):
                        arrays[_UNREADABLE] = np.array(unreadable)
                    _write(folder / f"{start:07}.npz", arrays)
                else:
                    features = found[_KEY]
                    if streamed:
                        images.read.note(found.get(_UNREADABLE, ()))
                    advance(end - start)
                parts.append(features)
        return np.concatenate(parts)

    def _compute(
        self, batches: Iterator[np.ndarray], stop: Callable[[], bool], advance: Callable[[int], Any]
    ) -> np.ndarray:
        found = []
        for batch in batches:
            if stop():
                raise Stopped
            features = self._features(self._variables, pad(batch, self._batch_size))
            found.append(np.asarray(features)[: len(batch)])
            advance(len(batch))
        return np.concatenate(found)


def make_extractor(model: TransferNetwork, preprocess: Preprocessing) -> Callable[[PyTree, Any], Any]:
    """Returns a function from variables of the backbone and stored images to features, float32 `[n, features]`."""
    return lambda variables, images: model.apply(variables, preprocess(images), method="features")


def _batches(images: np.ndarray | Streamed, size: int, start: int, stop: int) -> Iterator[np.ndarray]:
    if isinstance(images, Streamed):
        return images.batches(size, start, stop)
    return (images[first : min(first + size, stop)] for first in range(start, stop, size))


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is no such file, or it is damaged: the archive holds a checksum."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in archive} if _KEY in archive else None
    except Exception:  # what damage raises depends on the byte it hit
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise UserError(
            f"Cannot store features in {path.parent}: {error.strerror}. Free space or rights there, or take another "
            "--config.features.dir."
        ) from None


def fingerprint(words: Iterable[str], tree: Mapping[str, Any]) -> str:
    """Returns a hash of words and of the paths, shapes, types and values of arrays."""
    digest = hashlib.blake2b(json.dumps(list(words)).encode(), digest_size=10)
    for name, leaf in sorted(flax.traverse_util.flatten_dict(tree, sep="/").items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype} ".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _progress(label: str, total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """Yields a function that advances the progress bar; without a terminal, prints one line instead."""
    console = Console(stderr=True)
    if shown and not console.is_terminal:
        console.print(f"{label}: computed once", highlight=False)
    with progress.bar(shown=shown) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
