"""The tables of the README come from these."""

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


def make_run(folder, name, seed, accuracy, lanes=None, **changes):
    """A finished run of a stage, as far as its table is concerned."""
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
    return workdir


def test_results_average_over_seeds_and_over_nothing_else(tmp_path):
    runs = [make_run(tmp_path, "augment", seed, 0.5 + 0.1 * seed, epochs=10) for seed in (0, 1, 2)]
    runs += [make_run(tmp_path, "basic", 0, 0.3), make_run(tmp_path, "baseline", 0, 0.4, batch_size=64)]
    runs.append(tmp_path / "unfinished")
    runs[-1].mkdir()
    shutil.copytree(runs[0], tmp_path / "the_same_again")
    runs.append(tmp_path / "the_same_again")
    command = [sys.executable, "scripts/results.py", *map(str, runs), f"--output={tmp_path / 'rows.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| augment | all | 10 | 3 | 0.600 ± 0.100 | 0.250 ± 0.000 |" in done.stdout
    assert "| basic | all | 50 | 1 | 0.300 | 0.250 |" in done.stdout
    assert "| other | all | 50 | 1 | 0.400 |" in done.stdout
    assert "unfinished: not a finished run" in done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["stage"]: row["seeds"] for row in rows} == {"augment": [0, 1, 2], "basic": [0], "other": [0]}
    assert rows[0]["mean"]["accuracy"] == pytest.approx(0.6)


def test_a_run_of_several_seeds_counts_as_so_many(tmp_path):
    several = make_run(tmp_path, "augment", 0, 0.6, lanes=[0.5, 0.7], seeds=2)
    alone = make_run(tmp_path, "augment", 2, 0.9)
    random = make_run(tmp_path, "transfer_lite", 0, 0.2, **{"model.weights": "random"})
    command = [sys.executable, "scripts/results.py", *map(str, (several, alone, random))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| augment | all | 100 | 3 | 0.700 ± 0.200 |" in done.stdout
    assert "| transfer_lite (random weights) | all | 10 | 1 | 0.200 |" in done.stdout


def test_a_convolution_as_patches_is_the_convolution(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmark_seeds import as_patches

    generator = np.random.RandomState(0)
    images, kernel = jnp.asarray(generator.rand(2, 6, 5, 3)), jnp.asarray(generator.rand(3, 3, 3, 4))
    plain = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(as_patches(images, kernel, (1, 1), "SAME"), plain, rtol=1e-5)


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """The benchmark, whose contenders are now: `good`, and `bad`, which dies when it is first asked to infer."""
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
