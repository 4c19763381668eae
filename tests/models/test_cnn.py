import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stage

from cnn_jax import models, rng
from cnn_jax.errors import UserError
from cnn_jax.models.cnn import CNN


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Computed by hand from the layers; those with BatchNorm equal what Keras' summary() prints for the reference.
@pytest.mark.parametrize(
    "name, params, stats",
    [("basic", 113_738, 0), ("baseline", 550_570, 0), ("batchnorm", 551_722, 1_152), ("augment", 551_722, 1_152)],
)
def test_sizes_of_the_stages(name, params, stats):
    model = models.build(stage(name).model, num_classes=10)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert count(variables["params"]) == params
    assert count(variables.get("batch_stats", {})) == stats


SMALL = CNN(5, widths=(3, 4), convs_per_block=1, hidden=(6,), batch_norm=True, dropout=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def variables():
    return SMALL.init(rng.root(0), jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.RandomState(0).rand(6, 8, 8, 3), jnp.float32)


def test_forward_equals_numpy(variables, images):
    """The order of the layers, the padding and BatchNorm in inference mode, against loops."""
    generator = np.random.RandomState(1)
    stats = jax.tree.map(lambda x: jnp.asarray(generator.uniform(0.5, 1.5, x.shape), x.dtype), variables["batch_stats"])
    params = jax.tree.map(lambda x: jnp.asarray(generator.randn(*x.shape), x.dtype), variables["params"])

    def normalised(x, name):
        x = np.maximum(x, 0)
        mean, var = (np.asarray(stats[name][key]) for key in ("mean", "var"))
        scale, bias = (np.asarray(params[name][key]) for key in ("scale", "bias"))
        return (x - mean) / np.sqrt(var + 1e-3) * scale + bias

    x = np.asarray(images)
    for layer in ("conv1_1", "conv2_1"):
        kernel, bias = np.asarray(params[layer]["kernel"]), np.asarray(params[layer]["bias"])
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height = x.shape[1]
        out = np.zeros((*x.shape[:3], kernel.shape[-1])) + bias
        for dy in range(3):
            for dx in range(3):
                out += padded[:, dy : dy + height, dx : dx + height] @ kernel[dy, dx]
        out = normalised(out, f"{layer}_bn")
        x = out.reshape(6, height // 2, 2, height // 2, 2, -1).max((2, 4))
    x = x.reshape(6, -1) @ np.asarray(params["dense1"]["kernel"]) + np.asarray(params["dense1"]["bias"])
    x = normalised(x, "dense1_bn")
    expected = x @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    actual = SMALL.apply({"params": params, "batch_stats": stats}, images, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_training_moves_the_statistics_by_one_hundredth(variables, images):
    _, updated = SMALL.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    layer = variables["params"]["conv1_1"]
    conv = jax.lax.conv_general_dilated(
        images, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    seen = np.maximum(np.asarray(conv) + np.asarray(layer["bias"]), 0)
    new = updated["batch_stats"]["conv1_1_bn"]
    np.testing.assert_allclose(new["mean"], 0.01 * seen.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(new["var"], 0.99 + 0.01 * seen.var((0, 1, 2)), rtol=1e-4)


def test_dropout_acts_only_in_training(variables, images):
    def logits(train, seed):
        return SMALL.apply(variables, images, train=train, mutable=["batch_stats"], rngs={"dropout": rng.root(seed)})[0]

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert (np.asarray(logits(True, 0)) != np.asarray(logits(True, 1))).any()


def test_outputs_of_relus_are_sown(variables, images):
    params = jax.tree.map(lambda x: x, variables["params"])
    params["conv1_1"] = {"kernel": params["conv1_1"]["kernel"] * 0, "bias": jnp.array([-1.0, -1.0, 1.0])}
    _, sown = SMALL.apply({**variables, "params": params}, images, train=False, mutable=["intermediates"])
    (output,) = sown["intermediates"]["relu_conv1_1"]
    np.testing.assert_array_equal(output, np.broadcast_to([0.0, 0.0, 1.0], (*images.shape[:3], 3)))


@pytest.mark.parametrize("kernel_init, gain", [("glorot", 1), ("he", 2)])
def test_kernels_have_the_variance_of_their_initialisation(kernel_init, gain):
    """Glorot: 2 / (inputs + outputs) of a unit; He: 2 / inputs."""
    network = CNN(10, widths=(64,), convs_per_block=2, hidden=(64,), kernel_init=kernel_init)
    params = network.init(rng.root(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    conv, dense = params["conv1_2"]["kernel"], params["dense1"]["kernel"]  # 64 channels to 64; 1024 units to 64
    np.testing.assert_allclose(conv.var(), gain / (9 * 64), rtol=0.03)
    np.testing.assert_allclose(dense.var(), 2 / (1024 + 64 if kernel_init == "glorot" else 1024), rtol=0.03)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(images):
    model = SMALL.clone(dtype=jnp.bfloat16)
    variables = model.init(rng.root(0), images, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    half = model.apply(variables, images, train=False)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, SMALL.apply(variables, images, train=False), atol=0.05)


def test_too_small_images_and_wrong_dropout_are_explained(images):
    with pytest.raises(UserError, match=r"image_size to at least 16"):
        SMALL.clone(widths=(3, 4, 4, 4), dropout=()).init(rng.root(0), images, train=False)
    with pytest.raises(UserError, match=r"2 rates for 3 layers"):
        SMALL.clone(dropout=(0.1, 0.1)).init(rng.root(0), images, train=False)
