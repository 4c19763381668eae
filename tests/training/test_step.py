"""The train step, on one device and on several, and the numbers of every stage."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from conftest import stage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_jax import models, rng
from cnn_jax.training import optim
from cnn_jax.training.init import draw
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.metrics import summarise
from cnn_jax.training.step import TrainStep
from cnn_jax.transforms.augment import Augmentation
from cnn_jax.transforms.preprocess import Preprocessing

STAGES = ["basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment"]
GOLDEN = Path(__file__).with_name("golden_losses.json")


def make(config, axis_name=None):
    """Returns (state at step 0, train step), for images of 16x16 pixels."""
    model = models.build(config.model, 10, config.dtype)
    train_step = TrainStep(
        model,
        optim.make_optimizer(config.optimizer, optim.make_schedule(config.optimizer, 100, 10)),
        ImageInputs(Preprocessing(), Augmentation.from_config(config.augment, config.data.mean, (16, 16))),
        diagnostics=config.diagnostics,
        axis_name=axis_name,
    )
    init = jax.jit(lambda key: train_step.init(draw(model, key, jnp.zeros((1, 16, 16, 3)))))
    return init(rng.root(config.seed)), train_step


def narrow(name, **model):
    config = stage(name)
    config.model.update({"widths": (4, 8), "hidden": (16,), "convs_per_block": 1, "dropout": (), **model})
    return config


def lane(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


def losses(name):
    """The losses of three steps of a stage, its network four times as narrow, on random images."""
    config = stage(name)
    config.model.widths = (8, 16, 32)
    config.model.hidden = tuple(units // 4 for units in config.model.hidden)
    state, train_step = make(config)
    train_step, found = jax.jit(train_step), []
    for seed in range(3):
        state, metrics = train_step(state, make_batch(32, seed=seed), rng.root(config.seed))
        found.append(float(summarise(metrics)["loss"]))
    return found


@pytest.mark.parametrize("name", STAGES)
def test_golden_losses(name):
    """A change that should not change the numbers does not; `python tests/training/test_step.py` rewrites them.

    The tolerance is for other processors and compilers: BatchNorm enlarges their rounding from step to step.
    """
    np.testing.assert_allclose(losses(name), json.loads(GOLDEN.read_text())[name], rtol=1e-4)


def test_a_step_learns_and_counts():
    state, train_step = make(narrow("batchnorm"))
    train_step, batch = jax.jit(train_step), make_batch()
    first = None
    for _ in range(30):
        state, metrics = train_step(state, batch, rng.root(0))
        first = first or float(summarise(metrics)["loss"])
    assert int(state.step) == 30
    assert float(summarise(metrics)["loss"]) < 0.1 * first
    assert float(summarise(metrics)["accuracy"]) == 1.0


def test_class_weights_multiply_the_loss_of_each_example():
    state, train_step = make(narrow("batchnorm"))
    batch, weights = make_batch(), np.random.RandomState(0).uniform(0.2, 3, 10)
    weighted = dataclasses.replace(train_step, class_weights=tuple(weights.tolist()))
    grads, (logits, losses, _) = jax.jit(weighted.gradients)(state, batch, rng.root(0))
    labels = np.asarray(batch["label"])
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    np.testing.assert_allclose(losses, -log_probs[np.arange(len(labels)), labels] * weights[labels], rtol=1e-5)
    # The gradient of the head's bias is the mean of weight * (probability - target), as for unweighted examples.
    expected = (weights[labels][:, None] * (np.exp(log_probs) - np.eye(10)[labels])).mean(0)
    np.testing.assert_allclose(grads["head"]["bias"], expected, rtol=1e-3, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Broken(ImageInputs):
    """Makes the images of a batch that begins with an example of class 3 infinite."""

    def train(self, batch, targets, *arguments):
        images, targets = super().train(batch, targets, *arguments)
        return jnp.where(batch["label"][0] == 3, jnp.inf, images), targets


def test_a_skipped_update_changes_nothing_but_counts_of_steps():
    config = narrow("batchnorm")
    config.optimizer.name = "adam"
    state, train_step = make(config)
    train_step = dataclasses.replace(train_step, inputs=Broken(Preprocessing()), skip_not_finite=True)
    good = make_batch()
    good["label"] = good["label"].at[0].set(4)
    bad = good | {"label": good["label"].at[0].set(3)}
    step = jax.jit(train_step)
    before, metrics = step(state, good, rng.root(0))
    assert float(summarise(metrics)["skipped"]) == 0
    after, metrics = step(before, bad, rng.root(0))
    assert float(summarise(metrics)["skipped"]) == 1
    assert int(after.step) == 2
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new, old + 1 if old.dtype == jnp.int32 else old)
    # A good update is the one without the check.
    plain = jax.jit(dataclasses.replace(train_step, skip_not_finite=False))(state, good, rng.root(0))[0]
    assert_close(before, plain, 1e-6)


def test_gradient_equals_finite_differences():
    """One step of plain SGD moves along the slope of the mean loss."""
    config = narrow("baseline")
    config.optimizer.momentum, config.optimizer.learning_rate = 0.0, 1.0
    state, train_step = make(config)
    train_step, batch = jax.jit(train_step), make_batch()
    after, _ = train_step(state, batch, rng.root(0))
    gradient = jax.tree.map(lambda before, after: before - after, state.params, after.params)

    def loss(distance):
        moved = jax.tree.map(lambda p, g: p + distance * g, state.params, gradient)
        return float(summarise(train_step(state.replace(params=moved), batch, rng.root(0))[1])["loss"])

    slope = sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose((loss(1e-2) - loss(-1e-2)) / 2e-2, slope, rtol=0.01)


def test_masked_examples_count_for_nothing_but_batch_statistics():
    config = narrow("baseline")
    state, train_step = make(config)
    batch, mask = make_batch(), jnp.arange(8) < 5
    part = jax.tree.map(lambda x: x[:5], batch)
    masked, masked_metrics = train_step(state, {**batch, "mask": mask}, rng.root(0))
    alone, alone_metrics = train_step(state, part, rng.root(0))
    assert_close(masked.params, alone.params)
    assert_close(summarise(masked_metrics), summarise(alone_metrics))


# Dropout is off where devices are compared under pmap: there, each device draws a mask of its own.
@pytest.mark.parametrize("name", ["batchnorm", "augment"])
def test_pmap_over_four_devices_equals_jit_on_one(name):
    config = narrow(name)
    config.diagnostics = True
    state, train_step = make(config)
    _, mapped_step = make(config, axis_name="devices")
    batch, key = make_batch(16), rng.root(0)
    mapped_step = jax.pmap(mapped_step, axis_name="devices", in_axes=(None, 0, None))
    spread = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
    many, many_metrics = mapped_step(state, spread, key)
    one, one_metrics = jax.jit(train_step)(state, batch, key)
    for device in range(4):
        assert_close(lane(many, device), one)
    first = summarise(lane(many_metrics, 0))
    expected = summarise(one_metrics)
    assert_close(first, expected)


def test_dropout_differs_between_devices_under_pmap():
    config = narrow("batchnorm", dropout=(0.5, 0.5, 0.5))
    state, _ = make(config)
    _, mapped_step = make(config, axis_name="devices")
    one = make_batch(4)
    same = jax.tree.map(lambda x: jnp.stack([x] * 4), one)
    _, metrics = jax.pmap(mapped_step, axis_name="devices", in_axes=(None, 0, None))(state, same, rng.root(0))
    alone = jax.tree.map(lambda x: x[None], one)
    _, single = jax.pmap(mapped_step, axis_name="devices", in_axes=(None, 0, None))(state, alone, rng.root(0))
    totals = metrics.loss.total[0], single.loss.total[0]
    assert abs(float(totals[0]) / 4 - float(totals[1])) > 1e-4


def test_sharded_over_a_mesh_equals_one_device():
    """The mainstream path: jit with the batch spread over devices, everything random switched on."""
    config = narrow("augment", dropout=(0.2, 0.2, 0.2))
    state, train_step = make(config)
    batch, key = make_batch(16), rng.root(0)
    one, _ = jax.jit(train_step)(state, batch, key)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    state, key = jax.device_put((state, key), NamedSharding(mesh, PartitionSpec()))
    many, _ = jax.jit(train_step)(state, batch, key)
    assert_close(many.params, one.params)
    assert_close(many.batch_stats, one.batch_stats)


def test_vmap_over_seeds_equals_single_runs():
    config = narrow("augment", dropout=(0.2, 0.2, 0.2))
    state, train_step = make(config)
    batches = [make_batch(seed=seed) for seed in (0, 1)]
    keys = [rng.root(seed) for seed in (0, 1)]
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    many, _ = jax.jit(jax.vmap(train_step))(stack(state, state), stack(*batches), jnp.stack(keys))
    for seed in (0, 1):
        one, _ = jax.jit(train_step)(state, batches[seed], keys[seed])
        assert_close(lane(many.params, seed), one.params)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses(name) for name in STAGES}, indent=1) + "\n")
