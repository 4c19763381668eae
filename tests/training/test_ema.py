"""Averaged weights against a loop in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.training.ema import Average

TOTAL = 12


def variables(value):
    return {"params": {"kernel": jnp.full((2,), value)}, "batch_stats": {"mean": jnp.full((3,), 10 * value)}}


def run(average):
    """Weights that training moves by one a step; returns the average and the weights after every step."""
    update = jax.jit(average.update)
    current = variables(1.0)
    mean, path = average.begin(current), []
    for done in range(1, TOTAL + 1):
        current = jax.tree.map(jnp.add, current, variables(1.0))
        mean, current = update(mean, current, jnp.int32(done))
        path.append((float(mean["params"]["kernel"][0]), float(current["params"]["kernel"][0])))
        np.testing.assert_allclose(mean["batch_stats"]["mean"], 10 * mean["params"]["kernel"][0], rtol=1e-5)
    return path


@pytest.mark.parametrize("every, ramp, lookahead", [(1, 0.0, False), (5, 3.0, True), (4, 1.0, False), (3, 0.0, True)])
def test_average(every, ramp, lookahead):
    mean = weight = 1.0
    expected = []
    for done in range(1, TOTAL + 1):
        weight += 1.0
        if done % every == 0:
            decay = 0.8 * (done / TOTAL) ** ramp
            mean = decay * mean + (1 - decay) * weight
            weight = mean if lookahead else weight
        expected.append((mean, weight))
    np.testing.assert_allclose(run(Average(0.8, every, ramp, lookahead, TOTAL)), expected, rtol=1e-5)


def test_off_by_default():
    assert not Average().enabled and Average().begin(variables(1.0)) is None


def test_what_is_frozen_does_not_drift():
    frozen = {"kernel": jnp.asarray(np.random.RandomState(0).randn(1000), jnp.float32)}
    mean, _ = Average(0.77, 1, 0.0, True, TOTAL).update(frozen, frozen, jnp.int32(3))
    np.testing.assert_array_equal(mean["kernel"], frozen["kernel"])
