import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stage

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError
from cnn_jax.training import optim


def make(**changes):
    config = stage("baseline").optimizer
    config.update(changes)
    return config


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax divides by numbers of steps, which are integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(config, steps=5):
    """Minimises a quadratic; returns parameters after every step, and the same in plain numpy is below."""
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    schedule = optim.make_schedule(config, total_steps=steps, steps_per_epoch=2)
    optimizer = optim.make_optimizer(config, schedule)
    state, path = optimizer.init(params), []
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        path.append(np.concatenate([params["kernel"][0], params["bias"]]))
    return np.array(path)


def test_sgd_is_keras_momentum():
    """v = 0.9 v - rate g; w += v: keras.optimizers.SGD."""
    w, v, expected = np.array([1.0, -2.0, 3.0]), np.zeros(3), []
    for _ in range(5):
        v = 0.9 * v - 0.01 * 2 * w
        w = w + v
        expected.append(w)
    np.testing.assert_allclose(run(make()), expected, rtol=1e-5)


def test_weight_decay_is_decoupled_and_spares_biases():
    w, v, expected = np.array([1.0, -2.0, 3.0]), np.zeros(3), []
    for _ in range(5):
        v = 0.9 * v + 2 * w
        w = w - 0.01 * (v + 0.1 * w * np.array([1, 1, 0]))
        expected.append(w)
    np.testing.assert_allclose(run(make(weight_decay=0.1)), expected, rtol=1e-5)


def test_adam():
    w, m, s, expected = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3), []
    for t in range(1, 6):
        g = 2 * w
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        w = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-7)
        expected.append(w)
    np.testing.assert_allclose(run(make(name="adam")), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("constant", [0.01, 0.01, 0.01]),
        ("linear", [0.01, 0.005, 0.0]),
        ("cosine", [0.01, 0.005, 0.0]),
    ],
)
def test_schedules(name, expected):
    schedule = optim.make_schedule(make(schedule=name), total_steps=100, steps_per_epoch=10)
    np.testing.assert_allclose([schedule(step) for step in (0, 50, 100)], expected, atol=1e-8)


def test_warm_up_rises_from_zero_and_the_decay_still_ends_at_the_end():
    schedule = optim.make_schedule(make(schedule="linear", warmup_epochs=2.0), total_steps=100, steps_per_epoch=10)
    np.testing.assert_allclose([schedule(step) for step in (0, 10, 20, 60, 100)], [0, 0.005, 0.01, 0.005, 0], atol=1e-8)


def test_adamw_is_adam_with_decoupled_weight_decay():
    np.testing.assert_array_equal(run(make(name="adamw", weight_decay=0.1)), run(make(name="adam", weight_decay=0.1)))


def test_gradients_are_clipped_by_their_global_norm():
    w, expected = np.array([1.0, -2.0, 3.0]), []
    for _ in range(5):
        g = 2 * w
        w = w - 0.01 * g * min(1, 0.5 / np.linalg.norm(g))
        expected.append(w)
    np.testing.assert_allclose(run(make(momentum=0.0, clip_norm=0.5)), expected, rtol=1e-5)


def test_cosine_restarts_begin_again_and_grow():
    config = make(schedule="restarts", restarts={"epochs": 2.0, "factor": 2.0})
    schedule = optim.make_schedule(config, total_steps=100, steps_per_epoch=10)  # decays of 20, 40, 80 steps
    values = [float(schedule(step)) for step in (0, 10, 19, 20, 40, 59, 60, 100)]
    np.testing.assert_allclose(values[:2], [0.01, 0.005], rtol=1e-5)
    assert values[2] < 1e-4 and values[5] < 1e-4
    np.testing.assert_allclose([values[3], values[4], values[6], values[7]], [0.01, 0.005, 0.01, 0.005], rtol=1e-5)


def test_one_cycle_rises_and_falls():
    schedule = optim.make_schedule(make(schedule="onecycle"), total_steps=100, steps_per_epoch=10)
    values = [float(schedule(step)) for step in range(101)]
    assert values.index(max(values)) == 30 and max(values) == pytest.approx(0.01)
    assert values[0] < 0.1 * values[30] and values[100] < 1e-4 * values[30]


def test_one_cycle_after_a_warm_up_is_refused():
    with pytest.raises(UserError, match=r"warmup_epochs is 2.0, but the schedule onecycle has its own warm-up"):
        optim.make_schedule(make(schedule="onecycle", warmup_epochs=2.0), total_steps=100, steps_per_epoch=10)


def test_the_names_in_the_configuration_are_those_of_the_tables():
    rules = config_lib.keys_of("cnn")
    for key, table in (("optimizer.name", optim.OPTIMIZERS), ("optimizer.schedule", optim.SCHEDULES)):
        assert set(rules[key].rule.meaning.removeprefix("one of ").split(", ")) == set(table)
