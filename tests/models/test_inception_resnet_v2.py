"""InceptionResNetV2: its size, equality with Keras' network for random weights, and invalid weight files.

Tests that take minutes do not run by default: pytest -m slow tests/models/test_inception_resnet_v2.py
"""

import os
import re
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.models import pretrained
from cnn_jax.models.inception_resnet_v2 import InceptionResNetV2
from cnn_jax.models.pretrained import inception_resnet_v2, keras_legacy, keras_v3

h5py = pytest.importorskip("h5py")
BACKBONE = "inception_resnet_v2"
# Raised by Keras when it passes a JAX array to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(lambda: InceptionResNetV2().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3)), train=False))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_size_and_names(shapes):
    assert count(shapes) == 54_336_736
    assert count(shapes["params"]) == 54_276_192
    assert len(jax.tree.leaves(shapes["batch_stats"])) == 2 * 204
    assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(shapes["params"])) == 244
    assert sorted(shapes["params"]) == sorted(
        [f"stem_{i}" for i in range(1, 6)]
        + [f"block35_{i}" for i in range(1, 11)]
        + [f"block17_{i}" for i in range(1, 21)]
        + [f"block8_{i}" for i in range(1, 11)]
        + ["mixed_5b", "mixed_6a", "mixed_7a", "conv_7b"]
    )
    assert sorted(shapes["params"]["block17_3"]) == ["branch0", "branch1_1", "branch1_2", "branch1_3", "project"]


def test_features_and_statistics_are_float32_whatever_the_dtype(shapes):
    model = InceptionResNetV2(dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, 80, 75, 3), jnp.float32)
    features, updates = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), shapes, images
    )
    assert (features.shape, features.dtype) == ((2, InceptionResNetV2.num_features), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes, updates))} == {jnp.dtype(jnp.float32)}


def test_images_that_are_too_small(shapes):
    images = jax.ShapeDtypeStruct((1, 80, 74, 3), jnp.float32)
    with pytest.raises(UserError, match=r"80x74 pixels are too small .* config\.data\.image_size to at least 75"):
        jax.eval_shape(lambda v, x: InceptionResNetV2().apply(v, x, train=False), shapes, images)


# Against Keras


@pytest.fixture(scope="module")
def keras_model():
    """Keras' own network with random weights and statistics, for images of any size."""
    keras = pytest.importorskip("keras")
    model = keras.applications.InceptionResNetV2(
        weights=None, include_top=False, pooling="avg", input_shape=(None, None, 3)
    )
    generator = np.random.RandomState(0)
    for variable in model.variables:
        shape = variable.shape
        if variable.name == "kernel":
            value = generator.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif variable.name == "moving_variance":
            value = generator.uniform(0.5, 2, shape)
        else:
            value = generator.normal(0, 0.2, shape)
        variable.assign(value.astype(np.float32))
    return model


def round_trip(model, kind, shapes):
    """Returns what we read from a file written by Keras, under a name that does not reveal the format."""
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    if "classifier" in kind:
        model = keras.Model(model.input, keras.layers.Dense(7, name="predictions")(model.output))
    with tempfile.TemporaryDirectory() as folder:  # a file has 219 MB, and pytest would keep it
        path = Path(folder) / "x.weights.h5"
        if "v3" in kind:
            model.save_weights(path)
        else:
            with h5py.File(path, "w") as file:
                legacy_h5_format.save_weights_to_hdf5_group(file, model)
        return pretrained.load(BACKBONE, str(path.rename(Path(folder) / "weights")), shapes)


@pytest.fixture(scope="module")
def variables(keras_model, shapes):
    return round_trip(keras_model, "v3", shapes)


@pytest.fixture(scope="module")
def keras_apply(keras_model):
    """Keras' network: from images and the mode to features and statistics."""
    trained = [variable.value for variable in keras_model.trainable_variables]
    statistics = [variable.value for variable in keras_model.non_trainable_variables]
    call = jax.jit(keras_model.stateless_call, static_argnames="training")
    return lambda images, training=False: call(trained, statistics, images, training=training)


def images(height, width):
    return np.random.RandomState(height).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert np.std(expected) > 0.01 * np.abs(expected).max()
    assert np.abs(actual - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["legacy", "v3", "legacy with classifier", "v3 with classifier"])
def test_every_weight_is_assigned_to_its_layer(kind, keras_model, shapes):
    found = flax.traverse_util.flatten_dict(round_trip(keras_model, kind, shapes), sep="/")
    layers = [layer for layer in keras_model.layers if layer.weights]
    places = {"kernel": "params", "bias": "params", "beta": "params", "moving_mean": "batch_stats"}
    ours = {"beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    for name, layer in zip(inception_resnet_v2.topological_order(), layers, strict=True):
        for variable in layer.variables:
            key = f"{places.get(variable.name, 'batch_stats')}/{name}/{ours.get(variable.name, variable.name)}"
            np.testing.assert_array_equal(found.pop(key), variable.numpy(), err_msg=key)
    assert not found


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (75, 75),
        pytest.param(98, 131, marks=pytest.mark.slow),
        pytest.param(139, 139, marks=pytest.mark.slow),
        pytest.param(299, 299, marks=pytest.mark.slow),
    ],
)
def test_features_equal_those_of_keras(height, width, keras_apply, variables):
    x = images(height, width)
    expected, _ = keras_apply(x)
    actual = jax.jit(lambda v, x: InceptionResNetV2().apply(v, x, train=False))(variables, x)
    assert_close(actual, expected)
    assert_close(actual[1] - actual[0], expected[1] - expected[0])


@pytest.mark.slow
def test_statistics_are_updated_as_in_keras(keras_apply, keras_model, variables):
    x = images(107, 107)
    expected, statistics = keras_apply(x, training=True)
    by_path = {variable.path: value for variable, value in zip(keras_model.non_trainable_variables, statistics)}
    actual, updates = jax.jit(lambda v, x: InceptionResNetV2().apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, x
    )
    assert_close(actual, expected, 1e-3)  # batch statistics of four pixels amplify rounding errors
    last = updates["batch_stats"]["conv_7b"]["bn"]
    assert_close(last["mean"], by_path["conv_7b_bn/moving_mean"])
    assert_close(last["var"], by_path["conv_7b_bn/moving_variance"])


# Invalid files. They are small, because shapes are checked only after all layers have been found.


@pytest.fixture
def legacy(tmp_path):
    """A file in the legacy format whose weights are single numbers."""
    layers = {f"layer{i}": name for i, name in enumerate(inception_resnet_v2.topological_order())}
    with h5py.File(tmp_path / "legacy.h5", "w") as file:
        file.attrs["layer_names"] = ["input", *layers]
        file.create_group("input").attrs["weight_names"] = np.zeros(0)
        for name, ours in layers.items():
            keys = [f"{name}/{i}:0" for i in range({"conv": 1, "project": 2, "bn": 3}[ours.rsplit("/", 1)[-1]])]
            group = file.create_group(name)
            group.attrs["weight_names"] = keys
            for key in keys:
                group[key] = np.zeros(1)
    return tmp_path / "legacy.h5"


@pytest.fixture
def v3(tmp_path):
    """A file in the format of Keras 3 whose weights are single numbers."""
    projects = [name for name in inception_resnet_v2.topological_order() if not name.endswith("/bn")]
    with h5py.File(tmp_path / "v3.h5", "w") as file:
        file.create_group("layers/activation/vars")
        for i, name in enumerate(projects):
            group = file.create_group(f"layers/conv2d_{i}/vars" if i else "layers/conv2d/vars")
            for key in range(2 if name.endswith("project") else 1):
                group[str(key)] = np.zeros(1)
        for i in range(204):
            name = f"batch_normalization_{i}" if i else "batch_normalization"
            for key in range(3):
                file[f"layers/{name}/vars/{key}"] = np.zeros(1)
    return tmp_path / "v3.h5"


def fails(path, shapes, *words):
    with pytest.raises(UserError, match=".*".join(map(re.escape, (str(path), *words)))) as caught:
        pretrained.load(BACKBONE, str(path), shapes)
    assert "\n" not in str(caught.value)


def test_another_shape(legacy, v3, shapes):
    kernel = "params/stem_1/conv/kernel"
    fails(legacy, shapes, "layer0/layer0/0:0 has the shape (1,), where", kernel, "has (3, 3, 3, 32)")
    fails(v3, shapes, "conv2d/vars/0 has the shape (1,), where", kernel, "has (3, 3, 3, 32)")


def test_a_layer_is_missing_or_left_over(legacy, v3, shapes):
    with h5py.File(v3, "a") as file:
        file.move("layers/conv2d_100", "layers/conv2d_244")
    fails(v3, shapes, "has no layer conv2d_100, where block17_3/project should be")
    with h5py.File(v3, "a") as file:
        file.copy("layers/conv2d_244", "layers/conv2d_100")
    fails(v3, shapes, "has a layer conv2d_244, which does not exist in InceptionResNetV2")

    with h5py.File(legacy, "a") as file:
        names = list(file.attrs["layer_names"])
        file.attrs["layer_names"] = names[:-1]
    fails(legacy, shapes, "ends after 447 layers, where conv_7b/bn should be")
    with h5py.File(legacy, "a") as file:
        file.attrs["layer_names"] = names[:2] + names[3:]
    fails(legacy, shapes, "the layer layer2 has 1 weights, where stem_1/bn has 3")
    with h5py.File(legacy, "a") as file:
        file.copy("layer1", "more")
        file.attrs["layer_names"] = [*names, "more"]
    fails(legacy, shapes, "has a layer more, which does not exist")


def test_a_weight_is_missing_or_left_over(legacy, v3, shapes):
    with h5py.File(v3, "a") as file:
        del file["layers/batch_normalization_7/vars/2"]
    fails(v3, shapes, "the layer batch_normalization_7 has 2 weights, where mixed_5b/branch2_2/bn has 3")
    with h5py.File(legacy, "a") as file:
        del file["layer3/layer3/1:0"]
    fails(legacy, shapes, "lists /layer3/layer3/1:0, but does not have it")


def test_a_long_list_of_layers_in_parts(legacy, shapes):
    """HDF5 limits the size of an attribute, so Keras splits it."""
    with h5py.File(legacy, "a") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:300], names[300:]
    assert len(inception_resnet_v2.read(legacy)) == 244 + 40 + 3 * 204


def test_a_whole_model_in_the_legacy_format(legacy, tmp_path):
    with h5py.File(legacy) as file, h5py.File(tmp_path / "model.h5", "w") as model:
        group = model.create_group("model_weights")
        for name in file:
            file.copy(name, group)
        group.attrs["layer_names"] = file.attrs["layer_names"]
    assert inception_resnet_v2.read(tmp_path / "model.h5").keys() == inception_resnet_v2.read(legacy).keys()


def test_files_that_are_not_weights(legacy, shapes, tmp_path):
    damaged = tmp_path / "damaged"
    content = legacy.read_bytes()
    for wrong in (b"", b"not HDF5", content[: len(content) // 2]):
        damaged.write_bytes(wrong)
        fails(damaged, shapes, "cannot be read", "damaged, truncated or not HDF5")
    with h5py.File(damaged, "w") as file:
        file["images"] = np.zeros(3)
    fails(damaged, shapes, "not a file of weights in Keras' legacy format")
    with pytest.raises(UserError, match=r"There is no file .*nowhere"):
        pretrained.load(BACKBONE, str(tmp_path / "nowhere"), shapes)


def test_the_other_format(legacy, v3):
    with pytest.raises(UserError, match=r"v3\.h5 has no list of layers: .* legacy format"):
        keras_legacy.read(v3)
    with pytest.raises(UserError, match=r"legacy\.h5 has no group 'layers': .* Keras 3"):
        keras_v3.read(legacy)


def test_without_h5py(legacy, shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'cnn_jax\[transfer\]'"):
        pretrained.load(BACKBONE, str(legacy), shapes)


# The published file


def test_the_published_file_is_fetched_once_and_verified(monkeypatch, tmp_path, shapes):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(inception_resnet_v2, "URL", "http://127.0.0.1:9/file.h5")
    with pytest.raises(UserError, match=r"Cannot fetch .* Download it by hand .* --config\.model\.weights=PATH"):
        pretrained.load(BACKBONE, pretrained.IMAGENET, shapes)

    (tmp_path / inception_resnet_v2.FILE).write_bytes(b"content")
    with pytest.raises(UserError, match="damaged, truncated or another file: its MD5 is"):
        inception_resnet_v2.published()
    monkeypatch.setattr(inception_resnet_v2, "MD5", "9a0364b9e99bb480dd25e1f0284c8555")
    assert inception_resnet_v2.published() == tmp_path / inception_resnet_v2.FILE
