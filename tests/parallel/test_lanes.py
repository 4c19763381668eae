"""Many seeds as one run: every lane is the single run with its seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from whole_runs import interrupt_at

from cnn_jax import config as config_lib
from cnn_jax import data, rng
from cnn_jax.errors import UserError
from cnn_jax.inference import load_classifier
from cnn_jax.parallel import lanes
from cnn_jax.training.experiment import Trainer
from cnn_jax.training.loop import train
from cnn_jax.workdir.records import read_metrics

HOWS = ("loop", "vmap", "devices")


def body(carry, row, scale, key):
    noise = jax.random.normal(key, carry["sum"].shape)
    return {"sum": carry["sum"] * 0.5 + scale * row["x"] + noise}


@pytest.mark.parametrize("how", HOWS)
def test_lanes_are_single_chunks(how):
    rows = np.random.RandomState(0).rand(5, 4, 3).astype(np.float32)
    keys = [rng.root(seed) for seed in range(4)]
    carry = {"sum": jnp.arange(12.0).reshape(4, 3)}
    chunk = lanes.make_lane_chunk(body, (0, 0, None, 0), 4, how=how)
    many = chunk(carry, {"x": rows}, jnp.float32(2), jnp.stack(keys))
    for lane in range(4):
        one = {"sum": jnp.arange(12.0).reshape(4, 3)[lane]}
        for step in range(5):
            one = body(one, {"x": rows[step, lane]}, 2.0, keys[lane])
        np.testing.assert_allclose(many["sum"][lane], one["sum"], rtol=1e-5, atol=1e-6)


def test_a_cpu_takes_lanes_one_after_the_other():
    assert lanes.choose(8) == "loop"


@pytest.fixture(scope="module")
def dataset():
    return data.load(config_lib.load(ROOT / "tests" / "small_config.py").data)


def make_trainer(dataset, seed, seeds):
    """The trainer of a run that returns after every step."""
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seed, config.seeds, config.steps_per_call = seed, seeds, 1
    return Trainer(config, dataset)


@pytest.fixture(scope="module")
def alone(dataset):
    """The trainer of seed 8 alone."""
    return make_trainer(dataset, 8, 1)


def flat(variables):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(variables)])


@pytest.mark.parametrize("how", ["loop", "vmap", pytest.param("devices", marks=pytest.mark.slow)])
def test_every_step_of_a_lane_is_that_of_the_single_run(how, dataset, alone, monkeypatch):
    """Initial weights, order, augmentation and dropout differ by lane, and are those of the seed.

    Step by step, each from the same state: over an epoch a rounding may stay what it is or grow a thousandfold.
    """
    monkeypatch.setattr(lanes, "choose", lambda count: how)
    together = make_trainer(dataset, 5, 4)
    now, state = 0, together.init_state()
    jax.tree.map(np.testing.assert_array_equal, lanes.take(state, 3), alone.init_state())
    while now < together.schedule.end_of_epoch(1):
        before = [flat(lanes.take(state, lane).variables) for lane in (2, 3)]
        # Seed 8 from the state of seed 7, which is another step, and from its own.
        (_, other, _), (_, one, record) = (alone.update(lanes.take(state, lane), now) for lane in (2, 3))
        now, state, values = together.update(state, now)
        wrong, distance = (
            np.linalg.norm(flat(single.variables) - flat(lanes.take(state, lane).variables))
            / np.linalg.norm(flat(single.variables) - start)
            for lane, single, start in zip((2, 3), (other, one), before)
        )
        assert distance == 0 if how == "loop" else distance < 1e-4  # of the length of the step
        assert wrong > 0.1
        np.testing.assert_allclose(values["lanes"]["loss"][3], record["loss"], rtol=1e-5)
    scores = together.evaluate(state.variables, "validation", now)
    losses = scores["lanes"]["loss"]
    assert losses[3] == pytest.approx(alone.evaluate(one.variables, "validation", now)["loss"], rel=1e-4)
    assert len(set(losses)) == 4
    assert scores["loss"] == pytest.approx(np.mean(losses))
    assert scores["loss_std"] == pytest.approx(np.std(losses, ddof=1))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The workdir of a finished run of seeds 0, 1 and 2."""
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seeds = 3
    workdir = tmp_path_factory.mktemp("three")
    assert train(config, str(workdir)) == 0
    return workdir


def test_a_run_records_every_lane_and_one_can_be_taken_out(three, trained, dataset):
    images = dataset.test.images()
    last = [record for record in read_metrics(three) if record["split"] == "test"][-1]
    assert len(last["lanes"]["accuracy"]) == 3
    assert last["accuracy"] == pytest.approx(np.mean(last["lanes"]["accuracy"]))
    for lane in range(3):
        classifier = load_classifier(three, step="latest", lane=lane)
        assert classifier.metadata["config"]["seed"] == lane
        accuracy = (classifier(images).argmax(axis=1) == dataset.test.labels).mean()
        assert accuracy == pytest.approx(last["lanes"]["accuracy"][lane], abs=1e-6)
    alone = load_classifier(trained, step="latest")
    jax.tree.map(
        np.testing.assert_array_equal,
        load_classifier(three, step="latest").model[1]["params"],
        alone.model[1]["params"],
    )
    with pytest.raises(UserError, match="has 3 seeds: --lane=3 must be below"):
        load_classifier(three, lane=3)


def test_stopped_and_gone_on_with_all_lanes(three, tmp_path, monkeypatch):
    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.seeds = 3
    interrupt_at(monkeypatch, 18)
    assert train(config, str(tmp_path)) == 128 + 15
    monkeypatch.undo()
    assert train(config, str(tmp_path)) == 0
    whole, resumed = (load_classifier(path, step="latest", lane=2).model[1] for path in (three, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert [r["loss"] for r in read_metrics(three)] == [r["loss"] for r in read_metrics(tmp_path)]


def test_seeds_share_the_features_of_a_loaded_backbone_alone(tmp_path):
    config = config_lib.load(ROOT / "tests" / "transfer_config.py")
    config.seeds = 2
    with pytest.raises(UserError, match=r"features\.cache=False"):
        Trainer(config, data.load(config.data), tmp_path)
    config.features.cache = False
    config.epochs = config.finetune.epochs = 1
    assert train(config, str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seeds"] == 2
