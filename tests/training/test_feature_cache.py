"""Features of a frozen backbone: computed once, kept, found again, and never mistaken for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax import config as config_lib
from cnn_jax import models, rng
from cnn_jax.training import feature_cache
from cnn_jax.training.feature_cache import FeatureCache, Stopped
from cnn_jax.transforms.preprocess import Preprocessing

IMAGES = np.random.RandomState(0).randint(0, 256, (25, 16, 16, 3)).astype(np.uint8)
PLAIN = Preprocessing()


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Builds a cache of the small transfer network, ten images a file; counts the batches that are computed."""
    monkeypatch.setattr(feature_cache, "IMAGES_IN_A_FILE", 10)
    model = models.build(config_lib.load(ROOT / "tests" / "transfer_config.py").model, 10)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), train=False))(rng.root(0))

    def build(preprocess=PLAIN, change=None, batch_size=4):
        own = jax.tree.map(np.array, variables)
        if change:
            change(own)
        cache = FeatureCache(tmp_path / "features", model, own, preprocess, batch_size)
        cache.batches, compute = 0, cache._features

        def counting(*arguments):
            cache.batches += 1
            return compute(*arguments)

        cache._features = counting
        expected = model.apply(own, preprocess(jnp.asarray(IMAGES)), method="features")
        return cache, np.asarray(expected)

    return build


def test_features_are_those_of_the_network_and_computed_once(make):
    cache, expected = make()
    np.testing.assert_allclose(cache.get(IMAGES, "train"), expected, rtol=1e-5, atol=1e-6)
    assert cache.batches == 3 + 3 + 2
    again, _ = make()
    np.testing.assert_array_equal(again.get(IMAGES, "train"), cache.get(IMAGES, "train"))
    assert again.batches == 0


def set_stem(variables):
    variables["params"]["backbone"]["block1"]["kernel"][0, 0, 0, 0] += 1e-3


def set_statistics(variables):
    variables["batch_stats"]["backbone"]["block2_bn"]["mean"][0] += 1e-3


def set_head(variables):
    variables["params"]["head"]["logits"]["bias"][0] += 1


@pytest.mark.parametrize(
    "changes, images",
    [
        ({"change": set_stem}, IMAGES),
        ({"change": set_statistics}, IMAGES),
        ({"preprocess": Preprocessing(0, (0.1, 0.0, 0.0))}, IMAGES),
        ({"preprocess": Preprocessing(20)}, IMAGES),
        ({}, IMAGES ^ (np.arange(IMAGES.size).reshape(IMAGES.shape) == 7)),
    ],
)
def test_whatever_the_features_hang_on_makes_them_anew(make, changes, images):
    make()[0].get(IMAGES, "train")
    other, _ = make(**changes)
    other.get(images, "train")
    assert other.batches == 8


def test_the_head_changes_nothing(make):
    make()[0].get(IMAGES, "train")
    other, _ = make(change=set_head)
    other.get(IMAGES, "train")
    assert other.batches == 0


def test_an_interruption_costs_the_unfinished_file_alone(make):
    cache, expected = make()
    with pytest.raises(Stopped):
        cache.get(IMAGES, "train", stop=lambda: cache.batches == 5)
    again, _ = make()
    np.testing.assert_allclose(again.get(IMAGES, "train"), expected, rtol=1e-5, atol=1e-6)
    assert again.batches == 3 + 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:200] + b"\xff" + data[201:]]
)
def test_a_damaged_file_is_computed_anew(make, damage):
    cache, expected = make()
    cache.get(IMAGES, "train")
    path = sorted(cache.folder.rglob("*.npz"))[1]
    path.write_bytes(damage(path.read_bytes()))
    again, _ = make()
    np.testing.assert_allclose(again.get(IMAGES, "train"), expected, rtol=1e-5, atol=1e-6)
    assert again.batches == 3


def test_no_images_have_no_features(make):
    cache, _ = make()
    assert cache.get(IMAGES[:0], "validation").shape == (0, 8)
