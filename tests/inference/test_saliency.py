"""Saliency maps."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.inference import Classifier
from cnn_jax.inference.saliency import make_saliency, overlay
from cnn_jax.transforms.preprocess import Preprocessing


@dataclasses.dataclass(frozen=True)
class OnePixel:
    """A network whose logit of class 1 is three times the green value of one pixel."""

    weight: float = 3.0

    def apply(self, variables, images, *, train):
        assert not train
        logit = self.weight * images[:, 2, 5, 1]
        return jnp.stack([jnp.zeros_like(logit), logit], axis=-1)


PLAIN = Preprocessing()


def classifier(model, preprocessing=PLAIN):
    return Classifier(("a", "b"), (8, 8), preprocessing, lambda images: images, "", 0, {}, (model, {}))


def test_the_map_shows_the_pixel_that_the_prediction_depends_on():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    images[1] = 51
    maps = np.asarray(make_saliency(classifier(OnePixel()))(images))
    expected = np.zeros((2, 8, 8))
    expected[:, 2, 5] = 1
    np.testing.assert_array_equal(maps, expected)


def test_the_map_has_the_size_of_the_network_input():
    images = np.random.RandomState(0).randint(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    preprocessing = Preprocessing(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert make_saliency(classifier(OnePixel(), preprocessing))(images).shape == (1, 16, 16)


@pytest.mark.parametrize("weight", [0.0, np.nan, np.inf])
def test_a_network_without_gradients_has_an_empty_map(weight):
    maps = np.asarray(make_saliency(classifier(OnePixel(weight)))(np.zeros((1, 8, 8, 3), np.uint8)))
    assert np.isfinite(maps).all()
    assert 0 <= maps.min() <= maps.max() <= 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_real_network_has_the_gradient_of_finite_differences(seeds):
    network = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(5), jnp.tanh, nn.Dense(2)])

    class Model:
        def apply(self, variables, images, *, train):
            return network.apply(variables, images)

    pixels = np.random.RandomState(0).randint(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    members = [network.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3))) for seed in range(seeds)]
    metadata, variables = ({}, members[0]) if seeds == 1 else ({"seed": "ensemble"}, members)
    bound = Classifier(("a", "b"), (8, 8), Preprocessing(), lambda x: x, "", 0, metadata, (Model(), variables))

    seen = np.asarray(Preprocessing()(jnp.asarray(pixels)))
    steps = 1e-2 * np.eye(seen.size, dtype=np.float32).reshape(-1, *seen.shape[1:])

    def log_probability(images):
        probabilities = np.mean([jax.nn.softmax(network.apply(one, images)) for one in members], axis=0)
        return np.log(probabilities.max(-1))

    slopes = ((log_probability(seen + steps) - log_probability(seen - steps)) / 2e-2).reshape(8, 8, 3)
    strength = np.abs(slopes).max(-1)
    expected = np.clip(strength / np.percentile(strength, 99), 0, 1)
    np.testing.assert_allclose(make_saliency(bound)(pixels)[0], expected, atol=2e-2)


def test_the_overlay_is_grey_without_saliency_and_orange_with_it():
    strength = np.zeros((4, 4), np.float32)
    strength[1, 1] = 1
    picture = overlay(np.random.RandomState(0).uniform(size=(4, 4, 3)).astype(np.float32), strength)
    grey = picture[strength == 0].astype(int)
    assert (grey.max(-1) == grey.min(-1)).all()
    assert list(picture[1, 1]) == [237, 92, 0]
