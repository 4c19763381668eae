"""From a batch to the network's input: mixing of images and targets in training steps and whole runs."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from conftest import stage
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from whole_runs import assert_same_run, interrupt_at

from cnn_jax import data, rng
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.inputs import ImageInputs
from cnn_jax.training.loop import train
from cnn_jax.training.step import soft_targets
from cnn_jax.transforms.mix import Mixing
from cnn_jax.transforms.preprocess import Preprocessing

PREPROCESS = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
MIXES = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


def make(**augment):
    config = stage("baseline")
    config.augment.update(augment)
    return ImageInputs.from_config(config, PREPROCESS, (16, 16))


def targets_of(batch):
    return soft_targets(batch["label"], 10, 0.1)


def compiled(inputs):
    """Returns a function from a batch, a step and a seed to the network's inputs and the targets."""

    @jax.jit
    def train(batch, step, key):
        return inputs.train(batch, targets_of(batch), key, step)

    return lambda batch, step=3, seed=0: train(batch, jnp.int32(step), rng.root(seed))


def test_by_default_inputs_are_preprocessed_images_and_targets_stay():
    batch = make_batch()
    images, targets = compiled(make())(batch)
    np.testing.assert_array_equal(images, jax.jit(PREPROCESS)(batch["image"]))
    np.testing.assert_array_equal(targets, jax.jit(targets_of)(batch))


def test_mixup_blends_normalised_images_and_targets_by_one_factor():
    batch = make_batch()
    images, targets = compiled(make(mixup=0.4))(batch)
    plain, labels = PREPROCESS(batch["image"]), np.asarray(targets_of(batch))
    # The weights of all images in each mixed one, by least squares.
    weights = np.linalg.lstsq(np.reshape(plain, (8, -1)).T, np.reshape(images, (8, -1)).T)[0].T
    assert ((weights > 1e-3).sum(1) == 2).all() and len(set(weights.diagonal().round(3))) == 1
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(targets, weights @ labels, atol=1e-4)


@pytest.mark.parametrize("mixes", MIXES, ids="+".join)
def test_step_and_seed_determine_the_mix_and_a_batch_spread_over_two_devices_has_the_same(mixes):
    inputs, batch = compiled(make(**mixes, flip=True, shift=0.1)), make_batch(16)
    first = inputs(batch)
    assert not np.array_equal(inputs(batch, step=4)[0], first[0])
    assert not np.array_equal(inputs(batch, seed=1)[0], first[0])
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    spread = inputs(jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(spread[0].sharding.device_set) == 2
    jax.tree.map(np.testing.assert_array_equal, spread, first)


def test_evaluation_does_not_mix():
    batch = make_batch()
    seen = make(mixup=0.4, cutmix=1.0).predict(lambda images: images.mean(axis=(1, 2)), batch)
    np.testing.assert_array_equal(seen, PREPROCESS(batch["image"]).mean(axis=(1, 2)))


@pytest.mark.parametrize("mixes, fixed", [({}, True), *((mix, False) for mix in MIXES)])
def test_features_can_be_reused_only_where_nothing_is_mixed(mixes, fixed):
    assert make(**mixes).fixed is fixed


def test_a_run_with_mixup_resumes_exactly(tmp_path, small_config, monkeypatch):
    small_config.epochs = 1
    small_config.model.update({"widths": (4,), "hidden": (), "dropout": (0.1,), "batch_norm": False})
    small_config.augment.mixup = 0.4
    assert Experiment(small_config, data.load(small_config.data)).phases[0].step.inputs.mix == Mixing(mixup=0.4)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(small_config, str(whole)) == 0
    interrupt_at(monkeypatch, 10)
    assert train(small_config, str(resumed)) == 128 + signal.SIGTERM
    assert train(small_config, str(resumed)) == 0
    assert_same_run(resumed, whole, 13)
