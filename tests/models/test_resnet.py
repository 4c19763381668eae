"""ResNet-18 in its CIFAR form: its size, its shapes, and that all of it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import stage

from cnn_jax import config as config_lib
from cnn_jax import data, models, rng
from cnn_jax.models.resnet import ResNet, ResNet18

SMALL = ResNet(10, stage_sizes=(1, 1), width=8)


def shapes(model, side=32):
    return jax.eval_shape(lambda: model.init(rng.root(0), jnp.zeros((1, side, side, 3)), train=False))


def test_has_the_parameters_and_the_depth_of_resnet_18():
    params = shapes(models.build({"name": "resnet18"}, 10))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962
    kernels = [path for path, leaf in jax.tree.leaves_with_path(params) if leaf.ndim > 1]
    projections = [path for path in kernels if path[1].key == "project"]
    assert len(kernels) - len(projections) == 18 and len(projections) == 3


def test_each_stage_after_the_first_halves_the_resolution_and_doubles_the_channels():
    model = ResNet18(7, width=4)
    _, state = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((2, 32, 24, 3)), train=False, capture_intermediates=True), shapes(model)
    )
    outputs = {name: value["__call__"][0].shape for name, value in state["intermediates"].items() if name != "__call__"}
    assert outputs["stem"] == outputs["stage1_block2"] == (2, 32, 24, 4)
    assert outputs["stage2_block1"] == outputs["stage2_block2"] == (2, 16, 12, 8)
    assert outputs["stage4_block2"] == (2, 4, 3, 32)
    assert outputs["head"] == (2, 7)


def test_a_basic_block_adds_its_input():
    """With kernels of zero, what is left is the shortcut."""
    model = SMALL.clone(stage_sizes=(1,))
    images = jnp.asarray(np.random.RandomState(0).rand(2, 6, 6, 3), jnp.float32)
    variables = model.init(rng.root(0), images, train=False)
    params = variables["params"]
    params["stage1_block1"] = jax.tree.map(jnp.zeros_like, params["stage1_block1"])
    _, state = model.apply(variables, images, train=False, capture_intermediates=True)
    outputs = state["intermediates"]
    np.testing.assert_array_equal(outputs["stage1_block1"]["__call__"][0], outputs["stem"]["__call__"][0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_learns_digits_in_a_few_steps_with_a_gradient_in_every_parameter(dtype):
    model = models.build({"name": "resnet18", "width": 8}, 10, dtype).clone(stage_sizes=(1, 1))
    config = stage("baseline").data
    config.name = "digits"
    split = data.load(config).train
    images, labels = jnp.asarray(split.images()[:128, ::4, ::4] / np.float32(255)), jnp.asarray(split.labels[:128])
    variables = model.init(rng.root(0), images[:1], train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    optimizer = optax.sgd(0.1, momentum=0.9)

    def loss_fn(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        assert logits.dtype == jnp.float32
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

    @jax.jit
    def step(params, statistics, opt_state):
        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), statistics, opt_state, loss, grads

    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    *state, first, grads = step(*state)
    assert all(jnp.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))
    for _ in range(30):
        *state, loss, _ = step(*state)
    assert loss < 0.3 * first


def test_is_configured_by_name():
    config = stage("baseline")
    config.unlock()
    config.model = {"name": "resnet18", "width": 8, "bn_momentum": 0.9, "bn_epsilon": 1e-5, "trainable": "all"}
    config_lib.validate(config)
    assert models.build(config.model, 10).width == 8
