"""What is set before JAX starts: it speeds things up, and never overrides the user."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from cnn_jax import runtime

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
ASK = """
import json, os
from cnn_jax import runtime
runtime.prepare()
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(json.dumps([os.environ.get("XLA_FLAGS", ""), jax.config.jax_compilation_cache_dir, len(jax.devices())]))
"""


def prepared(tmp_path, **environment):
    """Returns (XLA_FLAGS, folder of the compilation cache, devices) of a process that has prepared and computed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_", "CNN_JAX_", "XDG_", "MALLOC_"))}
    clean |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "xdg")} | environment
    done = subprocess.run([sys.executable, "-c", ASK], env=clean, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture
def linux(monkeypatch):
    """A machine on which the flag has been tried, and an environment that says nothing."""
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")


def test_flags_combine_with_those_of_the_user(tmp_path):
    flags, folder, devices = prepared(tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert devices == 3
    assert flags.startswith("--xla_force_host_platform_device_count=3")
    assert (FLAG in flags) == runtime._flag_is_known()
    assert folder.startswith(str(tmp_path / "xdg" / "cnn_jax" / "programs"))
    assert os.path.isdir(folder)


def test_what_the_user_set_stays(tmp_path):
    given = f"{FLAG}=-individual_dot"
    own = str(tmp_path / "own")
    assert prepared(tmp_path, XLA_FLAGS=given, JAX_COMPILATION_CACHE_DIR=own)[:2] == [given, own]
    assert not (tmp_path / "xdg").exists()


def test_an_unusable_cache_folder_stops_nothing(tmp_path):
    (tmp_path / "xdg").write_text("a file")
    assert prepared(tmp_path)[1] is None


def test_where_the_cache_folder_is(monkeypatch):
    for name in ("CNN_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert runtime.cache_folder() == Path("/home/ann/.cache/cnn_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/cache")
    assert runtime.cache_folder() == Path("/big/cache/cnn_jax")
    monkeypatch.setenv("CNN_JAX_CACHE", "~/weights")
    assert runtime.cache_folder() == Path("/home/ann/weights")


@pytest.mark.parametrize(
    "version, known", [("0.10.2", True), ("0.12.9", True), ("0.9.0", False), ("0.13.0", False), ("dev", False)]
)
def test_the_flag_is_set_for_tried_versions_alone(monkeypatch, linux, version, known):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert runtime._flag_is_known() == known


def test_the_flag_is_not_set_on_other_processors(monkeypatch, linux):
    monkeypatch.setattr(runtime.platform, "machine", lambda: "aarch64")
    assert not runtime._flag_is_known()
