"""Loading each kind of data set, and the errors."""

import hashlib
import io
import shutil
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import stage
from PIL import Image
from sklearn.datasets import load_digits

from cnn_jax import data
from cnn_jax.data import cifar10, digits
from cnn_jax.errors import UserError


def config(**changes):
    settings = stage("base").data
    settings.update(changes)
    return settings


def test_digits_are_those_of_scikit_learn(monkeypatch):
    expected = load_digits()
    values, labels = digits._table()
    np.testing.assert_array_equal(values, expected.data)
    np.testing.assert_array_equal(labels, expected.target)
    monkeypatch.setattr(digits.Path, "exists", lambda self: False)  # a version that keeps its file elsewhere
    np.testing.assert_array_equal(digits._table()[0], expected.data)


def test_digits():
    dataset = data.load(config(name="digits"))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1294, 144, 359)
    images = dataset.test.images()
    assert images.shape == (359, 32, 32, 3) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert dataset.class_names == tuple("0123456789")
    assert "1,294 train, 144 validation, 359 test" in dataset.describe()


class TestFolder:
    def test_train_and_test(self, photographs):
        hidden = ("train/cat/.trash/3.png", "train/dog/.2.png")
        root = photographs("train/cat/1.png", "train/cat/deep/2.JPG", "train/dog/1.png", "test/dog/1.png", *hidden)
        dataset = data.load(config(name="folder", dir=str(root), validation=0.0, image_size=16))
        assert dataset.class_names == ("cat", "dog")
        assert dataset.train.labels.tolist() == [0, 0, 1] and dataset.test.labels.tolist() == [1]
        assert dataset.train.images().shape == (3, 16, 16, 3)

    def test_one_level_is_split_with_a_seed(self, photographs):
        root = photographs(*(f"{label}/{i}.png" for label in "abc" for i in range(10)))
        dataset = data.load(config(name="folder", dir=str(root), validation=6.0))
        sizes = {name: np.bincount(getattr(dataset, name).labels).tolist() for name in ("train", "validation", "test")}
        assert sizes == {"train": [6, 6, 6], "validation": [2, 2, 2], "test": [2, 2, 2]}

    def test_pixels_are_those_of_the_photograph(self, photographs):
        root = photographs("train/a/1.png", "train/b/1.png", "test/a/1.png", size=(8, 8))
        dataset = data.load(config(name="folder", dir=str(root), validation=0.0, image_size=8))
        np.testing.assert_array_equal(dataset.train.images()[0], np.asarray(Image.open(root / "train/a/1.png")))

    @pytest.mark.parametrize(
        "paths, says",
        [
            (["cat/1.png"], "one class only"),
            (["train/cat/1.png", "test/cat/1.png"], "one class only"),
            (["train/cat/1.txt.png/x.png", "train/dog/1.png", "test/cow/1.png"], "no class 'cow'"),
        ],
    )
    def test_unsuitable_classes(self, photographs, paths, says):
        with pytest.raises(UserError, match=says):
            data.load(config(name="folder", dir=str(photographs(*paths))))

    def test_no_images_no_folder_no_directory(self, tmp_path):
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        with pytest.raises(UserError, match="No images in"):
            data.load(config(name="folder", dir=str(tmp_path)))
        with pytest.raises(UserError, match="is not a folder"):
            data.load(config(name="folder", dir=str(tmp_path / "nothing")))
        with pytest.raises(UserError, match=r"needs --config\.data\.dir"):
            data.load(config(name="folder"))
        with pytest.raises(UserError, match="image_size"):
            data.load(config(name="folder", dir=str(tmp_path), image_size=0))

    def test_an_unreadable_image_names_its_file(self, photographs):
        root = photographs("train/a/1.png", "train/b/2.png", "test/a/1.png")
        (root / "train/b/2.png").write_bytes(b"damaged")
        dataset = data.load(config(name="folder", dir=str(root), validation=0.0))
        with pytest.raises(UserError, match=r"train/b/2\.png: not an image"):
            dataset.train.images()


CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small CIFAR-10 archive with 20 random images in each of its six files; its checksum is patched in."""
    generator = np.random.RandomState(0)
    path = tmp_path / "tfds" / cifar10.ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            info = tarfile.TarInfo("cifar-10-batches-bin/" + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add("batches.meta.txt", ("\n".join(CLASSES) + "\n\n").encode())
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            labels = np.arange(20)[:, None] % 10
            add(name, np.concatenate([labels, generator.randint(0, 256, (20, 3072))], 1).astype(np.uint8).tobytes())
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


# tfds leaves a file open when it is done with writing.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
class TestCifar10:
    def test_prepared_from_the_users_archive_without_tensorflow(self, archive):
        dataset = data.load(config(dir=str(archive.parent)))
        assert dataset.class_names == tuple(CLASSES)
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (90, 10, 20)
        with tarfile.open(archive) as tar:
            rows = np.frombuffer(tar.extractfile("cifar-10-batches-bin/test_batch.bin").read(), np.uint8)
        rows = rows.reshape(20, 3073)
        expected = {row[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): row[0] for row in rows}
        found = {image.tobytes(): label for image, label in zip(dataset.test.images(), dataset.test.labels)}
        assert found == expected

    def test_is_what_tfds_reads(self, archive):
        data.load(config(dir=str(archive.parent)))
        builder = tfds.builder("cifar10", data_dir=archive.parent)
        assert builder.is_prepared() and str(builder.version) == "3.0.2"
        assert builder.info.splits["train"].num_examples == 100
        example = builder.as_data_source(split="test")[0]
        assert set(example) == {"id", "image", "label"} and example["image"].shape == (32, 32, 3)

    def test_is_prepared_once(self, archive):
        first = data.load(config(dir=str(archive.parent))).train.images()
        archive.unlink()
        np.testing.assert_array_equal(data.load(config(dir=str(archive.parent))).train.images(), first)

    def test_a_truncated_archive_is_refused(self, archive):
        archive.write_bytes(archive.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz .* is damaged, truncated or another file"):
            data.load(config(dir=str(archive.parent)))
        assert archive.exists()

    def test_prepared_as_tfrecord_is_explained(self, archive):
        data.load(config(dir=str(archive.parent)))
        info = archive.parent / "cifar10/3.0.2/dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(UserError, match=r"prepared as tfrecord.*another folder"):
            data.load(config(dir=str(archive.parent)))

    def test_a_damaged_record_is_named(self, archive):
        dataset = data.load(config(dir=str(archive.parent), validation=0.0))
        dataset.train.source.items[3] = dataset.train.source.items[3][:100]
        with pytest.raises(UserError, match=r"train example 3"):
            dataset.train.images()

    def test_a_damaged_file_is_named(self, archive):
        data.load(config(dir=str(archive.parent)))
        file = archive.parent / "cifar10/3.0.2/cifar10-train.array_record-00000-of-00001"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(UserError, match=r"cifar10/3\.0\.2 cannot be read .*remove it and prepare it again"):
            data.load(config(dir=str(archive.parent)))

    def test_neither_data_nor_network(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"Cannot fetch .*put cifar-10-binary\.tar\.gz there.*digits"):
            data.load(config(dir=str(tmp_path / "empty")))
        assert time.monotonic() - start < 15


def test_other_tfds_sets_say_how_to_prepare_them(tmp_path):
    with pytest.raises(UserError, match=r"svhn_cropped is not prepared.*file_format='array_record'"):
        data.load(config(name="svhn_cropped", dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"'cifra10', which is not a data set: did you mean .*cifar10"):
        data.load(config(name="cifra10", dir=str(tmp_path)))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_another_tfds_set_of_grey_images(tmp_path):
    """Other data sets work like CIFAR-10: here MNIST with random images, prepared without TensorFlow."""
    from tensorflow_datasets.image_classification import mnist

    class MNIST(mnist.MNIST, skip_registration=True):
        name = "mnist"

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30, 0), "test": self._generate_examples(10, 1)}

        def _generate_examples(self, count, seed):
            for i, image in enumerate(np.random.RandomState(seed).randint(0, 256, (count, 28, 28)).astype(np.uint8)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "png")
                yield i, {"image": buffer.getvalue(), "label": i % 10}

    MNIST(data_dir=tmp_path, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    dataset = data.load(config(name="mnist", dir=str(tmp_path), validation=0.0))
    images = dataset.train.images()
    assert images.shape == (30, 28, 28, 3)
    assert (images[..., 0] == images[..., 2]).all()
    shutil.rmtree(tmp_path / "mnist")
