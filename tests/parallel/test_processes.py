"""Runs of two processes with two CPU devices each, on the loopback address."""

import io
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from whole_runs import assert_same_run, final_arrays

from cnn_jax.parallel import losses
from cnn_jax.workdir.records import read_metrics

SMALL = ("--config=tests/small_config.py", "--config.mesh.data=4")
HEARTBEAT = 10
TIMEOUT = 500


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A cache of compiled programs, which these tests share."""
    folder = str(tmp_path_factory.mktemp("programs"))
    always = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {"JAX_COMPILATION_CACHE_DIR": folder} | always


@pytest.fixture
def start(programs):
    """Starts a program as two processes, `start(program, arguments of 0, arguments of 1)`; all of them end."""
    running = []

    def make(program, *arguments, environments=({}, {})):
        flags = "--xla_force_host_platform_device_count=2"
        for own, changes in zip(arguments, environments, strict=True):
            environment = os.environ | programs | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"} | changes
            running.append(
                subprocess.Popen(
                    [sys.executable, *program, *own],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return running[-len(arguments) :]

    yield make
    for process in running:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def joining(*arguments):
    """The arguments of both processes."""
    together = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--heartbeat={HEARTBEAT}", *arguments]
    return [[*together, f"--process_id={index}"] for index in range(2)]


def ends(processes):
    """The status, standard output and standard error of each."""
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def slurm():
    """What SLURM tells the tasks of a step; JAX derives the port from the number of the job."""
    port = next(port for port in range(61440, 65536) if is_free(port))
    job = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return [job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]


def is_free(port):
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def test_processes_of_slurm_stop_together_and_one_resumes_alone(start, tmp_path, command):
    """SIGTERM at one of two processes that SLURM started; another number of processes resumes what both saved."""
    arguments = [*SMALL, f"--workdir={tmp_path}", "--heartbeat=20"]
    signalled = [["0", "SIGTERM", *arguments], ["10", "SIGTERM", *arguments]]
    (status, _, error), (other, silent, asked) = ends(start(["tests/signalled.py"], *signalled, environments=slurm()))
    assert (status, other) == (128 + 15, 128 + 15), error + asked
    (step,) = saved_steps(tmp_path)
    assert 10 < step < 25
    assert f"Stopped at step {step}, which is saved: the same command resumes from there." in error
    assert "Stopping after the current steps" in asked
    assert not [line for line in silent.splitlines() if not line.startswith("[Gloo]")]
    assert "digits: 10 classes" not in asked
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(read_metrics(tmp_path))  # each once
    (segment,) = json.loads((tmp_path / "provenance.json").read_text())
    assert segment["provenance"]["devices"]["processes"] == 2
    folder = tmp_path / "checkpoints" / str(step)
    described = json.loads((folder / "manifest.json").read_text())["files"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(described) == files - {"manifest.json"}
    assert any("process_1" in name for name in described)

    alone = command("main", "--config=tests/small_config.py", f"--workdir={tmp_path}")
    assert alone.returncode == 0, alone.stderr
    assert f"Resuming from step {step} of 25" in alone.stderr
    assert "devices.processes None (was 2)" in alone.stderr
    assert saved_steps(tmp_path)[-1] == 25
    assert read_metrics(tmp_path)[-1]["split"] == "test"


@pytest.mark.slow
def test_each_step_of_two_processes_is_that_of_one(start, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    paths = [tmp_path / f"{index}.json" for index in range(2)]
    arguments = [[str(path), "4", address, "2", str(index)] for index, path in enumerate(paths)]
    for status, _, error in ends(start(["tests/parallel/one_step.py"], *arguments)):
        assert status == 0, error
    alone = tmp_path / "alone.json"
    (ended,) = ends(start(["tests/parallel/one_step.py"], [str(alone), "1"], environments=[{}]))
    assert ended[0] == 0, ended[2]
    first, second, expected = (json.loads(path.read_text()) for path in (*paths, alone))
    assert (first["devices"], first["own"]) == (4, 2)
    assert (first["rows"], second["rows"]) == (list(range(8)), list(range(8, 16)))  # each has its share
    assert first["steps"] == second["steps"]
    assert first["scores"] == second["scores"] == pytest.approx(expected["scores"], rel=1e-5)
    for step, one in zip(first["steps"], expected["steps"], strict=True):
        assert step["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6)
        for leaf, other in zip(step["leaves"], one["leaves"], strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_ends_as_an_uninterrupted_one(start, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for status, _, error in ends(start(["-m", "cnn_jax.main"], *joining(*SMALL, f"--workdir={whole}"))):
        assert status == 0, error
    zero, one = joining(*SMALL, f"--workdir={stopped}")
    for status, _, error in ends(start(["tests/signalled.py"], ["5", "SIGTERM", *zero], ["0", "SIGTERM", *one])):
        assert status == 128 + 15, error
    for status, _, error in ends(start(["-m", "cnn_jax.main"], *joining(*SMALL, f"--workdir={stopped}"))):
        assert status == 0, error
        assert "may not be bit-identical" not in error
    assert_same_run(stopped, whole, 25)


@pytest.mark.slow
def test_two_processes_resume_what_one_saved(start, tmp_path, command):
    half = command("main", "--config=tests/small_config.py", "--config.epochs=1", f"--workdir={tmp_path}")
    assert half.returncode == 0, half.stderr
    arrays = final_arrays(tmp_path, 13)
    (status, _, error), (other, *_) = ends(start(["-m", "cnn_jax.main"], *joining(*SMALL, f"--workdir={tmp_path}")))
    assert (status, other) == (0, 0), error
    assert "Resuming from step 13 of 25" in error
    assert "devices.processes 2 (was None)" in error
    assert saved_steps(tmp_path) == [13, 25]
    for leaf, other in zip(arrays, final_arrays(tmp_path, 25), strict=True):
        assert leaf.keys() == other.keys()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_where_a_process_is_killed_the_other_ends_and_names_it(start, tmp_path, lost):
    """Within the heartbeat and a margin, with one line; the same command then resumes."""
    arguments = joining(*SMALL, f"--workdir={tmp_path}", "--config.checkpoint.minutes=0.00001")
    for index, own in enumerate(arguments):
        own[:0] = ["10" if index == lost else "0", "SIGKILL"]
    processes = start(["tests/signalled.py"], *arguments)
    assert processes[lost].wait(TIMEOUT) == -9
    begin = time.monotonic()
    _, error = processes[1 - lost].communicate(timeout=TIMEOUT)
    assert time.monotonic() - begin < HEARTBEAT + 10
    assert processes[1 - lost].returncode not in (0, None)
    assert error.count("Error:") == 1 and f"Error: process {lost} of this run was lost" in error
    assert "Traceback" not in error and "coordination_service" not in error
    for status, _, error in ends(start(["-m", "cnn_jax.main"], *joining(*SMALL, f"--workdir={tmp_path}"))):
        assert status == 0, error
    assert saved_steps(tmp_path)[-1] == 25


@pytest.mark.slow
@pytest.mark.parametrize(
    "own, message",
    [
        ("--config.batch_size=15", "batch_size is 15, which 4 devices cannot share evenly: set it to 12 or 16."),
        ("--config.mesh.data=3", "config.mesh.data is 3, of which 2 processes cannot take as many devices each"),
        ("--config.mesh.data=8", "asks for 8 devices (seed 1 x data 8), but JAX has 4"),
    ],
)
def test_what_processes_cannot_share_is_refused(start, tmp_path, own, message):
    (status, _, error), _ = ends(start(["-m", "cnn_jax.main"], *joining(*SMALL, f"--workdir={tmp_path}", own)))
    assert status == 1
    assert error.count("Error:") == 1 and message in error


@pytest.mark.slow
def test_processes_with_different_commands_are_no_run(start, tmp_path):
    zero, one = joining(*SMALL, f"--workdir={tmp_path}")
    _, (status, _, error) = ends(start(["-m", "cnn_jax.main"], zero, [*one, "--config.seed=1"]))
    assert status == 1
    assert "Process 1 has another run than process 0." in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--coordinator=here:1"], "--num_processes=... is missing: --coordinator, --num_processes and --process_id"),
        (["--process_id=0", "--num_processes=2"], "--coordinator=... is missing"),
    ],
)
def test_flags_that_go_together(command, tmp_path, arguments, message):
    ended = command("main", "--config=tests/small_config.py", f"--workdir={tmp_path}", *arguments)
    assert ended.returncode == 1
    assert message in ended.stderr and "Traceback" not in ended.stderr


# What jaxlib 0.10.2 logs, shortened.
LOST = """\
epoch 1/2
E1127 22:55:40.843820   22503 coordination_service.cc:1549] [127] Use error polling to propagate the following error \
to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed.
F1127 22:55:40.844650   22514 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
*** Check failure stack trace: ***
    @     0x7f0274a40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
FIRST_LOST = """\
W1127 22:55:45.493566   22800 preemption_sync_manager.cc:147] Failed to retrieve preemption notice
F1127 22:55:45.493645   22800 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted
"""
NOT_FOUND = """\
F1127 23:47:48.887032   15499 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
"""
OTHERS = """\
W1127 22:55:45.493566   22800 cuda_executor.cc:147] A warning.
E1127 22:55:45.493566   22800 coordination_service_agent.cc:289] Polled an error.
E1127 22:55:45.493566   22800 gpu.cc:1] Of XLA.
An ordinary line.
"""


@pytest.mark.parametrize(
    "log, start",
    [
        (LOST, "Error: process 1 of this run was lost, so this one ends too."),
        (FIRST_LOST, "Error: process 0 of this run was lost, so this one ends too."),
        (NOT_FOUND, "Error: The processes of this run did not find each other in time"),
    ],
)
def test_the_loss_of_a_process_is_one_line(log, start):
    output = io.StringIO()
    losses.copy(io.StringIO(log), output)
    *before, line = output.getvalue().splitlines()
    assert before == [each for each in log.splitlines() if each.startswith("epoch")]
    assert line.startswith(start)


def test_what_others_log_is_copied():
    output = io.StringIO()
    losses.copy(io.StringIO(OTHERS), output)
    assert output.getvalue().splitlines() == [line for line in OTHERS.splitlines() if "coordination" not in line]
