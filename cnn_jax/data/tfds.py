"""Data sets of tensorflow-datasets (tfds), read without TensorFlow from array_record files."""

import difflib
import functools
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cnn_jax.data import cifar10
from cnn_jax.data.splits import EncodedSource
from cnn_jax.errors import UserError


def load(name: str, directory: str, image_size: int) -> tuple[EncodedSource, EncodedSource | None]:
    """Returns the training images of a tfds data set and, if it has a test split, the test images.

    Args:
      name: an image-classification data set of tfds; CIFAR-10 is downloaded and prepared on first use.
      directory: the data directory of tfds; empty for `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      image_size: if the images differ in size, they are cropped to a centred square and resized to this side.

    Raises:
      UserError: there is no such data set, it is not prepared as array_record, or not for image classification.
    """
    builder = _builder(name, directory)
    image_key, label_key = _keys(name, builder.info)
    differ = None in builder.info.features[image_key].shape
    if differ and not image_size:
        raise UserError(
            f"The images of {name} differ in size: set config.data.image_size to the side in pixels to resize them to."
        )
    splits = builder.info.splits
    # If the labels of the test split are not public, tfds has the split that papers report on as "validation".
    test = next((split for split in ("test", "validation") if split in splits), None)
    read = functools.partial(_read, builder, image_key, label_key, image_size if differ else 0)
    return read("train"), read(test) if test else None


def _read(builder: tfds.core.DatasetBuilder, image_key: str, label_key: str, size: int, split: str) -> EncodedSource:
    """Returns the records of a split, with encoded images."""
    try:
        records = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
        examples = records.__getitems__(list(range(len(records))))
    except Exception as error:  # array_record has many errors for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{builder.data_path} cannot be read ({reason}): remove it and prepare it again.") from None
    labels = np.array([example[label_key] for example in examples], np.int32)
    if (labels < 0).any():
        raise UserError(f"The labels in the split {split!r} of {builder.name} are not public: it cannot be evaluated.")
    return EncodedSource(
        class_names=tuple(builder.info.features[label_key].names),
        labels=labels,
        items=[example[image_key] for example in examples],
        names=[f"{builder.data_path}, {split} example {i}" for i in range(len(examples))],
        size=size,
    )


def _builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
    directory = str(Path(directory).expanduser().absolute()) if directory else None
    try:
        builder = tfds.builder(name, data_dir=directory, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(
            name, ["digits", "folder", *tfds.list_builders(with_community_datasets=False)], 3
        )
        hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog."
        raise UserError(f"config.data.name is {name!r}, which is not a data set: {hint}") from None
    except Exception as error:  # a builder may import any package, often TensorFlow
        raise UserError(f"tfds cannot open the data set {name!r}: {str(error).splitlines()[0]}") from None
    if not builder.is_prepared():
        if name == "cifar10":
            return cifar10.prepare(directory)
        raise UserError(
            f"{name} is not prepared in {builder.data_path}. Prepare it once where TensorFlow is installed (`pip "
            f"install 'cnn_jax[tensorflow]'`): python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
            f"data_dir={directory!r}, file_format='array_record').download_and_prepare()\"; "
            "or point --config.data.dir at it."
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        how = "" if name == "cifar10" else " and prepare it there with file_format='array_record'"
        raise UserError(
            f"{builder.data_path} is prepared as {builder.info.file_format.value}, which cannot be read without "
            f"TensorFlow. Keep it, and set --config.data.dir to another folder for an array_record copy{how}."
        )
    return builder


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Returns the keys of the image and the label in a record."""
    features, keys = dict(info.features), info.supervised_keys
    if (
        not keys
        or len(keys) != 2
        or not isinstance(features.get(keys[0]), tfds.features.Image)
        or not isinstance(features.get(keys[1]), tfds.features.ClassLabel)
        or "train" not in info.splits
    ):
        raise UserError(
            f"{name} is not a data set for image classification: its records are not an image with one class label."
        )
    return keys
