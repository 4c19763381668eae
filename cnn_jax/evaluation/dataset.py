"""Labelled images to score a classifier on: a split of the run's own data, another data set, somebody's photographs."""

import dataclasses
from collections.abc import Sequence
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
CHUNK = 512  # images decoded at once: it decides about memory, not about the result


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images and what they show.

    Attributes:
      name: of the data set.
      directory: where it is; empty for where the data set's library keeps it.
      split: one of `SPLITS`, or "all" of a folder.
      own: whether they are of the data set that the classifier was trained on, cut as in training.
      source: the images.
      indices: which images of the source.
      labels: one an image, as columns of the classifier.
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
        """Decodes some of them."""
        return self.source.images(self.indices[chosen])


def load(
    classifier: Classifier, split: str | None = None, name: str | None = None, directory: str | None = None
) -> Examples:
    """Returns the examples to score.

    Args:
      classifier: from a workdir; its configuration says what it was trained on.
      split: one of `SPLITS`; None for "test", or for all of a folder that has no such folder in it.
      name: of a data set, or "folder" for photographs in `directory/CLASS/*`; None for the run's own data.
      directory: where the data is; None for where it was in training.

    Returns:
      `Examples`, whose images may be none.

    Raises:
      UserError: the data is missing or unsuitable, or has a class that the classifier does not know.
    """
    own = classifier.metadata["config"]["data"]
    if name == "folder":
        return _photographs(classifier, split, directory)
    same = name in (None, own["name"])
    if same:
        config = own | ({} if directory is None else {"dir": directory})
    else:
        # The run's own cuts are for its own images.
        config = own | {"name": name, "dir": directory or "", "validation": 0, "train_examples": 0}
    try:
        dataset = data.load(SimpleNamespace(**config))
    except UserError as error:
        raise UserError(str(error).replace("--config.data.dir", "--data.dir")) from None
    split = split or "test"
    part = getattr(dataset, split)
    labels = match(part.labels, dataset.class_names, classifier.class_names, config["name"])
    return Examples(config["name"], config["dir"], split, same, part.source, part.indices, labels)


def _photographs(classifier: Classifier, split: str | None, directory: str | None) -> Examples:
    """A folder, whole; or the folder of a split in it."""
    if not directory:
        raise UserError("--data.name=folder needs --data.dir=DIR, with the photographs in DIR/CLASS/*.jpg.")
    root = Path(directory).expanduser()
    part = root / (split or "test")
    if part.is_dir():
        root, split = part, part.name
    elif split:
        raise UserError(f"There is no folder {part}: leave out --split to score all photographs in {root}/CLASS.")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: set --data.dir to one with photographs in DIR/CLASS/*.jpg.")
    # Every folder's name is let through here, so that they are compared with the classifier's in one place.
    names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    source = folder.scan(root, max(classifier.input_size), names)
    labels = match(source.labels, names, classifier.class_names, str(root))
    return Examples("folder", directory, split or "all", False, source, np.arange(len(labels)), labels)


def match(
    labels: Int32[np.ndarray, " n"], names: Sequence[str], known: Sequence[str], where: str
) -> Int32[np.ndarray, " n"]:
    """Translates labels from the classes of a data set to those of a classifier, by their names.

    Capitals do not matter, unless the classifier has names that differ in nothing else. A class of the classifier
    without images is fine, and so is a class of the data set.

    Args:
      labels: positions in `names`.
      names: the classes of the data set.
      known: the classes of the classifier.
      where: the data is, for the error.

    Raises:
      UserError: images of a class that the classifier does not know.
    """
    folded = {name.casefold(): i for i, name in enumerate(known)}
    column = {name: i for i, name in enumerate(known)}
    to = np.array([column.get(name, folded.get(name.casefold(), -1)) for name in names], np.int32)
    unknown = [names[label] for label in np.unique(labels) if to[label] < 0]
    if unknown:
        raise UserError(
            f"{where} has images of {_some(unknown)}, which the network does not know: score it on images of its "
            f"classes, which are {_some(known)}."
        )
    return to[labels]


def predict(classifier: Classifier, examples: Examples) -> Float[np.ndarray, "n classes"]:
    """Returns logarithms of probabilities; a bar on a terminal shows how far it is.

    Raises:
      UserError: an image cannot be read; it names the file.
    """
    results = [np.zeros((0, len(classifier.class_names)), np.float32)]
    with progress.bar() as bar:
        task = bar.add_task(f"Scoring {examples.split} images", total=len(examples))
        for start in range(0, len(examples), CHUNK):
            images = examples.images(slice(start, start + CHUNK))
            results.append(classifier.score(classifier.fit(images)))
            bar.advance(task, len(images))
    return np.concatenate(results)


def _some(names: Sequence[Any], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
