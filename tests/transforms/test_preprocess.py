import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_jax.transforms.preprocess import Preprocessing


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (2, 12, 12, 3)).astype(np.uint8)


def test_scales_to_one(images):
    np.testing.assert_allclose(Preprocessing()(jnp.asarray(images)), images / np.float32(255), rtol=1e-6)


def test_normalises_each_channel(images):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (images / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    np.testing.assert_allclose(Preprocessing(0, mean, std)(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [6, 24])
def test_resizes_as_pillow_does(images, size):
    """Pillow's bilinear filter widens when it shrinks, as `antialias=True` does; it rounds to whole levels."""
    expected = [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in images]
    actual = np.asarray(Preprocessing(size)(jnp.asarray(images))) * 255
    assert actual.shape == (2, size, size, 3)
    np.testing.assert_allclose(actual, np.stack(expected), atol=1.01)
