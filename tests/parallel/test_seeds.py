"""Many seeds as one run: each is the single run with its seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from whole_runs import interrupt_at

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.inference import load_classifier
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.workdir.checkpoint import Checkpoints
from cnn_jax.workdir.records import read_metrics


@pytest.fixture(scope="module")
def dataset():
    return data.load(config_lib.load(ROOT / "tests" / "small_config.py").data)


def make(dataset, seed, seeds, layout=None):
    """A run whose chunks are single steps."""
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seed, config.seeds, config.steps_per_call = seed, seeds, 1
    return Experiment(config, dataset, place=Placement.choose(seeds, seed_layout=layout))


@pytest.fixture(scope="module")
def alone(dataset):
    """The run of seed 8 alone."""
    return make(dataset, 8, 1)


def flat(variables):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(variables)])


@pytest.mark.parametrize("layout", ["loop", "vmap", pytest.param("devices", marks=pytest.mark.slow)])
def test_every_step_of_a_seed_is_that_of_the_single_run(layout, dataset, alone):
    """Initial weights, order, augmentation and dropout differ by seed, and are those of the seed.

    Step by step, each from the same state: over an epoch, a rounding may stay what it is or grow a thousandfold.
    """
    together = make(dataset, 5, 4, layout)
    now, state = 0, together.init()

    def single(index):
        """A copy of one seed's state: the step that takes it reuses its buffers."""
        return alone.place.stack([jax.tree.map(jnp.copy, together.place.seed(state, index))])

    jax.tree.map(np.testing.assert_array_equal, single(3), alone.init())
    while now < together.plan.end_of_epoch(1):
        before = [flat(single(index).variables) for index in (2, 3)]
        # Seed 8 from the state of seed 7, which is another step, and from its own.
        (_, other, _), (_, one, record) = (alone.train_chunk(single(index), now) for index in (2, 3))
        now, state, values = together.train_chunk(state, now)
        wrong, distance = (
            np.linalg.norm(flat(trained.variables) - flat(single(index).variables))
            / np.linalg.norm(flat(trained.variables) - start)
            for index, trained, start in zip((2, 3), (other, one), before)
        )
        assert distance == 0 if layout == "loop" else distance < 1e-4  # of the length of the step
        assert wrong > 0.1
        np.testing.assert_allclose(values["lanes"]["loss"][3], record["loss"], rtol=1e-5)
    scores = together.evaluate(state.variables, "validation", now)
    losses = scores["lanes"]["loss"]
    assert losses[3] == pytest.approx(alone.evaluate(one.variables, "validation", now)["loss"], rel=1e-4)
    assert len(set(losses)) == 4
    assert scores["loss"] == pytest.approx(np.mean(losses))
    assert scores["loss_std"] == pytest.approx(np.std(losses, ddof=1))


def test_seeds_spread_over_devices_can_be_resumed(dataset, tmp_path):
    """The state is saved from four devices and restored to them; the next step is the same, bit for bit."""
    ends = []
    for resume in (False, True):
        run = make(dataset, 5, 4, "devices")
        with Checkpoints(tmp_path / "checkpoints", run.metadata) as checkpoints:
            now, state = run.restore(checkpoints) if resume else run.train_chunk(run.init(), 0)[:2]
            assert now == 1 and len(state.params["head"]["bias"].sharding.device_set) == 4
            checkpoints.save(now, state.items)
        ends.append(jax.device_get(run.train_chunk(state, now)[1]))
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_batch_spread_over_devices_is_the_same_step(dataset, alone, devices):
    config = alone.config
    place = Placement.choose(devices=jax.devices()[:devices], data=devices)
    spread = Experiment(config, dataset, place=place)
    (_, one, values), (_, many, spread_values) = (run.train_chunk(run.init(), 0) for run in (alone, spread))
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == devices
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.variables, many.variables)
    assert spread_values["loss"] == pytest.approx(values["loss"], rel=1e-5)
    scores = spread.evaluate(many.variables, "validation")
    assert scores["loss"] == pytest.approx(alone.evaluate(one.variables, "validation")["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The workdir of a finished run of seeds 0, 1 and 2."""
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seeds = 3
    workdir = tmp_path_factory.mktemp("three")
    assert train(config, str(workdir)) == 0
    return workdir


def test_a_run_records_every_seed_and_one_can_be_loaded(three, trained, dataset):
    images = dataset.test.images()
    last = [record for record in read_metrics(three) if record["split"] == "test"][-1]
    assert len(last["lanes"]["accuracy"]) == 3
    assert last["accuracy"] == pytest.approx(np.mean(last["lanes"]["accuracy"]))
    for seed in range(3):
        classifier = load_classifier(three, step="latest", seed=seed)
        assert classifier.metadata["config"]["seed"] == seed
        accuracy = (classifier(images).argmax(axis=1) == dataset.test.labels).mean()
        assert accuracy == pytest.approx(last["lanes"]["accuracy"][seed], abs=1e-6)
    alone = load_classifier(trained, step="latest")
    jax.tree.map(
        np.testing.assert_array_equal,
        load_classifier(three, step="latest").model[1]["params"],
        alone.model[1]["params"],
    )
    with pytest.raises(UserError, match="has 3 seeds: --seed=3 must be a number below 3"):
        load_classifier(three, seed=3)


def test_stopped_and_resumed_with_all_seeds(three, tmp_path, monkeypatch):
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seeds = 3
    interrupt_at(monkeypatch, 18)
    assert train(config, str(tmp_path)) == 128 + 15
    monkeypatch.undo()
    assert train(config, str(tmp_path)) == 0
    whole, resumed = (load_classifier(path, step="latest", seed=2).model[1] for path in (three, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert [r["loss"] for r in read_metrics(three)] == [r["loss"] for r in read_metrics(tmp_path)]


def test_seeds_share_the_features_of_a_loaded_backbone_alone(tmp_path):
    config = config_lib.load(ROOT / "tests" / "transfer_config.py")
    config.seeds = 2
    with pytest.raises(UserError, match=r"features\.cache=False"):
        Experiment(config, data.load(config.data), tmp_path)
    config.features.cache = False
    config.epochs = config.finetune.epochs = 1
    assert train(config, str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seeds"] == 2
