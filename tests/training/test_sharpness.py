"""The sharpness, compared with the explicit Hessian of the same network written with XLA's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import make_batch
from jax import lax
from jax.flatten_util import ravel_pytree
from test_step import make, narrow

from cnn_jax import rng
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.sharpness import ITERATIONS, Sharpness


@jax.numpy_rank_promotion("allow")
def plain_loss(params, images, labels):
    """The loss of the baseline, with derivatives in every mode."""
    x = images
    for name in (name for name in params if name.startswith("conv")):
        x = lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[name]["bias"])
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = jax.nn.relu(x.reshape(batch, -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def measure(config, **place):
    """Returns the sharpness after some steps, and the loss as a function of a flat vector, with that vector."""
    state, step = make(config)
    batch, key = make_batch(8), rng.root(0)
    one, trained = jax.jit(step), state
    for _ in range(20):
        trained, _ = one(trained, batch, key)
    rows = {name: np.asarray(value)[None] for name, value in batch.items()}
    sharpness = Sharpness(step, Placement.choose(**place), every=4)
    found = sharpness((8, 10), trained, rows, {}, key)
    assert not sharpness((9, 12), trained, rows, {}, key)
    assert not Sharpness(step, Placement.choose(), 0)((0, 9), trained, rows, {}, key)
    images = step.inputs.train(batch, jax.nn.one_hot(batch["label"], 10), key, state.step, 0)[0]
    flat, unravel = ravel_pytree(trained.params)
    return float(found["sharpness"]), lambda flat: plain_loss(unravel(flat), images, batch["label"]), flat


@pytest.mark.parametrize("scan", [False, True])
def test_sharpness_is_the_power_method_on_the_explicit_hessian(scan):
    found, loss, flat = measure(narrow("baseline", widths=(2, 2), hidden=(4,)), scan=scan)
    hessian = np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64)
    following = np.asarray(jax.grad(loss)(flat), np.float64)
    for _ in range(ITERATIONS):
        vector = following / np.linalg.norm(following)
        following = hessian @ vector
    np.testing.assert_allclose(found, vector @ following, rtol=1e-3)
    assert abs(found) < 1.001 * np.abs(np.linalg.eigvalsh(hessian)).max()


def test_fast_convolutions_have_the_same_second_derivatives():
    found, loss, flat = measure(narrow("baseline", widths=(32, 64)))
    slope = jax.jit(jax.grad(loss))
    product = jax.jit(lambda vector: jax.jvp(slope, (flat,), (vector,))[1])
    vector = slope(flat)
    for _ in range(ITERATIONS):
        vector /= jnp.linalg.norm(vector)
        previous, vector = vector, product(vector)
    np.testing.assert_allclose(found, previous @ vector, rtol=1e-3)
