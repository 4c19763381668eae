"""The recorded provenance of a run, and the message of a run that resumes under another one."""

import copy
import json

import pytest
from whole_runs import interrupt_at

from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.workdir import provenance

HERE = {"commit": "a" * 40, "dirty": False, "versions": {"jax": "0.10.2", "python": "3.11.7"}, "cores": 2}


def under(**changes):
    return copy.deepcopy(HERE) | changes


def test_variables_that_affect_numbers_are_recorded(monkeypatch):
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/home/ann/.cache")
    found = provenance.collect()["environment"]
    assert found["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert "--xla_force_host_platform_device_count=4" in found["XLA_FLAGS"]
    assert not [name for name in found if "CACHE" in name]


def test_differences_are_those_that_affect_numbers():
    assert provenance.differences(HERE, under(versions={"jax": "0.10.2", "python": "3.13.1"}, platform="BSD")) == {}
    after = under(versions={"jax": "0.12.0"}, cores=1, commit="b" * 40, layout={"steps": "scan"})
    found = provenance.differences(HERE, after)
    assert found["versions.jax"] == ("0.10.2", "0.12.0")
    assert found["layout.steps"] == (None, "scan")
    assert set(found) == {"versions.jax", "cores", "commit", "layout.steps"}
    assert provenance.describe(found) == (
        "commit bbbbbbb (was aaaaaaa), jax 0.12.0 (was 0.10.2), cores 1 (was 2), layout.steps scan (was None)"
    )


def test_what_a_run_continues_is_kept_until_the_first_checkpoint_and_after(tmp_path):
    provenance.record(tmp_path, 0, HERE)
    origin = {"longer": {"epochs": [1, 2]}}
    provenance.record(tmp_path, 50, HERE, origin)
    expected = [{"from_step": 0, "provenance": HERE}, {"from_step": 50, "provenance": HERE, "origin": origin}]
    assert provenance.read(tmp_path) == expected
    provenance.record(tmp_path, 50, HERE)  # stopped before a checkpoint, and started again
    assert provenance.read(tmp_path) == expected
    provenance.record(tmp_path, 60, HERE)
    assert provenance.read(tmp_path) == expected


def test_a_segment_is_added_only_where_something_differs(tmp_path):
    assert provenance.record(tmp_path, 0, HERE) == {}
    assert provenance.record(tmp_path, 50, HERE) == {}
    assert [s["from_step"] for s in provenance.read(tmp_path)] == [0]
    assert provenance.record(tmp_path, 60, under(platform="BSD")) == {}
    assert provenance.record(tmp_path, 70, under(cores=4)) == {"cores": (2, 4)}
    assert [s["from_step"] for s in provenance.read(tmp_path)] == [0, 60, 70]
    assert provenance.record(tmp_path, 65, under(platform="BSD")) == {}  # the checkpoint of step 70 was lost
    assert [s["from_step"] for s in provenance.read(tmp_path)] == [0, 60]
    assert provenance.record(tmp_path, 0, under(cores=1)) == {}
    assert provenance.read(tmp_path) == [{"from_step": 0, "provenance": under(cores=1)}]
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]


@pytest.mark.parametrize("content", ["[{", "[1]", '{"from_step": 0}', '[{"from_step": 0}]'])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=r"provenance\.json is damaged: restore it, or delete it"):
        provenance.record(tmp_path, 5, HERE)


def test_a_run_records_its_provenance(trained):
    (segment,) = provenance.read(trained)
    assert segment["from_step"] == 0
    found = segment["provenance"]
    assert found["layout"] == {"steps": "loop", "seeds": None}
    assert found["devices"] == {"platform": "cpu", "kind": "cpu", "count": 4}
    assert found["data"] and found["processor"] and found["versions"]["jaxlib"]
    assert found["environment"]["JAX_NUMPY_RANK_PROMOTION"] == "raise"


def test_a_resumed_run_says_what_differs(tmp_path, small_config, monkeypatch, capsys):
    interrupt_at(monkeypatch, 10)
    train(small_config, str(tmp_path))
    segments = provenance.read(tmp_path)
    segments[0]["provenance"]["versions"]["jax"] = "0.9.0"
    (tmp_path / "provenance.json").write_text(json.dumps(segments))
    assert train(small_config, str(tmp_path)) == 0
    version = provenance.collect()["versions"]["jax"]
    line = f"Resuming with jax {version} (was 0.9.0): the remaining steps may not be bit-identical to those of an"
    assert line in capsys.readouterr().err
    assert [s["from_step"] for s in provenance.read(tmp_path)] == [0, 10]
    monkeypatch.setattr(provenance, "collect", None)  # nothing is left to compute
    assert train(small_config, str(tmp_path)) == 0


def test_the_layout_of_several_seeds(small_config):
    small_config.seeds = 2
    assert Experiment(small_config, data.load(small_config.data)).place.layout == {"steps": "loop", "seeds": "loop"}
