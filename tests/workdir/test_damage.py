"""A workdir that something happened to: damaged files, other writers, files of another run."""

import json
import shutil
import sys

import pytest
from conftest import ROOT
from whole_runs import assert_same_run

from cnn_jax.errors import UserError
from cnn_jax.inference import load_classifier
from cnn_jax.training.loop import train
from cnn_jax.workdir.lock import Lock

sys.path.append(str(ROOT / "scripts"))


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of a finished workdir."""
    return shutil.copytree(trained, tmp_path / "copy")


def test_no_damage_is_served_and_none_is_a_traceback(trained, tmp_path):
    """What scripts/damage.py does, with one file of each kind."""
    import damage

    rows, failures = damage.measure(damage.Trial(trained), tmp_path / "copy", places=1)
    assert failures == []
    assert {row["files"] for row in rows} >= {"checkpoints", "config.json", "metrics.jsonl"}
    assert all(row["noticed"] == row["tries"] == 1 for row in rows if row["files"] == "checkpoints")


def test_two_processes_do_not_train_in_one_workdir(trained, small_config):
    with Lock(trained), pytest.raises(UserError, match=r"^Process \d+ on .*, started .* is training in "):
        train(small_config, str(trained))


def test_checkpoints_without_a_configuration_are_not_adopted(copy, small_config):
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json, so it may hold another run"):
        train(small_config, str(copy))
    assert not (copy / "config.json").exists()
    assert load_classifier(copy).notice == ""  # inference does not need it


def test_a_finished_run_whose_records_are_damaged_is_scored_again(copy, small_config, caplog, capsys):
    records = (copy / "metrics.jsonl").read_bytes().splitlines()
    test = json.loads(records[-1])
    del test["accuracy"]
    records = [b"\xff" + records[0], *records[1:-1], json.dumps(test).encode(), b'{"step": "25", "split": "test"}']
    (copy / "metrics.jsonl").write_bytes(b"\n".join(records))
    assert train(small_config, str(copy)) == 0
    assert "metrics.jsonl is damaged: records up to step 25 are not those of the run." in caplog.text
    assert "accuracy" in capsys.readouterr().out


def test_a_run_whose_last_step_is_damaged_trains_it_again(copy, trained, small_config, caplog):
    path = copy / "checkpoints" / "25" / "train" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    classifier = load_classifier(copy, step="latest")
    assert classifier.step == 13
    assert classifier.notice == "Step 25 is damaged (train/_METADATA is damaged or missing): step 13 is used."
    assert train(small_config, str(copy)) == 0
    assert_same_run(copy, trained, 25)
    assert "Step 25 is damaged" in caplog.text and (copy / "checkpoints.damaged" / "25").is_dir()
