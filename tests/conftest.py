"""What all tests share: four CPU devices, strict JAX, small configurations."""

import os

# Before JAX starts: several devices, to see that nothing assumes one.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the user's own, which tests must neither read nor fill
# Compiling takes most of the time of these tests; without optimization it takes a quarter.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from cnn_jax import runtime

runtime.set_flags()  # as the commands do

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jax import config as config_lib

ROOT = Path(__file__).resolve().parents[1]

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and runs would do the same


def stage(name: str):
    """The configuration of a stage."""
    return config_lib.load(ROOT / "configs" / f"{name}.py")


@pytest.fixture(scope="session")
def user_environment(tmp_path_factory):
    """Makes the environment of a user with a CPU who has set nothing but `changes`, and whose caches are empty."""
    of_tests = ("XLA_", "JAX_", "CNN_JAX_", "XDG_", "MALLOC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(of_tests)}

    def make(**changes: str) -> dict[str, str]:
        return clean | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("xdg"))} | changes

    return make


@pytest.fixture
def small_config():
    """A run of seconds: see tests/small_config.py."""
    return config_lib.load(ROOT / "tests" / "small_config.py")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The workdir of a finished run of `small_config`, trained in a process of its own and disturbed by nobody."""
    workdir = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "-m", "cnn_jax.main", "--config=tests/small_config.py", f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Test split, 359 images, after 2 epochs:" in done.stdout
    assert "Traceback" not in done.stderr
    return workdir


@pytest.fixture(scope="session")
def exported_model(trained, tmp_path_factory):
    """The path of what `trained` was exported to."""
    from cnn_jax.inference import artifact, load_classifier

    path = tmp_path_factory.mktemp("exported") / "model.jaxexport"
    classifier = load_classifier(trained)
    artifact.write(path, classifier.log_probabilities, classifier.metadata, classifier.step)
    return path


@pytest.fixture
def photographs(tmp_path):
    """Makes folders of photographs: `photographs("train/cat/1.png", ...)` returns the root."""

    def make(*paths: str, size=(40, 30)) -> Path:
        generator = np.random.RandomState(0)
        for path in paths:
            file = tmp_path / "photographs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.randint(0, 256, (*size[::-1], 3), np.uint8)).save(file)
        return tmp_path / "photographs"

    return make


@pytest.fixture
def command():
    """Runs `python -m cnn_jax.NAME ARGUMENTS...` in a new process and returns it when it has ended."""

    def run(name: str, *arguments: str, code: str = "", **kwargs) -> subprocess.CompletedProcess:
        start = (
            [sys.executable, "-c", code, *arguments] if code else [sys.executable, "-m", f"cnn_jax.{name}", *arguments]
        )
        return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)

    return run


# Begins a command that a test sends SIGINT: runners of tests may ignore it, and their children inherit that.
HEARS_SIGINT = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)
