"""What is said of a folder of photographs before training."""

import numpy as np
import pytest
from conftest import stage
from PIL import Image

from cnn_jax import data
from cnn_jax.data import images, summary
from cnn_jax.data.pipeline import Splits
from cnn_jax.data.splits import ArraySource, make_splits
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement


def config(root, **changes):
    values = stage("base").data
    values.update({"name": "folder", "dir": str(root), "image_size": 32, "validation": 0.0, **changes})
    return values


def test_counts_sizes_imbalance_and_what_is_left_out(photographs, monkeypatch):
    monkeypatch.setattr(images, "EXTENSIONS", images.EXTENSIONS - images.HEIC)  # as without the extra
    paths = [f"{split}/{label}/{i}.png" for split, n in (("train", 8), ("test", 2)) for label in "a" for i in range(n)]
    root = photographs(*paths, "train/b/0.png", "train/b/1.png", size=(40, 30))
    Image.new("RGB", (64, 48)).save(root / "train/b/1.png")
    (root / "train" / "empty").mkdir()
    (root / "train" / "b" / "notes.txt").write_text("")
    (root / "test" / "a" / "phone.HEIC").write_bytes(b"")
    lines = summary.describe(data.load(config(root)))
    assert lines[0] == "folder: 2 classes; images: 10 train, 0 validation, 2 test"
    assert lines[1] == "Images per class (training, validation, test): a 8, 0, 2; b 2, 0, 0"
    assert lines[2] == "Sizes in pixels, as stored: 40 x 30 to 64 x 48, median 40 x 30; 11 are enlarged to 32 x 32"
    assert f"1 other file in {root}/train, ignored: .txt (1)." in lines
    assert f"Folders without images in {root}/train, which are no classes: empty." in lines
    assert any(line.startswith("a has 4.0 times as many training images as b: ") for line in lines)
    assert any(line.startswith("Classes without test images: b; the macro averages") for line in lines)
    assert f"1 HEIC photograph in {root}/test is left out: to read them, pip install 'cnn_jax[heic]'." in lines


def test_other_data_sets_have_a_line_and_what_is_unusual():
    labels = np.repeat([0, 1], [30, 10]).astype(np.int32)
    source = ArraySource(("a", "b", "c"), labels, np.zeros((40, 2, 2, 3), np.uint8))
    lines = summary.describe(make_splits("mine", source, None, config("", validation=0)))
    assert lines[0] == "mine: 3 classes; images: 32 train, 0 validation, 8 test"
    assert lines[1].startswith("a has 3.0 times as many training images as b")
    assert lines[2] == "Classes without training images: c; nothing is learned of them."
    assert lines[3].startswith("Classes without test images: c")
    assert len(lines) == 4


def test_all_files_that_cannot_be_read_are_named_at_once(photographs):
    paths = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(3)]
    root = photographs(*paths)
    broken = [root / name for name in ("train/a/1.png", "train/b/2.png", "test/b/0.png")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError) as error:
        Splits(data.load(config(root)), Placement.choose())
    first, *lines = str(error.value).splitlines()
    assert first == "3 images cannot be read:"
    for path, line in zip(broken, lines, strict=True):
        assert line.strip().startswith(f"{path}: ") and line.endswith("Replace or remove the file.")


def test_a_folder_of_heic_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "EXTENSIONS", images.EXTENSIONS - images.HEIC)  # as without the extra
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"No images in .* 2 HEIC photographs in .* pip install 'cnn_jax\[heic\]'\."):
        data.load(config(tmp_path))
