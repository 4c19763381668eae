"""The speed run, every ingredient on, as a user runs it: it trains, resumes where it was stopped, and serves."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, stage
from whole_runs import assert_same_run, final_arrays, interrupt_at

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.inference import artifact, load_classifier
from cnn_jax.inference.classifier import make_scorer
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.workdir.records import read_metrics
from cnn_jax.workdir.stopwatch import Stopwatch

TOTAL = 25
INGREDIENTS = {
    "model.name": "speednet",
    "optimizer.name": "muon",
    "optimizer.nesterov": True,
    "label_smoothing": 0.2,
    "augment.alternate_flip": True,
    "augment.crop_mode": "reflect",
    "average.lookahead": True,
    "eval.mirror": True,
    "eval.shift": 1,
}


def load():
    return config_lib.load(ROOT / "tests" / "speedrun_config.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("speedrun")
    assert train(load(), str(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def dataset():
    return data.load(load().data)


def test_the_smoke_run_has_every_ingredient_of_the_stage():
    for name in ("small", "whole"):
        flat = config_lib.flatten(load() if name == "small" else stage("speedrun"))
        assert {key: flat[key] for key in INGREDIENTS} == INGREDIENTS
        assert flat["average.decay"] > 0 and flat["optimizer.weight_decay"] > 0 and flat["augment.crop_padding"] == 2


def test_chunks_span_epochs_and_scores_come_once(finished):
    records = read_metrics(finished)
    assert [(r["step"], r["split"]) for r in records] == [
        (10, "train"),
        (20, "train"),
        (25, "train"),
        (25, "validation"),
        (25, "test"),
    ]
    assert records[3]["loss"] < np.log(10)  # after 25 steps it knows more than nothing
    times = json.loads((finished / "times.json").read_text())
    assert times["steps"] == TOTAL
    assert set(times["seconds"]) == {"compile", "initialise", "prepare", "train", "validation", "test"}
    assert times["seconds"]["compile"] > times["seconds"]["train"] > 0


def test_another_seed_is_its_run_and_compiles_nothing(dataset):
    first, config = Experiment(load(), dataset), load()
    config.seed = 3

    def begin(experiment):
        _, state, metrics = experiment.train_chunk(experiment.init(), 0)
        return jax.tree.map(np.asarray, (state, metrics))

    begin(first)
    watch = Stopwatch()
    with watch.measure("again"):
        again = begin(first.with_seed(3))
    assert watch.seconds["compile"] == 0
    jax.tree.map(np.testing.assert_array_equal, again, begin(Experiment(config, dataset)))
    assert first.config.seed == 0 and list(first.with_seed(3).seeds) == [3]


def test_the_whitening_kernel_is_that_of_the_images_and_frozen(finished, dataset):
    experiment = Experiment(load(), dataset)
    first, (served, going_on) = experiment.init(), final_arrays(finished, TOTAL)
    for now in (served["params"], going_on["params"]):
        np.testing.assert_array_equal(now["whiten"]["kernel"], first.params["whiten"]["kernel"])
        assert (now["whiten"]["bias"] != first.params["whiten"]["bias"]).all()
    images = experiment.preprocess(jnp.asarray(dataset.train.images()))
    fitted = experiment.model.init_from_images(first.params, images)["whiten"]["kernel"]
    # Digits are grey: directions without variance are any of a subspace. Their sum of squares is not.
    squares = [np.einsum("abci,defi->abcdef", k, k) for k in (first.params["whiten"]["kernel"], fitted)]
    np.testing.assert_allclose(*squares, atol=1e-2 * squares[0].max())


def test_stopped_and_gone_on_is_the_run_that_was_never_stopped(finished, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 20)
    assert train(load(), str(tmp_path)) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert train(load(), str(tmp_path)) == 0
    assert_same_run(tmp_path, finished, TOTAL)


def test_the_average_is_served_with_all_views_and_so_exported(finished, dataset, tmp_path):
    classifier = load_classifier(finished)
    images, labels = dataset.test.images(), dataset.test.labels
    scored = read_metrics(finished)[-1]
    log_probabilities = classifier.score(images)
    np.testing.assert_allclose(-log_probabilities[np.arange(len(labels)), labels].mean(), scored["loss"], rtol=1e-4)
    assert (log_probabilities.argmax(-1) == labels).mean() == pytest.approx(scored["accuracy"], abs=0.003)
    alone = make_scorer(*classifier.model, classifier.preprocessing)(images)
    assert abs(log_probabilities - alone).max() > 1e-2
    artifact.write(tmp_path / "m.jaxexport", classifier.log_probabilities, classifier.metadata, classifier.step)
    np.testing.assert_allclose(
        load_classifier(tmp_path / "m.jaxexport").score(images[:5]), log_probabilities[:5], atol=1e-4
    )


def test_averaged_statistics_fit_the_averaged_weights(finished, dataset):
    """The loss with them is that with statistics computed from the images, to a few percent."""
    model, variables = load_classifier(finished).model
    experiment = Experiment(load(), dataset)
    images = experiment.preprocess(jnp.asarray(dataset.train.images()))
    exact, update = variables, jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[1])
    for _ in range(12):  # momentum 0.6: nothing is left of what was there
        exact = exact | update(exact)
    losses = [experiment.evaluate(each, "validation")["loss"] for each in (variables, exact)]
    assert abs(losses[0] - losses[1]) < 0.1 * losses[1]


@pytest.mark.parametrize("scan", [False, True])
def test_the_warm_up_leaves_the_state_and_compiles_the_program(dataset, scan):
    experiment = Experiment(load(), dataset, place=Placement.choose(scan=scan))
    state, (phase,) = experiment.init(), experiment.phases
    before = jax.device_get(state)
    pipeline = experiment.pipeline(phase, state.variables)
    experiment.warm_up(phase, state, pipeline, 0)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    size = phase.train.program._cache_size()
    _, state, _ = experiment.train_chunk(state, 0)
    assert phase.train.program._cache_size() == size == 1
    assert not np.array_equal(before.params["head"]["kernel"], state.params["head"]["kernel"])


def test_the_warm_up_is_timed_apart(finished):
    seconds = json.loads((finished / "times.json").read_text())["seconds"]
    assert seconds["warm-up"] > 0 and seconds["train"] > 0


def test_the_run_as_one_program_equals_the_loop(finished, dataset):
    """What a GPU runs, on a CPU: the whole run as one scan."""
    config = load()
    config.steps_per_call = 10**6
    experiment = Experiment(config, dataset, place=Placement.choose(scan=True))
    now, state, _ = experiment.train_chunk(experiment.init(), 0)
    assert now == TOTAL
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.02),
        jax.device_get(state.variables),
        final_arrays(finished, TOTAL)[0],
    )
