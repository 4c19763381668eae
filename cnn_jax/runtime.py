"""Process setup that must precede the import of JAX: XLA flags, memory, and the cache of compiled programs.

This module imports no JAX, so that commands and the Python interface can call `prepare` first. The user's own settings
take precedence.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

# Which operations XLA:CPU hands to YNNPACK: a list of types, or changes to the default list. Removed from it are
# - individual_convolution: YNNPACK's gradients with respect to kernels are slow, Eigen's are not;
# - reduce: fused with what they sum, reductions can silently give wrong numbers. Source: github.com/jax-ml/jax/issues/
#   39103, and tests/test_reductions.py, whose programs are wrong with the default list (jaxlib 0.10.2, 0.12.0.1).
# individual_dot stays: small batches are faster without it, but a resumed run would end with other numbers.
_FLAG, _VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution,-reduce"
_DEFAULT_TYPES = {"individual_dot", "individual_convolution", "reduce"}
_WITH_REDUCTIONS = {"reduce", "dot", "eltwise"}  # the latter two also fuse the reductions that follow them
_KNOWN = ((0, 10), (0, 12))  # versions of jaxlib that have the flag, on every platform

# Which commands XLA puts into CUDA graphs, as changes to its default list. By default every convolution ends a graph,
# so that a step of the ladder's network is a dozen graphs and dozens of single launches instead of one graph.
_GPU_FLAG, _GPU_VALUE = "--xla_gpu_enable_command_buffer", "+CONVOLUTION"
_GPU_KNOWN = ((0, 10), (0, 10))  # versions of jaxlib for which the flag has been compiled

# glibc's names for what `mallopt` sets (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

# How /proc/cpuinfo names vector instructions on x86 and on ARM.
_VECTOR_EXTENSIONS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve")


def prepare(keep_memory: bool = True) -> None:
    """Sets up compiler, memory and compilation cache; once JAX has started, only warns where a flag is missing.

    - `XLA_FLAGS` gets the flag that keeps CPU reductions correct and convolutions fast, unless it has that flag
      already; a line on stderr warns if its value allows wrong reductions. Where JAX is built for CUDA, it also gets
      the flag that puts convolutions and loops into CUDA graphs, unless it has it already.
    - Freed memory is kept for the next step, or returned to the system, unless the environment configures glibc's
      malloc.
    - Programs that take more than a tenth of a second to compile are cached in `cache_folder() / "programs"`, unless
      `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache, or the
      folder cannot be created.

    Args:
      keep_memory: False for a server, whose visitors come and go.
    """
    jax = sys.modules.get("jax")
    if jax and _has_started(jax):  # and has read its environment
        if _FLAG not in _given_flags() and _flag_is_known():
            _say_late()
        return
    set_flags()
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        if keep_memory:
            _configure_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1})
        else:
            _configure_malloc({_MMAP_THRESHOLD: 2**20, _TRIM_THRESHOLD: 2**20, _ARENA_MAX: 2})
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "programs" / _machine()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        if jax:  # imported, when it read these two
            jax.config.update("jax_compilation_cache_dir", str(folder))
            seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def set_flags(gpu: bool | None = None) -> None:
    """Adds to `XLA_FLAGS` what `prepare` describes; JAX must not have been imported.

    Args:
      gpu: whether to add the flag for GPUs; None where JAX may find one.
    """
    given = _given_flags()
    if (_may_use_cuda() if gpu is None else gpu) and _GPU_FLAG not in given and _in(_GPU_KNOWN, _version()):
        given = os.environ["XLA_FLAGS"] = f"{given} {_GPU_FLAG}={_GPU_VALUE}".strip()
    values = re.findall(rf"{_FLAG}=[\"']?([\w,+-]*)", given)
    if not values and _flag_is_known():
        os.environ["XLA_FLAGS"] = f"{given} {_FLAG}={_VALUE}".strip()
    elif values and _allows_reductions(values[-1]):  # of several, XLA takes the last
        print(
            f"XLA_FLAGS allows YNNPACK reductions: some programs then compute silently wrong numbers; set "
            f"{_FLAG}={_VALUE}.",
            file=sys.stderr,
        )


def processor() -> str:
    """Returns the name of the processor, as far as the system reports it."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def vector_extensions() -> str:
    """Returns the vector instructions of the processor, for which XLA compiles; empty where the system names none.

    Cloud machines with different ones may give their processors the same name.
    """
    line = next((line for line in _cpuinfo() if line.startswith(("flags", "Features"))), "")
    return " ".join(sorted(name for name in line.partition(":")[2].split() if name.startswith(_VECTOR_EXTENSIONS)))


def cache_folder() -> Path:
    """Returns the folder for what can be regenerated: $CNN_JAX_CACHE, or cnn_jax in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("CNN_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cnn_jax"


def _has_started(jax: ModuleType) -> bool:
    """Whether JAX has computed anything or listed its devices: it then refuses another number of CPU devices."""
    devices = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", 2 if devices == 1 else 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", devices)
    return False


@functools.cache
def _say_late() -> None:
    print(
        "JAX had started before cnn_jax could set it up: some programs then compute silently wrong numbers on a CPU. "
        "Start again, with `from cnn_jax import ...` before anything is computed.",
        file=sys.stderr,
    )


def _given_flags() -> str:
    """Returns the user's XLA flags: `XLA_FLAGS`, or the content of the file that it names if it has no dash."""
    given = os.environ.get("XLA_FLAGS", "").strip()
    if not given or given.startswith("-"):
        return given
    try:
        return Path(given).read_text().strip()
    except OSError:  # of which XLA will complain
        return given


def _allows_reductions(value: str) -> bool:
    """Whether YNNPACK may execute reductions with this value of the flag, of which XLA ignores the case."""
    names = set(filter(None, value.lower().split(",")))
    if not any(name[0] in "+-" for name in names):  # a list in place of the default one
        return bool(names & _WITH_REDUCTIONS)
    added, removed = ({name[1:] for name in names if name[0] == sign} for sign in "+-")
    return bool(((_DEFAULT_TYPES | added) - removed) & _WITH_REDUCTIONS)


def _configure_malloc(parameters: dict[int, int]) -> None:
    """Calls glibc's `mallopt`; does nothing where malloc is not glibc's.

    XLA:CPU allocates what a step needs and frees it after the step. By default glibc takes such blocks from the system
    and returns them, and the system clears every page again. It also learns from the size of the blocks that are freed
    to keep ever larger ones, unless the threshold is set.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)


def return_memory() -> None:
    """Returns freed memory to the system, where malloc is glibc's."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _flag_is_known() -> bool:
    """Whether jaxlib has the flag: XLA ends the process at one that it does not know."""
    if _in(_KNOWN, _version()):
        return True
    # Tried in a process of its own. It takes about a second: once a version has been tested, extend _KNOWN.
    trial = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{_FLAG}={_VALUE}"}
    return subprocess.run(trial, env=environment, capture_output=True).returncode == 0


def _version() -> tuple[int, ...]:
    """Returns the first two numbers of the version of jaxlib, as far as it has them."""
    try:
        return tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return ()


def _in(known: tuple[tuple[int, ...], tuple[int, ...]], version: tuple[int, ...]) -> bool:
    return known[0] <= version <= known[1]


def _may_use_cuda() -> bool:
    """Whether JAX is built for CUDA and may use it; whether there is a GPU, JAX finds out when it starts."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    allowed = not platforms or bool({"cuda", "gpu"} & set(platforms.lower().split(",")))
    return allowed and any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13))


def _machine() -> str:
    """Returns a name for this kind of processor: machines that cannot run each other's code may share a home folder."""
    lines = _cpuinfo() or [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.blake2b("\n".join(kinds or lines).encode(), digest_size=6).hexdigest()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
