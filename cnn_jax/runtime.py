"""What must be set before JAX starts, in one place: compiler flags, memory, and where compiled programs are kept.

It imports no JAX, so that a command can call `prepare` first of all. What the user has set stays as it is.
"""

import ctypes
import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

# By default XLA gives convolutions on a CPU to YNNPACK, whose gradients with respect to kernels are slow; without it
# they go to Eigen. An unknown flag ends the process, so it is set only where it has been tried: jaxlib 0.10 to 0.12.
_CPU_FLAG, _CPU_VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
_CPU_FLAG_VERSIONS = ((0, 10), (0, 12))

# glibc's names for what `mallopt` sets (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def prepare() -> None:
    """Sets up compiler, memory and compilation cache; does nothing once JAX has been imported.

    - `XLA_FLAGS` gets what makes convolutions faster on a CPU, unless it says something of it already.
    - Freed memory is kept for the next step, unless the environment says something of glibc's malloc already.
    - Programs that take a tenth of a second to compile are kept in `cache_folder() / "programs"`, unless
      `JAX_COMPILATION_CACHE_DIR` names another folder, or `JAX_ENABLE_COMPILATION_CACHE=false` wants none, or the
      folder cannot be made.
    """
    if "jax" in sys.modules:  # which has read its environment; the page is run again and again in one process
        return
    given = os.environ.get("XLA_FLAGS", "")
    if _CPU_FLAG not in given and _flag_is_known():
        os.environ["XLA_FLAGS"] = f"{given} {_CPU_FLAG}={_CPU_VALUE}".strip()
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        _keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "programs" / _machine()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def cache_folder() -> Path:
    """Where to keep what can be made anew: $CNN_JAX_CACHE, or cnn_jax in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("CNN_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cnn_jax"


def _keep_freed_memory() -> None:
    """Stops malloc from giving large blocks back to the system.

    On a CPU XLA allocates what a step needs and frees it after the step. By default glibc takes such blocks from the
    system and gives them back, and the system clears every page again: a fifth of the time of a step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            mallopt(parameter, value)


def _flag_is_known() -> bool:
    try:
        version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return False
    tried = (sys.platform, platform.machine()) == ("linux", "x86_64")
    return tried and _CPU_FLAG_VERSIONS[0] <= version <= _CPU_FLAG_VERSIONS[1]


def _machine() -> str:
    """A name for this kind of processor: a home folder may be shared by machines that cannot run each other's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.blake2b("\n".join(kinds or lines).encode(), digest_size=6).hexdigest()
