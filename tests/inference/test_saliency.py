"""Saliency maps."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.inference import Classifier
from cnn_jax.inference.saliency import make_grad_cam, make_saliency, overlay
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


class Convolution(nn.Module):
    """Two feature maps, their means, and a linear head: Grad-CAM's weights are those of the head."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.relu(nn.Conv(2, (1, 1), name="conv")(images))
        features = nn.Dropout(0.5)(nn.max_pool(nn.Dense(2, name="mix")(features), (2, 2), (2, 2)), deterministic=True)
        return nn.Dense(3, name="head")(features.mean((1, 2)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_grad_cam_weighs_the_feature_maps_by_their_mean_gradient(seeds):
    network, images = Convolution(), np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    members = [network.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)), train=False) for seed in range(seeds)]

    def log_probabilities(pixels):
        scaled = PLAIN(jnp.asarray(pixels))
        outputs = [jax.nn.softmax(network.apply(one, scaled, train=False)) for one in members]
        return jnp.log(jnp.mean(jnp.stack(outputs), 0))

    bound = dataclasses.replace(
        classifier(network),
        class_names=("a", "b", "c"),
        log_probabilities=log_probabilities,
        metadata={"seed": "ensemble"} if seeds > 1 else {},
        model=(network, members if seeds > 1 else members[0]),
    )
    found = np.asarray(make_grad_cam(bound)(images))
    expected = np.zeros((2, 8, 8))
    for index, predicted in enumerate(np.asarray(log_probabilities(images)).argmax(-1)):
        for variables in members:
            params = jax.tree.map(np.asarray, variables["params"])
            features = np.maximum(images[index] / 255 @ params["conv"]["kernel"][0, 0] + params["conv"]["bias"], 0)
            features = features @ params["mix"]["kernel"] + params["mix"]["bias"]
            # A maximum passes the gradient to one pixel of four: a mean of head / 16 / 4 over the 64 pixels.
            heat = np.maximum(features @ params["head"]["kernel"][:, predicted], 0)
            expected[index] += heat / max(heat.max(), 1e-30) / seeds
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_network_without_feature_maps_has_no_grad_cam():
    assert make_grad_cam(classifier(OnePixel())) is None
    bound = dataclasses.replace(classifier(Convolution()), input_size=(3, 3))
    variables = Convolution().init(jax.random.key(0), jnp.zeros((1, 3, 3, 3)), train=False)
    assert make_grad_cam(dataclasses.replace(bound, model=(Convolution(), variables))) is None


def test_real_networks_have_grad_cam():
    from cnn_jax import models

    for name in ("cnn", "resnet18", "speednet"):
        network = models.build({"name": name}, 2)
        variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        bound = dataclasses.replace(classifier(network), input_size=(32, 32), model=(network, variables))

        def log_probabilities(images, network=network, variables=variables):
            return network.apply(variables, PLAIN(jnp.asarray(images)), train=False)

        bound = dataclasses.replace(bound, log_probabilities=log_probabilities)
        heat = np.asarray(make_grad_cam(bound)(np.random.RandomState(0).randint(0, 256, (1, 32, 32, 3), np.uint8)))
        assert heat.shape == (1, 32, 32) and 0 <= heat.min() <= heat.max() <= 1
