"""A run that is continued for more epochs, and a run that starts from another one."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from whole_runs import final_arrays, records

from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.init_from import SourceRun, describe
from cnn_jax.training.loop import train
from cnn_jax.workdir import provenance
from cnn_jax.workdir.checkpoint import restore_model


def test_continued_for_another_epoch_it_is_the_run_that_had_it_from_the_start(trained, tmp_path, small_config, capsys):
    small_config.epochs = 1
    assert train(small_config, str(tmp_path)) == 0
    small_config.epochs = 2
    assert train(small_config, str(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "The run becomes longer: config.epochs 2 (was 1). The test split will be scored again" in printed.err
    assert "after 1 epoch:" in printed.out and "after 2 epochs:" in printed.out
    jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path, 25), final_arrays(trained, 25))
    found = records(tmp_path)
    first_end = [record for record in found if (record["split"], record["step"]) == ("test", 13)]
    assert len(first_end) == 1
    assert [record for record in found if record not in first_end] == records(trained)
    first, second = provenance.read(tmp_path)
    assert "origin" not in first
    assert (second["from_step"], second["origin"]) == (13, {"longer": {"epochs": [1, 2]}})


def started_from(config, workdir):
    config.init_from = str(workdir)
    experiment = Experiment(config, data.load(config.data))
    return experiment, experiment.init()


def test_starts_from_the_best_checkpoint_of_another_run(trained, small_config):
    experiment, state = started_from(small_config, trained)
    step = restore_model(trained / "checkpoints", "best")[0]
    one = ocp.args.StandardRestore(fallback_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with ocp.CheckpointManager(trained / "checkpoints", item_names=("model",)) as manager:
        expected = manager.restore(step, args=ocp.args.Composite(model=one))["model"]
    jax.tree.map(np.testing.assert_array_equal, dict(state.variables), dict(expected))
    assert int(state.step) == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state.opt_state))
    assert experiment.origin is not None
    assert (experiment.origin["step"], experiment.origin["fresh"]) == (step, [])


def test_layers_that_do_not_fit_start_fresh_and_are_named(trained, small_config):
    small_config.model.hidden = (12,)
    fresh = Experiment(small_config, data.load(small_config.data)).init()
    experiment, state = started_from(small_config, trained)
    names = ["dense1", "dense1_bn", "head"]
    assert experiment.origin is not None and sorted(experiment.origin["fresh"]) == names
    source = restore_model(trained / "checkpoints", "best")[1]
    for name, layer in state.params.items():
        expected = (fresh.params if name in names else source["params"])[name]
        jax.tree.map(np.testing.assert_array_equal, dict(layer), dict(expected))
    small_config.model.update({"widths": (5, 6), "hidden": (7,)})
    with pytest.raises(UserError, match="of which no layer fits"):
        started_from(small_config, trained)


def test_the_head_of_other_classes_starts_fresh_and_other_scaling_is_said(trained, small_config, monkeypatch):
    read = SourceRun.read.__func__

    def other_classes(cls, workdir):
        source = read(cls, workdir)
        return dataclasses.replace(source, metadata={**source.metadata, "class_names": list("abcdefghij")})

    monkeypatch.setattr(SourceRun, "read", classmethod(other_classes))
    small_config.data.mean = (0.5, 0.5, 0.5)
    experiment, _ = started_from(small_config, trained)
    assert experiment.origin is not None and experiment.origin["fresh"] == ["head"]
    said = describe(experiment.origin)
    assert said.endswith("; 1 layer fresh, not fitting: head. config.data.mean was [0.0, 0.0, 0.0] there.")


def test_the_start_is_recorded_and_needed_only_once(trained, tmp_path, small_config, monkeypatch, capsys):
    small_config.init_from, small_config.epochs = str(trained), 1
    assert train(small_config, str(tmp_path)) == 0
    (segment,) = provenance.read(tmp_path)
    origin = segment["origin"]
    assert f"of {trained} (digest {origin['digest']}); all layers fit." in capsys.readouterr().err
    assert origin["init_from"] == str(trained) and len(origin["digest"]) == 20
    monkeypatch.setattr(SourceRun, "read", None)
    assert train(small_config, str(tmp_path)) == 0
    assert provenance.read(tmp_path) == [segment]


def test_a_source_without_checkpoints(tmp_path, small_config):
    with pytest.raises(UserError, match=r"config\.init_from is .*There is no checkpoint in"):
        started_from(small_config, tmp_path)
