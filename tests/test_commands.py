"""The command `cnn-jax`, --help and --print_config, and Ctrl-C while a command starts."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import HEARS_SIGINT, ROOT

from cnn_jax import config as config_lib
from cnn_jax.__main__ import COMMANDS


def run(*arguments):
    command = [sys.executable, "-m", "cnn_jax", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_without_a_command_all_are_listed():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize("arguments", [[], ["train", "--help"], ["page", "--help"], ["config"]])
def test_a_closed_pipe_is_no_error(arguments):
    command = [sys.executable, "-m", "cnn_jax", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, "")


def test_a_mistyped_command_is_one_line():
    done = run("trian")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: There is no command 'trian'. Did you mean train?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = run(name, "--help")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 3
    assert name in ("page", "config") or "\nFlags:\n  --" in done.stdout


@pytest.mark.parametrize(
    "module", [module for name, (module, _) in COMMANDS.items() if name != "page"] + ["cnn_jax.train"]
)
def test_the_modules_have_the_same_help(module):
    done = subprocess.run([sys.executable, "-m", module, "-h"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    name = next((name for name, (other, _) in COMMANDS.items() if other == module), "train")
    assert (done.returncode, done.stdout) == (0, run(name, "--help").stdout)


def test_help_of_training_lists_all_settings_of_the_stage():
    text = run("train", "--help", "--config=speedrun", "--config.epochs=3").stdout
    stage = config_lib.load("speedrun", {"epochs": 3})
    assert config_lib.listing(stage) in text
    assert "--config.epochs=3\n    passes over the training images" in text
    assert "  --workdir: Folder for checkpoints" in text


def test_the_configuration_is_printed_as_config_json_has_it():
    done = run("train", "--config=batchnorm", "--config.epochs=3", "--print_config")
    assert (done.returncode, done.stderr) == (0, "")
    expected = config_lib.load("batchnorm", {"epochs": "3"})
    assert done.stdout == config_lib.as_json(expected) and json.loads(done.stdout)["epochs"] == 3


def test_arguments_reach_the_command(tmp_path):
    done = run("predict", f"--model={tmp_path / 'none'}", "cat.jpg")
    assert done.returncode == 1 and done.stderr.startswith("Error: There is no file ")


# At a point of the start of a command, a signal that Python receives then; what it does must end the process.
INTERRUPTED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from cnn_jax import cli

def main():
    {code}
    print("went on")

cli.run(main)
"""
SWALLOWED = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    time.sleep(30)
"""
DURING_AN_IMPORT = """
    sys.path.insert(0, {folder!r})
    try:
        import interrupts
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize(
    "code, says",
    [
        ("os.kill(os.getpid(), signal.SIGINT)", "Error: Interrupted.\n"),
        (SWALLOWED, "\nInterrupted.\n"),
        (DURING_AN_IMPORT, "\nInterrupted.\n"),
    ],
)
def test_ctrl_c_ends_a_command(tmp_path, code, says):
    (tmp_path / "interrupts.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    source = INTERRUPTED.format(code=code.format(folder=str(tmp_path)).strip())
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", says)


def test_ctrl_c_while_modules_are_imported():
    command = [sys.executable, "-X", "importtime", "-m", "cnn_jax.main", "--config=quickstart", "--workdir=unused"]
    process = subprocess.Popen([*HEARS_SIGINT, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with process:
        for line in process.stderr:  # of the package itself, which lets Ctrl-C end the process until a command does
            if line.rstrip().endswith(" cnn_jax"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in rest and "KeyboardInterrupt" not in rest
