import jax
import numpy as np

from cnn_jax import rng


def draws(key):
    return np.asarray(jax.random.bits(key, (4,)))


def test_streams_and_steps_differ():
    key = rng.root(0)
    keys = [rng.stream(key, name, step) for name in ("init", "order", "augment", "dropout") for step in (0, 1, 7)]
    assert len({tuple(draws(k)) for k in keys}) == len(keys)


def test_is_the_same_everywhere_and_for_ever():
    # Written down once: a change here changes every run that anybody has recorded.
    assert draws(rng.stream(rng.root(3), "dropout", 5)).tolist() == [1318943673, 2299211280, 2906428928, 2286650654]


def test_step_may_be_traced():
    traced = jax.jit(lambda step: rng.stream(rng.root(3), "augment", step))(jax.numpy.int32(9))
    np.testing.assert_array_equal(draws(traced), draws(rng.stream(rng.root(3), "augment", 9)))
