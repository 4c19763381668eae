"""The network of the speed run and its initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax import rng
from cnn_jax.errors import UserError
from cnn_jax.models.speednet import SpeedNet, dirac, whitening_kernel

MODEL = SpeedNet(10, widths=(8, 16))


@pytest.fixture(scope="module")
def images():
    """Smooth images with mean about zero: neighbouring pixels are correlated, as in photographs."""
    noise = np.random.RandomState(0).randn(60, 12, 12, 3)
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + noise.mean(-1, keepdims=True)
    return jnp.asarray(smooth, jnp.float32)


def variables(seed=0):
    init = jax.jit(lambda key: MODEL.init(key, jnp.zeros((1, 12, 12, 3)), train=False))
    return init(rng.root(seed))


def filtered(images, kernel):
    """The outputs of a convolution, one row per position."""
    out = lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return np.asarray(out).reshape(-1, out.shape[-1])


@pytest.mark.parametrize("size", [2, 3])
def test_whitened_patches_are_uncorrelated_and_of_variance_one(images, size):
    directions = 3 * size * size
    plain = filtered(images, jnp.eye(directions).reshape(size, size, 3, directions))
    assert abs(plain.T @ plain / len(plain) - np.eye(directions)).max() > 1  # not so before
    white = filtered(images, whitening_kernel(images, size, 0.0))
    half = white[:, :directions]
    np.testing.assert_allclose(half.T @ half / len(half), np.eye(directions), atol=1e-3)
    np.testing.assert_array_equal(white[:, directions:], -half)


def test_epsilon_limits_directions_without_variance(images):
    flat = jnp.broadcast_to(
        images.mean(-1, keepdims=True), images.shape
    )  # grey: two colour directions have no variance
    assert jnp.abs(whitening_kernel(flat, 2, 1e-2)).max() < 1 / np.sqrt(1e-2) + 1e-3


def test_init_from_images_sets_the_kernel_of_every_seed(images):
    kernel = whitening_kernel(images, 2, MODEL.whiten_epsilon)
    one = variables()["params"]
    both = jax.tree.map(lambda *x: jnp.stack(x), one, variables(1)["params"])
    for params in (one, both):
        fitted = MODEL.init_from_images(params, images)
        assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, params)
        random = params["whiten"]["kernel"]
        np.testing.assert_allclose(fitted["whiten"]["kernel"], np.broadcast_to(kernel, random.shape), rtol=1e-6)
        fitted["whiten"]["kernel"] = random
        jax.tree.map(np.testing.assert_array_equal, fitted, params)


@pytest.mark.parametrize("inputs, outputs", [(3, 5), (5, 3), (4, 4)])
def test_dirac_is_the_identity_on_the_first_channels(inputs, outputs):
    kernel = dirac(rng.root(0), (3, 3, inputs, outputs), others=jax.nn.initializers.ones)
    x = jnp.asarray(np.random.RandomState(0).randn(2, 6, 6, inputs), jnp.float32)
    out = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    same = min(inputs, outputs)
    np.testing.assert_allclose(out[..., :same], x[..., :same], atol=1e-6)
    np.testing.assert_array_equal(kernel[..., same:], 1)


def test_logits_are_float32_small_at_first_and_follow_their_scale(images):
    def logits(model):
        return jax.jit(lambda v: model.apply(v, images, train=False))(variables())

    first = logits(MODEL)
    assert first.dtype == jnp.float32 and first.shape == (60, 10)
    assert jnp.abs(first).max() < 1
    half = logits(SpeedNet(10, widths=(8, 16), logit_scale=MODEL.logit_scale / 2))
    np.testing.assert_allclose(half, first / 2, rtol=1e-5)
    low = logits(SpeedNet(10, widths=(8, 16), dtype=jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, first, atol=0.03)


def test_images_that_are_too_small_are_refused():
    assert jax.eval_shape(lambda key: MODEL.init(key, jnp.zeros((1, 5, 5, 3)), train=False), rng.root(0))
    with pytest.raises(UserError, match=r"4x5 pixels are too small for 2 blocks: .* at least 5"):
        MODEL.init(rng.root(0), jnp.zeros((1, 4, 5, 3)), train=False)
