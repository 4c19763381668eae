"""The command that measures on a GPU, rehearsed on a CPU: its steps, their time limits, and its results."""

import json
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from conftest import ROOT

# A stand-in for airbench94_muon.py, which prints like it: a warm-up, then runs with a row per epoch and a final one.
ORIGINAL = """
import time
for run, more in (("warmup", 0), (1, 1), (2, 2), (3, 3)):
    print(f"|  {run}  |      0  |     0.1  |  0.2000  |          |          |")
    print(f"|      |   eval  |     0.1  |  0.930{more}  |  0.940{more}  |  2.5{more}00  |", flush=True)
    time.sleep(PAUSE * more)
"""


@pytest.fixture
def checkout(tmp_path):
    """Makes a checkout of airbench whose code waits after each run but the warm-up."""

    def make(pause=0):
        folder = tmp_path / "airbench"
        folder.mkdir(exist_ok=True)
        (folder / "airbench94_muon.py").write_text(ORIGINAL.replace("PAUSE", str(pause)))
        return folder

    return make


def rehearse(folder, *options):
    command = [sys.executable, "scripts/on_gpu.py", "--rehearse", f"--output={folder / 'results'}"]
    command += [f"--folder={folder / 'runs'}", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}


def test_finished_steps_are_skipped_and_failed_ones_repeated(tmp_path, checkout):
    steps = "--steps=ladder,airbench,hiverge"
    first = rehearse(tmp_path, steps, f"--airbench={tmp_path / 'nothing'}")
    assert first.returncode == 1 and "Traceback" not in first.stderr
    found = results(tmp_path)
    assert {name: each["status"] for name, each in found.items()} == {
        "machine": "finished",
        "ladder": "finished",
        "airbench": "failed",
        "hiverge": "left out",
    }
    assert found["airbench"]["error"] == f"there is no {tmp_path / 'nothing' / 'airbench94_muon.py'}"
    assert "the same command repeats airbench" in first.stdout and "--hiverge=DIR" in found["hiverge"]["reason"]
    (stage,) = found["ladder"]["stages"].values()
    assert stage["n"] == 2 and stage["interval"][0] <= stage["mean"] <= stage["interval"][1]
    layout = json.loads((tmp_path / "runs" / "ladder" / "small_config-seeds2" / "provenance.json").read_text())
    assert layout[0]["provenance"]["layout"] == {"steps": "scan", "seeds": "vmap"}
    assert all("no measurement" in each["rehearsal"] for name, each in found.items() if name != "hiverge")
    assert found["ladder"]["machine"]["devices"]["platform"] == "cpu"

    second = rehearse(tmp_path, steps, f"--airbench={checkout()}")
    assert second.returncode == 0, second.stdout
    assert "ladder: finished before" in second.stdout
    again = results(tmp_path)
    assert again["ladder"] == found["ladder"]
    runs = again["airbench"]["runs"]  # without the warm-up
    assert [run["accuracy"] for run in runs] == [0.9401, 0.9402] and again["airbench"]["seconds"] == 2.515
    assert [run["accuracy_without_tta"] for run in runs] == [0.9301, 0.9302]


def test_a_step_that_takes_too_long_is_stopped_and_keeps_what_it_found(tmp_path, checkout, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import on_gpu

    monkeypatch.setattr(on_gpu, "LEAST", 1.0)
    options = Namespace(rehearse=True, minutes=5, airbench=checkout(pause=100), hiverge=None)
    options.folder, options.output = tmp_path / "runs", tmp_path / "results"
    for folder in (options.folder, options.output):
        folder.mkdir()
    begin = time.monotonic()
    _, error = on_gpu.Conductor(options)._run("airbench", on_gpu.STEPS["airbench"]._replace(seconds=25))
    assert error == "stopped after 25 s" and time.monotonic() - begin < 60
    found = results(tmp_path)["airbench"]
    assert found["status"] == "timed out" and found["runs"][0]["accuracy"] == 0.9401
    assert "airbench: timed out" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_clear_line(tmp_path):
    command = [sys.executable, "scripts/on_gpu.py", f"--output={tmp_path}", f"--folder={tmp_path}", "--minutes=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: JAX finds no GPU here: install cnn_jax[gpu] on a machine with one, or try --rehearse\n"
    )


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path, checkout):
    done = rehearse(tmp_path, f"--airbench={checkout()}", "--minutes=25")
    assert done.returncode == 0, done.stdout
    found = results(tmp_path)
    assert {each["status"] for name, each in found.items() if name != "hiverge"} == {"finished"}
    assert found["resume"]["bit_for_bit"] and not found["resume"]["needs_deterministic_kernels"]
    assert 0 < found["resume"]["default_kernels"]["stopped_at_step"] < 25
    assert found["resume"]["default_kernels"]["arrays"] > 20
    assert set(found["command_buffers"]["milliseconds_per_step"]) == {"as cnn_jax sets it", "off"}
    assert len(found["bfloat16"]["difference"]["values"]) == 2
    assert [run["seed"] for run in found["speedrun"]["runs"]] == [0, 1]
    variants = found["speedrun_variants"]
    assert variants["batched Muon"]["changes"]["optimizer.muon.batched"] == "True"
    assert variants["progressive resizing"]["changes"]["augment.sides"] == "(6, 8)"
    assert {row["way"] for row in found["seeds"]["rows"]} == {"one", "vmap"}
    assert "ours" in found["benchmark"]["work"]["train 32"]
    assert set(found["host"]["milliseconds_per_step"]) == {"whole run", "chunks alone"}
