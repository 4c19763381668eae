"""Whole runs with a backbone: phases, features computed once, exact resume, and the commands on what they leave."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from whole_runs import assert_same_run, final_arrays, interrupt_at, kill_and_repeat

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.inference import load_classifier
from cnn_jax.models import pretrained
from cnn_jax.training import feature_cache
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.workdir import manifest
from cnn_jax.workdir.records import read_metrics

BORDER, TOTAL = 25, 50  # the first step of phase two, and the end
CONFIG = "tests/transfer_config.py"


@pytest.fixture
def config():
    return config_lib.load(ROOT / CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run in two phases that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("transfer")
    command = [sys.executable, "-m", "cnn_jax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| head/logits/kernel | (16, 10) | 160 | trained |" in " ".join(done.stderr.split())
    assert "| backbone/block1/kernel | (3, 3, 3, 8) | 216 | frozen |" in " ".join(done.stderr.split())
    return workdir


def test_each_phase_trains_what_it_says(finished, config):
    first = Experiment(config, data.load(config.data)).init()
    model, _ = final_arrays(finished, TOTAL)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), model["params"]["backbone"], first.params["backbone"])
    assert jax.tree.leaves(same["block1"]) == [True] and jax.tree.leaves(same["block1_bn"]) == [True, True]
    assert jax.tree.leaves(same["block2"]) == [False] and jax.tree.leaves(same["block2_bn"]) == [False, False]
    jax.tree.map(np.testing.assert_array_equal, model["batch_stats"], jax.device_get(first.batch_stats))
    rates = {record["step"]: record["learning_rate"] for record in read_metrics(finished) if record["split"] == "train"}
    assert rates[BORDER] == pytest.approx(1e-3) and min(rates) < BORDER < max(rates)


def test_killed_in_the_middle_of_phase_two(finished, tmp_path):
    latest, done = kill_and_repeat(CONFIG, tmp_path, BORDER + 5)
    assert BORDER < latest < TOTAL
    assert "Resuming from step" in done.stderr
    assert_same_run(tmp_path, finished, TOTAL)


@pytest.mark.parametrize("step", [23, BORDER, BORDER + 5])
def test_stopped_around_the_border_of_phases(finished, tmp_path, config, monkeypatch, step):
    interrupt_at(monkeypatch, step)
    assert train(config, str(tmp_path)) == 128 + signal.SIGTERM
    assert train(config, str(tmp_path)) == 0
    assert_same_run(tmp_path, finished, TOTAL)


def test_stopped_while_features_are_computed(finished, tmp_path, config, monkeypatch, capsys):
    monkeypatch.setattr(feature_cache, "IMAGES_IN_A_FILE", 50)
    compute, calls = feature_cache.FeatureCache._compute, []

    def interrupting(self, images, stop, advance):
        calls.append(len(images))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, images, stop, advance)

    monkeypatch.setattr(feature_cache.FeatureCache, "_compute", interrupting)
    assert train(config, str(tmp_path)) == 128 + signal.SIGINT
    assert "the features so far are kept" in capsys.readouterr().err
    assert train(config, str(tmp_path)) == 0
    # Train 4 files, validation 2, test 8; of the third, which was interrupted, nothing was kept.
    assert len(calls) == 3 + 2 + 2
    assert_same_run(tmp_path, finished, TOTAL)


def test_features_computed_once_or_every_time_give_the_same_run(config, tmp_path):
    config.finetune.epochs = 0
    dataset, results = data.load(config.data), []
    config.model.dropout = ()
    for folder in (None, tmp_path):
        own = Experiment(config, dataset, folder)
        _, state, values = own.train_chunk(own.init(), 0)
        results.append((state.params["head"], values, own.evaluate(state.variables, "validation", 5)))
    assert list(tmp_path.iterdir())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_nothing_is_reused_where_images_are_augmented(config, tmp_path):
    config.augment.flip = True
    own = Experiment(config, data.load(config.data), tmp_path)
    assert not own.must_compute_features(own.phases[0], "train")
    own.train_chunk(own.init(), 0)
    assert not list(tmp_path.iterdir())


def test_published_weights_become_the_backbone(config, monkeypatch):
    loaded = {}

    def load(name, source, shapes):
        assert (name, source) == ("tiny", "somewhere.h5")
        loaded.update(jax.tree.map(lambda x: np.random.RandomState(0).rand(*x.shape).astype(np.float32), shapes))
        return loaded

    monkeypatch.setattr(pretrained, "load", load)
    dataset = data.load(config.data)
    drawn = Experiment(config, dataset).init()
    config.model.weights = "somewhere.h5"
    own = Experiment(config, dataset)
    state = own.init()
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], loaded["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats["backbone"], loaded["batch_stats"])
    # The head is that of the same seed on a random backbone, so that the two can be compared.
    jax.tree.map(np.testing.assert_array_equal, state.params["head"], drawn.params["head"])
    assert jax.tree.structure(state) == jax.tree.structure(own.target(0))


def test_published_weights_can_be_averaged(config, monkeypatch):
    def load(name, source, shapes):
        return jax.tree.map(lambda x: np.random.RandomState(0).rand(*x.shape).astype(np.float32), shapes)

    monkeypatch.setattr(pretrained, "load", load)
    config.model.weights, config.average.decay = "somewhere.h5", 0.5
    own = Experiment(config, data.load(config.data))
    _, state, _ = own.train_chunk(own.init(), 0)
    assert jax.tree.structure(state) == jax.tree.structure(own.target(0))
    assert not np.array_equal(state.average["params"]["head"]["logits"]["bias"], state.params["head"]["logits"]["bias"])


def test_a_run_goes_on_without_the_file_of_weights(finished, config, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "load", None)
    config.model.weights = "gone.h5"
    with pytest.raises(TypeError):
        Experiment(config, data.load(config.data)).init()
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    config_lib.write(config, workdir / "config.json")
    for step in (workdir / "checkpoints").iterdir():
        path = step / "metadata" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config.to_dict()}))
        records = manifest.describe_records(workdir / "metrics.jsonl")
        manifest.write(step, int(step.name), None, config.to_dict(), records)
    assert train(config, str(workdir)) == 0


def test_what_is_served_is_what_was_trained(finished, config):
    """The backbone's own normalisation is in the workdir; the answers are those of the run."""
    classifier = load_classifier(finished, step="latest")
    assert classifier.preprocessing.mean == (0.5, 0.5, 0.5) and classifier.preprocessing.std == (0.25, 0.25, 0.25)
    test = data.load(config.data).test
    correct = (classifier(test.images()).argmax(axis=1) == test.labels).mean()
    scored = [record for record in read_metrics(finished) if record["split"] == "test"]
    assert correct == pytest.approx(scored[-1]["accuracy"], abs=1e-6)


def test_a_module_that_is_not_there_is_named(config, tmp_path):
    config.finetune.trainable = "block3"
    with pytest.raises(UserError, match=r"'block3' selects none.*backbone/block2"):
        train(config, str(tmp_path / "run"))
