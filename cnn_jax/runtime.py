"""What must be set before JAX starts, in one place: compiler flags, memory, and where compiled programs are kept.

It imports no JAX, so that a command can call `prepare` first of all. What the user has set stays as it is.
"""

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from cnn_jax import heap

# By default XLA gives convolutions on a CPU to YNNPACK, whose gradients with respect to kernels are slow; without it
# they go to Eigen. An unknown flag ends the process, so it is set only where it has been tried: jaxlib 0.10 to 0.12.
# "-individual_dot" too would be faster at batch 32, but then a run that was stopped ends with other numbers.
_CPU_FLAG, _CPU_VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
_CPU_FLAG_VERSIONS = ((0, 10), (0, 12))

# How /proc/cpuinfo names vector instructions on x86 and on ARM.
_VECTOR_EXTENSIONS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve")


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
        heap.keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "programs" / _machine()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def processor() -> str:
    """Returns the name of the processor, as far as the system tells."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def vector_extensions() -> str:
    """Returns the vector instructions of the processor, for which XLA compiles; empty where the system names none.

    Cloud machines with different ones may give their processors the same name.
    """
    line = next((line for line in _cpuinfo() if line.startswith(("flags", "Features"))), "")
    return " ".join(sorted(name for name in line.partition(":")[2].split() if name.startswith(_VECTOR_EXTENSIONS)))


def cache_folder() -> Path:
    """Where to keep what can be made anew: $CNN_JAX_CACHE, or cnn_jax in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("CNN_JAX_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cnn_jax"


def _flag_is_known() -> bool:
    try:
        version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return False
    tried = (sys.platform, platform.machine()) == ("linux", "x86_64")
    return tried and _CPU_FLAG_VERSIONS[0] <= version <= _CPU_FLAG_VERSIONS[1]


def _machine() -> str:
    """A name for this kind of processor: a home folder may be shared by machines that cannot run each other's code."""
    lines = _cpuinfo() or [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.blake2b("\n".join(kinds or lines).encode(), digest_size=6).hexdigest()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
