"""Process setup before JAX is imported: faster, correct, and second to what the user set."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from cnn_jax import runtime

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
OURS = f"{FLAG}=-individual_convolution,-reduce"
ASK = """
import json, os
from cnn_jax import runtime
runtime.prepare()
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(json.dumps([os.environ.get("XLA_FLAGS", ""), jax.config.jax_compilation_cache_dir, len(jax.devices())]))
"""


@pytest.fixture
def prepared(tmp_path, user_environment):
    """Returns (XLA_FLAGS, folder of the compilation cache, devices) of a process that has prepared and computed."""

    def run(warning="", **changes):
        environment = user_environment(XDG_CACHE_HOME=str(tmp_path / "xdg"), **changes)
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == warning
        return json.loads(done.stdout)

    return run


def test_flags_combine_with_those_of_the_user(tmp_path, prepared):
    flags, folder, devices = prepared(XLA_FLAGS="--xla_force_host_platform_device_count=3")
    assert devices == 3
    assert flags == f"--xla_force_host_platform_device_count=3 {OURS}"
    assert folder.startswith(str(tmp_path / "xdg" / "cnn_jax" / "programs"))
    assert os.path.isdir(folder)


def test_flags_combine_with_those_of_a_file(tmp_path, prepared):
    file = tmp_path / "flags"
    file.write_text("--xla_force_host_platform_device_count=3\n")
    flags, _, devices = prepared(XLA_FLAGS=str(file))
    assert devices == 3 and flags == f"--xla_force_host_platform_device_count=3 {OURS}"


def test_what_the_user_set_stays(tmp_path, prepared):
    given = f"{FLAG}=-individual_dot,-reduce"
    own = str(tmp_path / "own")
    assert prepared(XLA_FLAGS=given, JAX_COMPILATION_CACHE_DIR=own)[:2] == [given, own]
    assert not (tmp_path / "xdg").exists()


def test_a_flag_that_allows_wrong_numbers_stays_with_a_warning(prepared):
    warning = f"XLA_FLAGS allows YNNPACK reductions: some programs then compute silently wrong numbers; set {OURS}.\n"
    assert prepared(warning, XLA_FLAGS=f"{FLAG}=-individual_dot")[0] == f"{FLAG}=-individual_dot"


@pytest.mark.parametrize(
    "value, allowed",
    [
        ("", False),
        ("-reduce", False),
        ("-INDIVIDUAL_CONVOLUTION,-REDUCE", False),
        ("individual_dot,individual_convolution", False),
        ("-individual_convolution", True),
        ("+reduce", True),
        ("-reduce,+eltwise", True),
        ("reduce", True),
        ("individual_dot,Reduce", True),
        ("dot", True),
    ],
)
def test_which_values_allow_wrong_numbers(value, allowed):
    assert runtime._allows_reductions(value) == allowed


GPU_FLAG = "--xla_gpu_enable_command_buffer"


@pytest.fixture
def flags(monkeypatch):
    """Returns `XLA_FLAGS` as `runtime.set_flags` leaves it, where JAX is built for CUDA or not."""

    def run(given="", cuda=True, version="0.10.2", platforms="", **arguments):
        installed = runtime.importlib.util.find_spec("json") if cuda else None
        monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: installed)
        monkeypatch.setattr(runtime, "_version", lambda: tuple(map(int, version.split(".")[:2])))
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        monkeypatch.setenv("XLA_FLAGS", given)
        runtime.set_flags(**arguments)
        return os.environ["XLA_FLAGS"]

    return run


def test_convolutions_are_put_into_cuda_graphs_where_jax_is_built_for_cuda(flags):
    assert flags() == f"{GPU_FLAG}=+CONVOLUTION {OURS}"
    assert flags(platforms="cuda,cpu") == flags(platforms="GPU") == flags(platforms="cpu", gpu=True) == flags()
    assert flags(platforms="cpu") == flags(cuda=False) == flags(gpu=False) == OURS


def test_a_flag_for_gpus_that_the_user_set_or_that_was_never_compiled_is_left_out(flags):
    own = f"{GPU_FLAG}= --xla_gpu_deterministic_ops=true"
    assert flags(own) == f"{own} {OURS}"
    assert flags(version="0.12.0") == OURS


def test_autotuning_results_are_kept_beside_the_compilation_cache():
    """By JAX, where there is a cache of compiled programs: a resumed run then has the same kernels."""
    import jax

    caches = jax.config.values["jax_persistent_cache_enable_xla_caches"]
    assert "xla_gpu_per_fusion_autotune_cache_dir" in caches


def test_an_unusable_cache_folder_stops_nothing(tmp_path, prepared):
    (tmp_path / "xdg").write_text("a file")
    assert prepared()[1] is None


def test_where_the_cache_folder_is(monkeypatch):
    for name in ("CNN_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert runtime.cache_folder() == Path("/home/ann/.cache/cnn_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/cache")
    assert runtime.cache_folder() == Path("/big/cache/cnn_jax")
    monkeypatch.setenv("CNN_JAX_CACHE", "~/weights")
    assert runtime.cache_folder() == Path("/home/ann/weights")


@pytest.fixture
def jaxlib(monkeypatch):
    """Makes `_flag_is_known` meet a version of jaxlib, and XLA end the process or not; returns the trials."""
    trials = []

    def pretend(version, status):
        monkeypatch.setattr(metadata, "version", lambda name: version)
        done = subprocess.CompletedProcess([], status)
        monkeypatch.setattr(runtime.subprocess, "run", lambda command, **_: trials.append(command) or done)
        return trials

    return pretend


@pytest.mark.parametrize("version", ["0.10.2", "0.12.9"])
def test_versions_that_have_the_flag_are_not_tried(jaxlib, version):
    trials = jaxlib(version, status=1)
    assert runtime._flag_is_known() and not trials


@pytest.mark.parametrize("version", ["0.9.0", "0.13.0", "1.0", "dev"])
@pytest.mark.parametrize("status, known", [(0, True), (1, False)])
def test_other_versions_are_tried(jaxlib, version, status, known):
    trials = jaxlib(version, status)
    assert runtime._flag_is_known() == known and len(trials) == 1


@pytest.mark.parametrize("flag, known", [(FLAG, True), ("--xla_no_such_flag", False)])
def test_the_trial_tells_known_flags_from_unknown_ones(monkeypatch, flag, known):
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    monkeypatch.setattr(runtime, "_FLAG", flag)
    assert runtime._flag_is_known() == known


@pytest.mark.parametrize("name", [None, "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_malloc_is_left_alone_where_the_user_configures_it(monkeypatch, name):
    calls = []
    monkeypatch.setattr(runtime, "_configure_malloc", lambda parameters: calls.append(1))
    monkeypatch.delitem(sys.modules, "jax")  # as before its import
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    for variable in [key for key in os.environ if key.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(variable)
    if name:
        monkeypatch.setenv(name, "1")
    runtime.prepare()
    assert calls == ([] if name else [1])


def test_a_program_that_only_predicts_is_set_up_too(user_environment):
    code = "import os; import cnn_jax.inference; print(os.environ['XLA_FLAGS'])"
    done = subprocess.run([sys.executable, "-c", code], env=user_environment(), capture_output=True, text=True)
    assert (FLAG in done.stdout) == runtime._flag_is_known(), done.stderr
