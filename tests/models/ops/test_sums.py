"""Sums per channel and the layers that use them, against NumPy and Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.models.layers import BatchNorm
from cnn_jax.models.ops.batch_norm import batch_norm
from cnn_jax.models.ops.sums import add_bias, channel_sum

SHAPES = [(4, 8, 8, 3), (3, 5, 7, 2), (2, 3, 2, 5), (6, 4), (1, 1, 1, 1)]


def values(shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape) + 1, jnp.float32)


def close(found, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_equals_numpy(shape):
    x = values(shape)
    found = jax.jit(channel_sum)(x)
    assert found.dtype == jnp.float32
    close(found, np.asarray(x, np.float64).sum(tuple(range(len(shape) - 1))))


def test_sum_rounds_less_than_a_long_one():
    x = values((64, 32, 32, 8))
    exact = np.asarray(x, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(jax.jit(channel_sum)(x), exact, rtol=1e-6)


def test_half_precision_is_summed_in_single():
    x = values((16, 16, 16, 4)).astype(jnp.bfloat16)
    assert channel_sum(x).dtype == jnp.float32
    np.testing.assert_allclose(channel_sum(x), np.asarray(x, np.float64).sum((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_bias_and_its_gradients(shape):
    x, bias, weight = values(shape), values(shape[-1:], 1), values(shape, 2)
    loss = lambda add: lambda x, b: (add(x, b) ** 2 * weight).sum()  # noqa: E731
    plain = lambda x, b: x + b.reshape((1,) * (x.ndim - 1) + (-1,))  # noqa: E731
    np.testing.assert_array_equal(add_bias(x, bias), plain(x, bias))
    close(jax.grad(loss(add_bias), (0, 1))(x, bias), jax.grad(loss(plain), (0, 1))(x, bias))


def normalised(x, scale, bias):
    """By the definition, in two passes."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    spread = lambda v: v.reshape((1,) * (x.ndim - 1) + (-1,))  # noqa: E731
    y = (x - mean) / jnp.sqrt(variance + 1e-3) * spread(scale) + spread(bias)
    return y, mean.reshape(-1), variance.reshape(-1)


@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (5, 3, 7, 2), (6, 4)])
def test_batch_norm_equals_its_definition_with_gradients_of_all_outputs(shape):
    arguments = values(shape), values(shape[-1:], 1), values(shape[-1:], 2)
    weights = values(shape, 3), values(shape[-1:], 4), values(shape[-1:], 5)

    def loss(function):
        return lambda *x: sum((y * w).sum() for y, w in zip(function(*x), weights, strict=True))

    ours = lambda *x: batch_norm(*x, 1e-3)  # noqa: E731
    close(ours(*arguments), normalised(*arguments))
    close(jax.grad(loss(ours), (0, 1, 2))(*arguments), jax.grad(loss(normalised), (0, 1, 2))(*arguments), 1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("fields", [{}, {"use_scale": False}, {"use_bias": False}])
def test_the_layer_is_that_of_flax(fields, dtype):
    x = values((4, 6, 6, 3)).astype(dtype)
    ours, flax_own = (kind(momentum=0.9, epsilon=1e-3, dtype=dtype, **fields) for kind in (BatchNorm, nn.BatchNorm))
    variables = flax_own.init(jax.random.key(0), x, use_running_average=False)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x, use_running_average=False), variables)

    def train(layer):
        return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    (y, updated), (expected, expected_updated) = train(ours), train(flax_own)
    assert y.dtype == expected.dtype == dtype
    close(y.astype(jnp.float32), expected.astype(jnp.float32), 1e-5 if dtype == jnp.float32 else 2e-2)
    close(updated, expected_updated)
    tested = [layer.apply(variables, x, use_running_average=True) for layer in (ours, flax_own)]
    np.testing.assert_array_equal(*tested)


def test_vmap_equals_a_loop():
    lanes = [(values((4, 4, 4, 3), seed), values((3,), seed + 1), values((3,), seed + 2)) for seed in (0, 5)]
    one = lambda *x: jax.grad(lambda *x: (batch_norm(*x, 1e-3)[0] ** 3).sum(), (0, 1, 2))(*x)  # noqa: E731
    many = jax.vmap(one)(*(jnp.stack(parts) for parts in zip(*lanes)))
    for index, lane in enumerate(lanes):
        close(tuple(part[index] for part in many), one(*lane), 1e-4)
