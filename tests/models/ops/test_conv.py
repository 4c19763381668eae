"""Winograd's and the direct convolution against XLA's, and the choice between them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_jax.models.ops import conv, direct, winograd

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def arrays(batch=2, height=8, width=12, channels=6, features=5, seed=0):
    generator = np.random.RandomState(seed)
    shapes = (batch, height, width, channels), (3, 3, channels, features), (batch, height, width, features)
    return [jnp.asarray(generator.randn(*shape), jnp.float32) for shape in shapes]


def plain(images, kernel):
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", **OPTIONS)


def ours(images, kernel):
    return conv.convolve_3x3(images, kernel)


@partial(jax.jit, static_argnums=0)
def both(convolve, images, kernel, gradient):
    output, back = jax.vjp(convolve, images, kernel)
    return output, *back(gradient)


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected):
        assert jnp.linalg.norm(a - b) < tolerance * jnp.linalg.norm(b)


@pytest.mark.parametrize("kind", [direct, winograd])
@pytest.mark.parametrize("shape", [{}, {"batch": 1, "height": 4, "width": 4}, {"channels": 1, "features": 9}])
def test_equals_xla_with_gradients(kind, shape):
    operands = arrays(**shape)
    assert_close(both(kind.convolve, *operands), both(plain, *operands))


def test_the_rounding_is_that_of_float32():
    images, kernel, _ = arrays(channels=64, features=64)
    with jax.enable_x64():
        exact = plain(jnp.asarray(images, jnp.float64), jnp.asarray(kernel, jnp.float64))
    assert_close([jax.jit(winograd.convolve)(images, kernel)], [exact.astype(jnp.float32)], 5e-6)


@pytest.mark.parametrize("kind", [direct, winograd])
def test_vmap_over_kernels_equals_a_loop(kind):
    singles = [arrays(seed=seed) for seed in (0, 1)]
    many = jax.vmap(lambda *operands: both(kind.convolve, *operands))(*(jnp.stack(parts) for parts in zip(*singles)))
    for index, operands in enumerate(singles):
        assert_close([part[index] for part in many], both(plain, *operands))


@pytest.mark.parametrize(
    "kind, shape",
    [
        (winograd, {"channels": 32, "features": 64}),
        (direct, {"channels": 32, "features": 32}),
        (direct, {"channels": 32, "features": 64, "height": 6}),
    ],
)
def test_the_choice_of_the_algorithm(monkeypatch, kind, shape):
    taken, operands = [], arrays(**shape)
    monkeypatch.setattr(kind, "convolve", lambda *x, own=kind.convolve: taken.append(1) or own(*x))
    assert_close(both(ours, *operands), both(plain, *operands))
    assert taken


def test_half_precision_uses_the_direct_convolution():
    operands = [operand.astype(jnp.bfloat16) for operand in arrays(channels=32, features=64)]
    assert "custom_vjp" in str(jax.make_jaxpr(ours)(*operands[:2]))
    found, expected = both(ours, *operands), both(plain, *operands)
    assert [x.dtype for x in found] == [x.dtype for x in expected] == [jnp.bfloat16] * 3
    assert_close(found, expected, 1e-2)


def test_few_channels_are_left_to_xla():
    images, kernel, _ = arrays(channels=3, features=64)
    assert "custom_vjp" not in str(jax.make_jaxpr(ours)(images, kernel))
    np.testing.assert_array_equal(ours(images, kernel), plain(images, kernel))


def test_winograd_can_be_switched_off(monkeypatch):
    images, kernel, _ = arrays(channels=32, features=64)
    monkeypatch.setattr(winograd, "convolve", None)
    np.testing.assert_array_equal(conv.convolve_3x3(images, kernel, fast=False), plain(images, kernel))


def test_exports_for_cpu_and_gpu_with_a_symbolic_batch():
    images, kernel, _ = arrays(batch=3, channels=32, features=64)
    shape = jax.export.symbolic_shape("b, 8, 12, 32")
    export = jax.export.export(jax.jit(lambda images: ours(images, kernel)), platforms=("cpu", "cuda"))
    exported = jax.export.deserialize(export(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())
    assert_close([exported.call(images)], [plain(images, kernel)])
