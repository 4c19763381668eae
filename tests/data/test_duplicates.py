"""Images that occur more than once, within a split and across splits."""

import numpy as np
import pytest

from cnn_jax.data.duplicates import Duplicates
from cnn_jax.data.splits import ArraySource, Split


@pytest.fixture
def splits():
    """Three splits, of 20, 8 and 40 different images."""
    images = np.random.RandomState(0).randint(0, 256, (68, 4, 5, 3)).astype(np.uint8)
    source = ArraySource(("a", "b"), np.zeros(68, np.int32), images)
    return {
        name: Split(source, np.arange(*ends))
        for name, ends in {"train": (0, 20), "validation": (20, 28), "test": (28, 68)}.items()
    }


@pytest.fixture
def describe(splits):
    """Returns all lines when some images, by their position in the source, have been replaced by others."""

    def call(replaced):
        source = splits["train"].source
        for index, other in replaced.items():
            source.array[index] = source.array[other]
        duplicates = Duplicates()
        return {name: duplicates.add(name, split, split.images()) for name, split in splits.items()}

    return call


def test_images_that_differ_in_one_value_are_no_duplicates(splits, describe):
    array = splits["train"].source.array
    array[30] = array[3]
    array[30, 3, 4, 2] ^= 1
    assert describe({}) == {"train": [], "validation": [], "test": []}


def test_images_of_two_splits(describe):
    lines = describe({27: 5, 28: 7, 30: 3, 31: 3, 67: 22})
    assert lines == {
        "train": [],
        "validation": [
            "1 validation image is also among the training images (first: example 27 = example 5); validation accuracy "
            "may be too high by up to 12.5 points."
        ],
        "test": [
            "3 test images are also among the training images (first: example 28 = example 7); test accuracy may be "
            "too high by up to 7.5 points.",
            "1 test image is also among the validation images (first: example 67 = example 22).",
        ],
    }


def test_images_of_one_split(describe):
    lines = describe({4: 2, 6: 2, 40: 39})
    assert lines == {
        "train": ["2 training images repeat an earlier one (first: example 4 = example 2)."],
        "validation": [],
        "test": ["1 test image repeats an earlier one (first: example 40 = example 39)."],
    }
