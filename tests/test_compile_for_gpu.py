"""Programs compiled for a GPU that is not there. They need the extra [gpu-compile] and minutes."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("jax_cuda12_plugin"),
        reason="pip install -e '.[gpu-compile]': without JAX for CUDA nothing is compiled for a GPU",
    ),
]


def compile_programs(only, output, flags=""):
    """The finished script, and the rows of its report by name."""
    command = [sys.executable, "scripts/compile_for_gpu.py", "--targets=h100", f"--only={only}", f"--output={output}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    return done, {row["program"]: row for row in json.loads(output.read_text())["rows"]}


def test_a_step_is_one_graph_and_nothing_is_amiss(tmp_path):
    done, rows = compile_programs("^augment, batch 32, float32$", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    (row,) = rows.values()
    assert row["problems"] == [] and row["exported_bytes"] and row["trips"] == row["steps"] == 49
    assert row["launches"]["trip"]["graphs"] == 1 and row["launches"]["trip"]["loose"] <= 1
    assert row["trip"]["cudnn"] == 6 + 6 + 5  # forward, gradients of kernels, and of all inputs but the images
    # Each of the six convolutions: two operations per output and weight, three times but for the first.
    sides, inputs, outputs = (32, 32, 16, 16, 8, 8), (3, 32, 32, 64, 64, 128), (32, 32, 64, 64, 128, 128)
    forward = [2 * 32 * s * s * 9 * i * o for s, i, o in zip(sides, inputs, outputs, strict=True)]
    assert row["trip"]["flops"] >= 3 * sum(forward) - forward[0]
    assert row["memory"]["alias"] == pytest.approx(row["memory"]["output"], rel=1e-3)


def test_convolutions_can_be_left_out_of_graphs(tmp_path):
    flags = "--xla_gpu_enable_command_buffer=+FUSION"
    _, rows = compile_programs("^augment, batch 32, float32$", tmp_path / "report.json", flags)
    (row,) = rows.values()
    assert row["launches"]["trip"]["loose"] >= row["trip"]["cudnn"] == 17


def test_seeds_have_grouped_gradients_of_kernels(tmp_path):
    done, rows = compile_programs("^augment, 8 seeds, batch 32$", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert rows["augment, 8 seeds, batch 32"]["problems"] == []


def test_devices_send_each_other_sums_alone(tmp_path):
    done, rows = compile_programs("^augment on 4 GPUs, batch 512$", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    (row,) = rows.values()
    assert row["trip"]["collectives"].keys() == {"all-reduce"}
