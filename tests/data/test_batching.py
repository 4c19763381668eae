"""Padding adds masked rows and keeps all others."""

import numpy as np
import pytest

from cnn_jax.data.batching import pad, padded_batches


@pytest.mark.parametrize("examples, batch_size", [(1, 4), (4, 4), (5, 4), (7, 1), (0, 4)])
def test_padded_batches_hold_every_example_once(examples, batch_size):
    rows = padded_batches(examples, batch_size)
    assert rows["index"].shape == rows["mask"].shape == (-(-examples // batch_size), batch_size)
    assert rows["index"].dtype == np.int32 and rows["mask"].dtype == bool
    assert rows["index"][rows["mask"]].tolist() == list(range(examples))
    assert not rows["index"][~rows["mask"]].any()


@pytest.mark.parametrize("size", [2, 5])
def test_padding_appends_zeros_of_the_same_dtype(size):
    images = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2)
    padded = pad(images, size)
    assert padded.shape == (size, 2, 2) and padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[:2], images)
    assert not padded[2:].any()
