"""Max-pooling against Flax's, for many shapes, ties and transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.models.ops.pool import max_pool


def plain(images):
    return nn.max_pool(images, (2, 2), strides=(2, 2))


def images(shape, seed=0):
    """Small whole numbers: every second window has a tie."""
    return jnp.asarray(np.random.RandomState(seed).randint(-2, 3, shape), jnp.float32)


def pull_back(pool, x, seed=1):
    y, back = jax.vjp(pool, x)
    return back(jnp.asarray(np.random.RandomState(seed).randn(*y.shape), y.dtype))[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (2, 7, 5, 3), (1, 2, 3, 1)])
def test_equals_flax_with_gradient_and_ties(shape, dtype):
    x = images(shape).astype(dtype)
    found, expected = max_pool(x), plain(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull_back(max_pool, x), pull_back(plain, x))


def test_the_first_of_equal_values_receives_the_gradient():
    np.testing.assert_array_equal(pull_back(max_pool, jnp.zeros((1, 2, 2, 1)))[0, :, :, 0] != 0, [[1, 0], [0, 0]])


def test_nan_is_not_hidden():
    assert jnp.isnan(max_pool(images((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan))[0, 0, 0, 0])


def test_vmap_of_gradient_equals_a_loop():
    x = images((3, 2, 4, 4, 2))
    lanes = jnp.stack([pull_back(plain, lane) for lane in x])
    np.testing.assert_array_equal(jax.vmap(lambda lane: pull_back(max_pool, lane))(x), lanes)


def test_forward_mode_and_linearize_agree_with_the_gradient():
    x, tangent = images((2, 6, 4, 3)), images((2, 6, 4, 3), seed=2)
    y, slope = jax.jvp(max_pool, (x,), (tangent,))
    _, linear = jax.linearize(max_pool, x)
    np.testing.assert_array_equal(linear(tangent), slope)
    np.testing.assert_allclose(jnp.vdot(y, slope), jnp.vdot(jax.vjp(max_pool, x)[1](y)[0], tangent), rtol=1e-6)


def test_exports_with_a_symbolic_batch():
    shape = jax.export.symbolic_shape("b, 5, 4, 2")
    exported = jax.export.export(jax.jit(max_pool))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = images((3, 5, 4, 2))
    np.testing.assert_array_equal(exported.call(x), plain(x))


def test_positions_are_not_recomputed_for_the_gradient():
    """XLA keeps them in memory, a byte per window: see `cnn_jax.models.ops.pool._keep`."""
    x, weight = images((2, 8, 8, 4)), images((2, 4, 4, 4), seed=1)
    loss = lambda x: (max_pool(jnp.sin(x)) * weight).sum()  # noqa: E731
    program = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    assert "remainder" in program
    results = [line.split(" = ")[1] for line in program.splitlines() if " = u8[2,4,4,4]" in line and "fusion(" in line]
    assert results
