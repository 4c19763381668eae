"""Muon against plain numpy and singular value decompositions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import stage

from cnn_jax.training import muon, optim


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20)])
def test_the_update_is_orthogonal_and_keeps_the_singular_vectors(shape):
    matrix = np.random.RandomState(0).randn(*shape).astype(np.float32)
    u, before, vt = np.linalg.svd(matrix, full_matrices=False)
    after = u.T @ np.asarray(muon.orthogonalise(jnp.asarray(matrix), 8)) @ vt.T
    assert before.max() / before.min() > 2  # there was something to do
    assert np.diag(after).min() > 0.6 and np.diag(after).max() < 1.25
    np.testing.assert_allclose(after - np.diag(np.diag(after)), 0, atol=1e-4)


def test_the_size_of_the_gradient_does_not_matter_and_zeros_stay_zeros():
    matrix = jnp.asarray(np.random.RandomState(0).randn(6, 9), jnp.float32)
    np.testing.assert_allclose(muon.orthogonalise(1e3 * matrix, 5), muon.orthogonalise(matrix, 5), atol=1e-4)
    assert (muon.orthogonalise(0 * matrix, 5) == 0).all()


def test_a_batch_of_padded_matrices_is_each_one_alone():
    generator = np.random.RandomState(0)
    shapes = [(27, 8), (72, 8), (72, 16), (72, 16), (16, 40), (5, 5)]
    matrices = [jnp.asarray(generator.randn(*shape) * 10**index, jnp.float32) for index, shape in enumerate(shapes)]
    for batched, matrix in zip(muon.orthogonalise_all(matrices, 5), matrices, strict=True):
        np.testing.assert_allclose(batched, muon.orthogonalise(matrix, 5), rtol=1e-4, atol=1e-5)


def test_batched_updates_are_those_of_kernels_one_by_one():
    kernels = {"kernel2": (3, 3, 5, 5), "kernel3": (3, 3, 5, 5), "kernel4": (1, 1, 5, 7)}
    others = {name: jnp.asarray(np.random.RandomState(9).randn(*shape), jnp.float32) for name, shape in kernels.items()}
    params, grads = params_of(0) | others, params_of(1) | others
    settings = {"momentum": 0.6, "steps": 3, "keep_norms": True}
    updates = []
    for batched in (False, True):
        optimizer = make(muon=settings | {"batched": batched})
        updates.append(optimizer.update(grads, optimizer.init(params), params)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *updates)


def make(**changes):
    config = stage("speedrun").optimizer
    config.update({"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0} | changes)
    return optim.make_optimizer(config, optim.make_schedule(config, 10, 10))


def params_of(seed):
    generator = np.random.RandomState(seed)
    leaves = {"kernel": (3, 3, 2, 5), "bias": (5,), "dense": (4, 3)}
    return {name: jnp.asarray(generator.randn(*shape), jnp.float32) for name, shape in leaves.items()}


def test_convolutions_get_orthogonal_updates_and_the_rest_nesterov_momentum():
    optimizer = make(muon={"momentum": 0.6, "steps": 5, "keep_norms": False})
    params = params_of(0)
    state, velocity = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    for step in range(1, 4):
        grads = params_of(step)
        updates, state = optimizer.update(grads, state, params)
        keep = {"kernel": 0.6, "bias": 0.85, "dense": 0.85}
        velocity = {name: keep[name] * velocity[name] + grads[name] for name in grads}
        ahead = {name: keep[name] * velocity[name] + grads[name] for name in grads}
        for name in ("bias", "dense"):
            np.testing.assert_allclose(updates[name], -0.1 * ahead[name], rtol=1e-5)
        expected = muon.orthogonalise(jnp.asarray(ahead["kernel"]).reshape(18, 5), 5)
        np.testing.assert_allclose(updates["kernel"].reshape(18, 5), -0.1 * expected, atol=1e-5)


def test_kernels_keep_their_norm_before_each_step():
    optimizer, free = make(), make(muon={"momentum": 0.6, "steps": 3, "keep_norms": False})
    params, grads = params_of(0), params_of(1)
    after = optax.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0])
    steps, _ = free.update(grads, free.init(params), params)
    kept = np.asarray(after["kernel"] - steps["kernel"])
    np.testing.assert_allclose(np.linalg.norm(kept), np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(kept / np.linalg.norm(kept), params["kernel"] / jnp.linalg.norm(params["kernel"]), 1e-3)
    np.testing.assert_allclose(after["bias"] - steps["bias"], params["bias"], rtol=1e-5)


def test_frozen_parameters_are_passed_over():
    params = {"frozen": None, **params_of(0)}
    optimizer = make(weight_decay=0.1)
    updates, _ = optimizer.update({"frozen": None, **params_of(1)}, optimizer.init(params), params)
    assert updates["frozen"] is None and len(jax.tree.leaves(updates)) == 3
