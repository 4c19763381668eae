"""The scripts that make the tables of the README."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, stage
from jax import lax

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError
from cnn_jax.workdir import provenance


def origin(commit="a" * 40, dirty=False):
    """The part of a provenance that scripts read."""
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"cnn_jax": "0.1.0", "jax": "0.10.2", "optax": "0.2.5"},
        "processor": "a processor",
    }


def make_run(folder, name, seed, accuracy, lanes=None, origins=None, **changes):
    """The part of a finished run that scripts read, with a segment of provenance per origin."""
    workdir = folder / f"{name}_{seed}"
    workdir.mkdir()
    config = stage(name)
    config.update_from_flattened_dict({"seed": seed, **changes})
    config_lib.write(config, workdir / "config.json")
    names = ("loss", "precision", "recall", "f1", "threshold_precision", "threshold_recall")
    record = {"step": 9, "epoch": 1, "split": "test", "accuracy": accuracy} | dict.fromkeys(names, 0.25)
    if lanes:
        record["lanes"] = dict.fromkeys(("accuracy", *names), lanes)
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (workdir / "times.json").write_text("{}")
    for step, each in enumerate([origin()] if origins is None else origins):
        provenance.record(workdir, step, each)
    return workdir


def rows_of(folder, *runs):
    """The finished results.py for these runs, and the rows that it wrote."""
    command = [sys.executable, "scripts/results.py", *map(str, runs), f"--output={folder / 'rows.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done, json.loads((folder / "rows.json").read_text())["rows"]


def test_results_average_over_seeds_only(tmp_path):
    runs = [make_run(tmp_path, "augment", seed, 0.5 + 0.1 * seed, epochs=10) for seed in (0, 1, 2)]
    runs += [make_run(tmp_path, "basic", 0, 0.3), make_run(tmp_path, "baseline", 0, 0.4, batch_size=64)]
    runs.append(tmp_path / "unfinished")
    runs[-1].mkdir()
    shutil.copytree(runs[0], tmp_path / "the_same_again")
    runs.append(tmp_path / "the_same_again")
    done, rows = rows_of(tmp_path, *runs)
    # By a table of Student's t: 4.303 standard errors of 0.1 / sqrt(3).
    assert "| augment | all | 10 | 3 | 0.600 [0.352, 0.848] | 0.250 | 0.250 | 0.250 / 0.250 | aaaaaaa |" in done.stdout
    assert "| basic | all | 50 | 1 | 0.300 | 0.250 |" in done.stdout
    assert "| other | all | 50 | 1 | 0.400 | 0.250 |" in done.stdout
    assert "unfinished: not a finished run" in done.stderr
    assert {row["stage"]: (row["seeds"], row["n"]) for row in rows} == {
        "augment": ([0, 1, 2], 3),
        "basic": ([0], 1),
        "other": ([0], 1),
    }
    assert rows[0]["mean"]["accuracy"] == pytest.approx(0.6)
    assert rows[0]["interval"]["accuracy"] == pytest.approx([0.352, 0.848], abs=5e-4)
    assert rows[0]["interval"]["loss"] == [0.25, 0.25]
    assert rows[1]["interval"]["accuracy"] is None
    assert [run["accuracy"] for run in rows[0]["runs"]] == pytest.approx([0.5, 0.6, 0.7])


def test_a_multi_seed_run_counts_as_several_runs(tmp_path):
    several = make_run(tmp_path, "augment", 0, 0.6, lanes=[0.5, 0.7], seeds=2)
    alone = make_run(tmp_path, "augment", 2, 0.9)
    random = make_run(tmp_path, "transfer_lite", 0, 0.2, **{"model.weights": "random"})
    done, _ = rows_of(tmp_path, several, alone, random)
    assert "| augment | all | 100 | 3 | 0.700 [0.203, 1.197] |" in done.stdout
    assert "| transfer_lite (random weights) | all | 10 | 1 | 0.200 |" in done.stdout


def test_a_row_lists_every_commit_that_its_runs_were_trained_with(tmp_path):
    changed, resumed = origin("b" * 40, dirty=True), origin("c" * 40)
    runs = [
        make_run(tmp_path, "augment", 0, 0.5),
        make_run(tmp_path, "augment", 1, 0.5, origins=(changed, resumed)),
        make_run(tmp_path, "augment", 2, 0.5, origins=(origin() | {"platform": "another"},)),
        make_run(tmp_path, "basic", 0, 0.5, origins=(origin(commit=None, dirty=None),)),
        make_run(tmp_path, "batchnorm", 0, 0.5, origins=()),
    ]
    done, rows = rows_of(tmp_path, *runs)
    assert (
        "| 3 | 0.500 [0.500, 0.500] | 0.250 | 0.250 | 0.250 / 0.250 | aaaaaaa, bbbbbbb (dirty), ccccccc |"
        in done.stdout
    )
    assert "| basic | all | 50 | 1 | 0.500 | 0.250 | 0.250 | 0.250 / 0.250 | 0.1.0 |" in done.stdout
    assert "| batchnorm | all | 50 | 1 | 0.500 | 0.250 | 0.250 | 0.250 / 0.250 | not recorded |" in done.stdout
    assert rows[-1]["stage"] == "augment"
    assert rows[-1]["provenance"][0] == {
        "commit": "a" * 40,
        "dirty": False,
        "cnn_jax": "0.1.0",
        "jax": "0.10.2",
        "processor": "a processor",
    }


@pytest.fixture
def publish(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from publish_run import publish

    return publish


def test_a_published_run_is_four_files_without_folders_of_this_machine(tmp_path, publish):
    run = make_run(tmp_path, "transfer_lite", 0, 0.5, **{"data.dir": "/home/ann", "features.dir": "/home/ann/features"})
    (run / "checkpoints").mkdir()
    target = tmp_path / "published"
    publish(run, target)
    assert {path.name for path in target.iterdir()} == {"config.json", "metrics.jsonl", "times.json", "provenance.json"}
    config = (target / "config.json").read_text()
    assert "/home/ann" not in config
    restored = config.replace('"dir": ""', '"dir": "/home/ann"', 1).replace('"dir": ""', '"dir": "/home/ann/features"')
    assert restored == (run / "config.json").read_text()
    assert (target / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_what_cannot_be_published_is_one_clear_line(tmp_path, publish):
    dirty = make_run(tmp_path, "augment", 0, 0.5, origins=(origin(), origin(dirty=True)))
    unknown = make_run(tmp_path, "augment", 1, 0.5, origins=())
    provenance.record(unknown, 7, origin())
    without_times = make_run(tmp_path, "augment", 2, 0.5)
    (without_times / "times.json").unlink()
    target = tmp_path / "published"
    with pytest.raises(UserError, match=r"augment_0 was trained with uncommitted changes: .*--allow-dirty"):
        publish(dirty, target)
    with pytest.raises(UserError, match=r"augment_1 has no provenance of its first steps"):
        publish(unknown, target)
    with pytest.raises(UserError, match=r"augment_2 has no times\.json"):
        publish(without_times, target)
    assert not target.exists()
    publish(dirty, target, allow_dirty=True)
    assert target.exists()
    command = [sys.executable, "scripts/publish_run.py", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {tmp_path / 'nothing'} is not a finished run: it has no scores on the test split. "
        "Train it to the end.\n"
    )


def test_a_digest_depends_on_paths_shapes_types_and_bytes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from digests import digest

    zeros = np.zeros((2, 3), np.float32)
    trees = [{"a": zeros}, {"b": zeros}, {"a": zeros.T}, {"a": zeros.astype(np.int32)}, {"a": -zeros}]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest({"a": zeros, "b": [zeros + 1]}) == digest({"b": [zeros + 1], "a": zeros})


def test_digests_that_differ_are_named(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from digests import table

    text, equal = table({"short": {"params": "1", "metrics": "2"}}, {"short": {"params": "1", "metrics": "3"}})
    assert not equal
    assert text.splitlines()[1].split() == ["short", "equal", "-", "-", "-", "DIFFERENT"]
    assert table({"short": {"params": "1"}}, {"short": {"params": "1"}, "untried": {"params": "2"}})[1]


def test_a_convolution_as_patches_is_the_convolution(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmark_seeds import as_patches

    generator = np.random.RandomState(0)
    images, kernel = jnp.asarray(generator.rand(2, 6, 5, 3)), jnp.asarray(generator.rand(3, 3, 3, 4))
    plain = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(as_patches(images, kernel, (1, 1), "SAME"), plain, rtol=1e-5)


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """The benchmark with the contenders `good`, `slow`, and `bad`, which fails at inference."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import benchmark

    good = """
import json, sys
for line in sys.stdin:
    what = json.loads(line)["do"]
    if what == "infer" and DIES:
        print("a line before", file=sys.stderr)
        raise RuntimeError("no such layer")
    print(json.dumps({"seconds": SECONDS, "memory": 10**6, "device_memory": None}), flush=True)
"""
    for name, seconds, dies in (("good", 0.5, False), ("slow", 2.0, False), ("bad", 1.0, True)):
        (tmp_path / f"{name}.py").write_text(f"SECONDS, DIES = {seconds}, {dies}\n{good}")
    monkeypatch.setattr(benchmark, "PEERS", tmp_path)
    return benchmark


def test_the_benchmark_leaves_out_a_peer_that_fails_and_says_why(peers, capsys):
    contenders = {name: peers.Contender(name, "") for name in ("good", "slow", "bad")}
    failed, work = {}, {}
    for what in ("train", "infer"):
        work[what] = peers.race(contenders, what, 256, 512, 3, "cpu", failed)
    assert failed == {"bad": "RuntimeError: no such layer"}
    assert "Left out, because it fails: bad (RuntimeError: no such layer)" in capsys.readouterr().out
    assert work["train"]["bad"]["ratio"] == [2, 2, 2] and list(work["infer"]) == ["good", "slow"]
    assert work["infer"]["slow"]["images_per_second"] == 256 and work["infer"]["slow"]["ratio"] == [4, 4, 4]
    rows = peers.table({"work": work, "first_step": {"good, cold": {"median": 1.25}}}).splitlines()
    assert ["bad", "512 (2.00; 2.00-2.00)", "failed"] in [re.split(r"  +", row) for row in rows]
    with pytest.raises(peers.Failed, match="no such layer"):
        peers.race({"bad": contenders["bad"]}, "infer", 256, 512, 3, "cpu", failed)


def test_the_benchmark_names_ours_in_another_interpreter_by_its_versions(peers):
    ours = {"ours": peers.Contender("ours", "bfloat16")}
    (name, contender), *others = peers.in_interpreters(ours, [sys.executable]).items()
    assert name == f"ours, jax {jax.__version__} (python 3.{sys.version_info.minor})" and not others
    assert contender == peers.Contender("ours", "bfloat16", sys.executable)
    with pytest.raises(peers.Failed, match="/dev/null cannot be run"):
        peers.in_interpreters(ours, ["/dev/null"])
