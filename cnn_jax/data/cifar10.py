"""Preparation of CIFAR-10 for tfds without TensorFlow."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from cnn_jax.errors import UserError
from cnn_jax.utils.download import fetch, verify

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE = URL.rsplit("/", 1)[-1]


class Cifar10(cifar.Cifar10, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    """The builder of tfds for CIFAR-10 without TensorFlow: same name, version, features, keys and order of examples.

    The builder of tfds extracts the archive and encodes arrays with TensorFlow. This one reads the archive with
    `tarfile` and yields encoded PNG files, which are lossless and stored unchanged.
    """

    name = "cifar10"
    archive: Path

    def _split_generators(self, dl_manager):
        del dl_manager  # it would extract the archive with TensorFlow
        info = self._cifar_info
        with tarfile.open(self.archive) as archive:
            text = _read(archive, info.prefix + info.label_files[0]).decode()
        self.info.features["label"].names = text.split()
        return {
            "train": self._generate_examples("train_", info.train_files),
            "test": self._generate_examples("test_", info.test_files),
        }

    def _generate_examples(self, split_prefix: str, filepaths: list[str]) -> Iterator[tuple[int, dict]]:
        index = 0
        with tarfile.open(self.archive) as archive:
            for path in filepaths:
                rows = np.frombuffer(_read(archive, self._cifar_info.prefix + path), np.uint8)
                for row in rows.reshape(-1, 1 + 3 * 32 * 32):
                    image = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                    yield (
                        index,
                        {"id": f"{split_prefix}{index:05d}", "image": _png(image), "label": int(row[0])},
                    )
                    index += 1


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file  # None for a folder
    return file.read()


def prepare(directory: str | None) -> tfds.core.DatasetBuilder:
    """Downloads CIFAR-10, unless its archive exists, and prepares it as array_record.

    Args:
      directory: the data directory of tfds; None for its default. An existing archive is found there, in `downloads`
        and in `downloads/manual`, the folder of tfds for manual downloads.

    Raises:
      UserError: the network fails, a checksum differs, or the directory is not writable.
    """
    builder = Cifar10(data_dir=directory, file_format="array_record")
    root = Path(builder.data_path).parents[1]
    places = [root / ARCHIVE, root / "downloads" / "manual" / ARCHIVE, root / "downloads" / ARCHIVE]
    try:
        found = next((place for place in places if place.exists()), None)
        if found:
            verify(found, SHA256)
        builder.archive = found or fetch(
            URL,
            places[-1],
            SHA256,
            f"CIFAR-10 is not prepared in {root}: put {ARCHIVE} there, or point --config.data.dir (or TFDS_DATA_DIR) "
            "at a folder that holds it, or train on --config.data.name=digits, which needs no network.",
        )
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise UserError(f"Cannot prepare CIFAR-10 in {root}: {error}.") from None
    return builder


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
