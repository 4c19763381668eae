"""Whole runs, and above all: a run that is stopped and resumed equals one that was never stopped."""

import json
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from whole_runs import assert_same_run, final_arrays, interrupt_at, kill_and_repeat, records

from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.workdir import provenance

TOTAL = 25  # steps of small_config: 2 epochs of 200 images in batches of 16


def test_what_a_run_leaves(trained):
    found = records(trained)
    assert [r["step"] for r in found if r["split"] == "train"] == [5, 10, 13, 18, 23, 25]
    assert [(r["step"], r["epoch"]) for r in found if r["split"] == "validation"] == [(13, 1), (25, 2)]
    assert [(r["step"], r["epoch"]) for r in found if r["split"] == "test"] == [(25, 2)]
    for record in found:
        assert {"loss", "accuracy", "precision", "recall", "f1", "threshold_precision", "threshold_recall"} <= set(
            record
        )
    config = json.loads((trained / "config.json").read_text())
    assert config["batch_size"] == 16
    assert list((trained / "tensorboard").glob("events.*"))
    with ocp.CheckpointManager(trained / "checkpoints", item_names=("metadata",)) as manager:
        metadata = manager.restore(TOTAL, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
    assert metadata["class_names"] == list("0123456789")
    assert metadata["preprocessing"]["image_size"] == 8
    assert metadata["config"] == config


def test_killed_in_the_middle_of_an_epoch_by_sigkill(trained, tmp_path):
    """kill -9 once the first checkpoint inside the first epoch is there; then the same command again."""
    latest, done = kill_and_repeat("tests/small_config.py", tmp_path, 5)
    assert 5 <= latest < TOTAL
    assert f"Resuming from step {latest} of {TOTAL}." in done.stderr
    assert provenance.read(tmp_path) == provenance.read(trained)  # which a plain resume does not touch
    assert_same_run(tmp_path, trained, TOTAL)


@pytest.mark.parametrize(
    "step, number",
    [(5, signal.SIGTERM), (10, signal.SIGINT), (13, signal.SIGTERM), (18, signal.SIGHUP)],
)
def test_stopped_after_any_chunk(trained, tmp_path, small_config, monkeypatch, capsys, step, number):
    interrupt_at(monkeypatch, step, number)
    assert train(small_config, str(tmp_path)) == 128 + number
    assert f"Stopped at step {step}, which is saved" in capsys.readouterr().err
    assert train(small_config, str(tmp_path)) == 0
    assert_same_run(tmp_path, trained, TOTAL)


def test_a_finished_run_is_not_trained_or_scored_again(trained, small_config, monkeypatch, capsys):
    lines = (trained / "metrics.jsonl").read_text()
    monkeypatch.setattr(Experiment, "pipeline", None)
    monkeypatch.setattr(Experiment, "evaluate", None)
    assert train(small_config, str(trained)) == 0
    assert "Test split, 359 images" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_text() == lines


def test_another_configuration_is_refused_and_nothing_is_lost(trained, small_config):
    before = final_arrays(trained, TOTAL)
    small_config.batch_size = 32
    with pytest.raises(UserError, match=r"holds another run: config\.batch_size is 16 there and 32 here"):
        train(small_config, str(trained))
    jax.tree.map(np.testing.assert_array_equal, final_arrays(trained, TOTAL), before)


def test_the_size_of_chunks_changes_no_number(trained, tmp_path, small_config):
    small_config.steps_per_call = 100
    assert train(small_config, str(tmp_path)) == 0
    jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path, TOTAL), final_arrays(trained, TOTAL))


def test_seeds_differ(trained, tmp_path, small_config):
    small_config.seed = 1
    assert train(small_config, str(tmp_path)) == 0
    assert records(tmp_path)[0]["loss"] != records(trained)[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, small_config):
    small_config.optimizer.learning_rate = 1e30
    reason = r"The loss is nan between steps 0 and 5.*: first in step 2, the value of conv1_1_bn\. .*on_nan=continue"
    with pytest.raises(UserError, match=reason):
        train(small_config, str(tmp_path))
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    small_config.on_nan = "continue"
    assert train(small_config, str(tmp_path / "seen_through")) == 0
    assert records(tmp_path / "seen_through")[-1]["loss"] is None
    assert train(small_config, str(tmp_path / "seen_through")) == 0


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, small_config, capsys):
    """The first update is finite, and so large that no later one is."""
    small_config.optimizer.learning_rate, small_config.epochs = 1e30, 1
    with pytest.raises(UserError, match="first in step 2"):
        train(small_config, str(tmp_path))
    small_config.on_nan = "skip"  # the same run continues
    assert train(small_config, str(tmp_path)) == 0
    found = [record for record in records(tmp_path) if record["split"] == "train"]
    assert [record["skipped"] for record in found] == [4, 5, 3]
    small_config.steps_per_call = 1
    experiment = Experiment(small_config, data.load(small_config.data))
    first = experiment.train_chunk(experiment.init(), 0)[2]
    assert (found[0]["loss"], first["skipped"]) == (first["loss"], 0)  # of the first step alone
    assert "Steps 0 to 5: 4 updates skipped" in capsys.readouterr().err


def test_without_validation_and_with_diagnostics(tmp_path, small_config):
    small_config.data.validation = 0.0
    small_config.diagnostics = True
    small_config.epochs = 1
    assert train(small_config, str(tmp_path)) == 0
    found = records(tmp_path)
    assert {record["split"] for record in found} == {"train", "test"}
    assert {"grad_norm/conv1_1", "dead_relu/dense1"} <= set(found[0])


def test_a_chunk_can_be_profiled_and_the_numbers_stay(trained, tmp_path, small_config):
    small_config.profile = True
    assert train(small_config, str(tmp_path)) == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert_same_run(tmp_path, trained, TOTAL)


def test_trains_on_photographs(tmp_path, small_config, photographs):
    paths = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(20)]
    small_config.data.update({"name": "folder", "dir": str(photographs(*paths)), "train_examples": 0, "validation": 8})
    assert train(small_config, str(tmp_path / "run")) == 0
    assert records(tmp_path / "run")[-1]["split"] == "test"


def test_the_same_photograph_in_two_splits_is_reported_by_name(tmp_path, small_config, photographs, capsys):
    paths = [f"train/{label}/{i}.png" for label in ("cat", "dog") for i in range(12)]
    root = photographs(*paths, *(f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(5)))
    for copy in ("test/cat/2.png", "test/dog/4.png"):  # between another class and another split
        (root / copy).write_bytes((root / "train" / "cat" / "3.png").read_bytes())
    small_config.data.update({"name": "folder", "dir": str(root), "train_examples": 0, "validation": 0})
    small_config.epochs = 1
    assert train(small_config, str(tmp_path / "run")) == 0
    expected = (
        f"2 test images are also among the training images (first: {root}/test/cat/2.png = {root}/train/cat/3.png)"
    )
    assert f"{expected}; test accuracy may be too high by up to 20 points.\n" in capsys.readouterr().err


def test_other_images_are_noticed_when_a_run_goes_on(tmp_path, small_config, photographs):
    paths = [f"{label}/{i}.png" for label in ("cat", "dog", "owl") for i in range(12)]
    root = photographs(*paths)
    small_config.data.update({"name": "folder", "dir": str(root), "train_examples": 0, "validation": 8})
    assert train(small_config, str(tmp_path / "run")) == 0
    (root / "cat" / "3.png").write_bytes((root / "dog" / "3.png").read_bytes())
    with pytest.raises(UserError, match=r"not those that the run in .* began with"):
        train(small_config, str(tmp_path / "run"))
    (root / "owl").rename(tmp_path / "gone")  # a class less: the network has another head
    with pytest.raises(UserError, match=r"not those that the run in .* began with"):
        train(small_config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints.damaged").exists()


def test_a_validation_loss_that_batchnorm_makes_worse_than_guessing_is_explained(tmp_path, small_config, capsys):
    small_config.model.update({"bn_momentum": 0.9999, "dropout": ()})
    small_config.augment.shift, small_config.optimizer.learning_rate = 0.0, 0.05
    assert train(small_config, str(tmp_path)) == 0
    said = "running statistics still hold 100% of their initial values; they settle by step 46,050."
    assert capsys.readouterr().err.count(said) == 1


def test_a_chunk_as_one_scan_equals_a_loop(small_config):
    """What a GPU runs, on a CPU: training and evaluation as one program per chunk."""
    dataset = data.load(small_config.data)
    results = []
    for scan in (False, True):
        experiment = Experiment(small_config, dataset, place=Placement.choose(scan=scan))
        now, state = 0, experiment.init()
        while now < 13:  # in chunks of 5, 5, 3 or of 5, 4, 4 steps, the latter padded
            now, state, _ = experiment.train_chunk(state, now)
        results.append((state.params, state.batch_stats, experiment.evaluate(state.variables, "validation")))
        assert now == 13
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_the_split_that_was_asked_for_is_scored(small_config):
    experiment = Experiment(small_config, data.load(small_config.data))
    variables = experiment.init().variables
    scores = {split: experiment.evaluate(variables, split) for split in ("train", "validation", "test")}
    assert len({values["loss"] for values in scores.values()}) == 3


def test_main_imports_no_tensorflow(command, tmp_path):
    """Neither training nor reading a tfds data set: an import would raise."""
    code = """
import importlib.abc, importlib.machinery, runpy, sys
class Blocker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras"):
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        raise AssertionError(f"{module.__name__} must not be imported")
sys.meta_path.insert(0, Blocker())
import cnn_jax.data.tfds
sys.argv[0] = "main"
runpy.run_module("cnn_jax.main", run_name="__main__")
"""
    arguments = ["--config=tests/small_config.py", f"--workdir={tmp_path}", "--config.epochs=1"]
    done = command("main", *arguments, code=code)
    assert done.returncode == 0, done.stderr
