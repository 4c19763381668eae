"""What signals do to a run, from its first import to its last step."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import HEARS_SIGINT, ROOT
from whole_runs import assert_same_run

from cnn_jax.workdir.interrupt import Interrupt

MAIN = [sys.executable, "-m", "cnn_jax.main", "--config=tests/small_config.py"]


def test_the_first_signal_is_recorded():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)]
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal is signal.SIGHUP
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)]
    assert after == before and signal.set_wakeup_fd(-1) == -1


def test_outside_of_the_main_thread_nothing_changes():
    before, found = signal.getsignal(signal.SIGINT), []

    def use():
        with Interrupt() as interrupt:
            found.extend([signal.getsignal(signal.SIGINT), interrupt.signal])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [before, None]


def test_nohup_is_respected():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_second_one_ends_the_process_at_once_even_in_a_call_that_never_returns_to_python():
    code = """
import ctypes
from cnn_jax.workdir.interrupt import Interrupt
with Interrupt():
    print("ready", flush=True)
    for _ in range(1000):
        ctypes.CDLL(None).usleep(100_000_000)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*HEARS_SIGINT, sys.executable, "-c", code], **pipes, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith("Stopping after the current steps.")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("", "") and process.returncode == 130


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0, 2.0])
def test_ctrl_c_while_the_command_starts(tmp_path, seconds):
    command = [*HEARS_SIGINT, *MAIN, f"--workdir={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode in (-signal.SIGINT, 130)


def test_a_reader_that_is_gone_stops_the_run(tmp_path, trained):
    process = subprocess.Popen([*MAIN, f"--workdir={tmp_path}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline()
    process.stderr.close()  # what the run says now raises SIGPIPE
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    done = subprocess.run([*MAIN, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert_same_run(tmp_path, trained, 25)


def test_another_closed_pipe_does_not_stop_the_run():
    reader, writer = os.pipe()
    os.close(reader)
    with Interrupt() as interrupt:
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"0")
        assert interrupt.signal is None
    os.close(writer)


def test_standard_output_on_a_full_disk_is_one_line(trained, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MAIN, f"--workdir={trained}"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr.endswith("Error: Cannot write to standard output: No space left on device.\n")
    assert done.returncode == 1 and "Traceback" not in done.stderr
