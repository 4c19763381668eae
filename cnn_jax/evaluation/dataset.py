"""Labelled images to evaluate a classifier on: a split of the run's data, another data set, or a folder of images."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from cnn_jax import data
from cnn_jax.data import folder
from cnn_jax.data.splits import Source
from cnn_jax.errors import UserError
from cnn_jax.inference import Classifier
from cnn_jax.utils import progress

SPLITS = ("train", "validation", "test")
CHUNK = 512  # images decoded at once; bounds the memory and does not affect the result


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images with labels in the classes of a classifier.

    Attributes:
      name: the name of the data set.
      directory: its folder; empty for the default folder of its library.
      split: one of `SPLITS`, or "all" for a whole folder.
      own: whether they are a split of the run's own data set, divided as in training.
      source: the source of the images.
      indices: their positions in the source.
      labels: one per image: the column of its class in the classifier's probabilities.
    """

    name: str
    directory: str
    split: str
    own: bool
    source: Source
    indices: Int[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, chosen: Int[np.ndarray, " k"] | slice) -> UInt8[np.ndarray, "k height width 3"]:
        """Decodes the images at these positions."""
        return self.source.images(self.indices[chosen])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the pixels and labels; decodes all images."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.labels).data, digest_size=16)
        for start in range(0, len(self), CHUNK):
            digest.update(np.ascontiguousarray(self.images(slice(start, start + CHUNK))).data)
        return digest.hexdigest()


def load(
    classifier: Classifier, split: str | None = None, name: str | None = None, directory: str | None = None
) -> Examples:
    """Returns the examples to evaluate on; may be empty.

    Args:
      classifier: restored from a workdir, whose configuration names the data set of training.
      split: one of `SPLITS`; None for "test", or for a whole folder that has no subfolder "test".
      name: a data set, or "folder" for images in `directory/CLASS/*`; None for the data set of training.
      directory: its folder; None for the folder in training.

    Raises:
      UserError: the data is missing or unsuitable, or has a class that the classifier lacks.
    """
    own = classifier.metadata["config"]["data"]
    if name == "folder":
        return _photographs(classifier, split, directory)
    same = name in (None, own["name"])
    if same:
        config = own | ({} if directory is None else {"dir": directory})
    else:
        # The split of the run applies to its own data set only.
        config = own | {"name": name, "dir": directory or "", "validation": 0, "train_examples": 0}
    try:
        return dataclasses.replace(of_run(config, classifier.class_names, split or "test"), own=same)
    except UserError as error:
        raise UserError(str(error).replace("--config.data.dir", "--data.dir")) from None


def of_run(config: Mapping[str, Any], class_names: Sequence[str], split: str) -> Examples:
    """Returns a split of the data set that a run is configured for; it may be empty.

    Args:
      config: `config.data` of the run.
      class_names: of its network.
      split: one of `SPLITS`.

    Raises:
      UserError: the data is missing or unsuitable, or has a class that the network lacks.
    """
    dataset = data.load(SimpleNamespace(**config))
    part = getattr(dataset, split)
    labels = match(part.labels, dataset.class_names, class_names, config["name"])
    return Examples(config["name"], config["dir"], split, True, part.source, part.indices, labels)


def _photographs(classifier: Classifier, split: str | None, directory: str | None) -> Examples:
    """Returns the images of a folder, or of its subfolder for the split."""
    if not directory:
        raise UserError("--data.name=folder needs --data.dir=DIR with images in DIR/CLASS/*.jpg.")
    root = Path(directory).expanduser()
    part = root / (split or "test")
    if part.is_dir():
        root, split = part, part.name
    elif split:
        raise UserError(f"There is no folder {part}: leave out --split to evaluate on all images in {root}/CLASS.")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: set --data.dir to one with images in DIR/CLASS/*.jpg.")
    # Accepts all folder names, so that `match` alone compares the classes with those of the classifier.
    names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    source = folder.scan(root, max(classifier.input_size), names)
    labels = match(source.labels, names, classifier.class_names, str(root))
    return Examples("folder", directory, split or "all", False, source, np.arange(len(labels)), labels)


def match(
    labels: Int32[np.ndarray, " n"], names: Sequence[str], known: Sequence[str], where: str
) -> Int32[np.ndarray, " n"]:
    """Maps labels from the classes of a data set to those of a classifier, by name.

    Names are compared without regard to case, unless the classifier has classes that differ only in case. Classes
    without images, on either side, are ignored.

    Args:
      labels: positions in `names`.
      names: the classes of the data set.
      known: the classes of the classifier.
      where: the name of the data set or folder, for the error message.

    Raises:
      UserError: there are images of a class that the classifier lacks.
    """
    folded = {name.casefold(): i for i, name in enumerate(known)}
    column = {name: i for i, name in enumerate(known)}
    to = np.array([column.get(name, folded.get(name.casefold(), -1)) for name in names], np.int32)
    unknown = [names[label] for label in np.unique(labels) if to[label] < 0]
    if unknown:
        raise UserError(
            f"{where} has images of {_some(unknown)}, which the network was not trained on: evaluate on images of its "
            f"classes ({_some(known)})."
        )
    return to[labels]


def predict(classifier: Classifier, examples: Examples, name: str = "") -> Float[np.ndarray, "n classes"]:
    """Returns log-probabilities, with a progress bar.

    Args:
      classifier: the network.
      examples: the images.
      name: of the run, for the bar.

    Raises:
      UserError: an image cannot be read; the message names the file.
    """
    results = [np.zeros((0, len(classifier.class_names)), np.float32)]
    with progress.bar() as bar:
        task = bar.add_task(
            f"{name}: {examples.split} images" if name else f"Evaluating {examples.split} images", total=len(examples)
        )
        for start in range(0, len(examples), CHUNK):
            images = examples.images(slice(start, start + CHUNK))
            results.append(classifier.score(classifier.fit(images)))
            bar.advance(task, len(images))
    return np.concatenate(results)


def _some(names: Sequence[Any], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
