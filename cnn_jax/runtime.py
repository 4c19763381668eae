"""What must be set before JAX starts, in one place: compiler flags, memory, and where compiled programs are kept.

It imports no JAX, so that a command can call `prepare` first of all. What the user has set stays as it is.
"""

import ctypes
import hashlib
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

# By default XLA gives convolutions on a CPU to YNNPACK, whose gradients with respect to kernels are slow; without it
# they go to Eigen. An unknown flag ends the process, so it is set only where it has been tried: jaxlib 0.10 to 0.12.
# "-individual_dot" too would be faster at batch 32, but then a run that was stopped ends with other numbers.
_CPU_FLAG, _CPU_VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
_CPU_FLAG_VERSIONS = ((0, 10), (0, 12))

# glibc's names for what `mallopt` sets (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_HOLES = range(2**11, 2**20)  # bytes: smaller ones are found at once, larger ones are what a step works in
_heaps: list[ctypes.CDLL] = []  # libc, once `prepare` has made it keep freed memory


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


def processor() -> str:
    """Returns the name of the processor, as far as the system tells."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)
        _heaps.append(libc)


def retire_holes() -> None:
    """Takes the holes that a compiler leaves in the heap out of use, and gives their memory back to the system.

    glibc keeps free blocks in lists that are sorted by size, and walks through one, under the one lock of the heap,
    whenever a step takes or frees a block. After XLA has compiled, thousands of holes stand there, and a step takes a
    third longer until the process ends. Here their pages go back to the system and the holes are allocated for good:
    what they cost is addresses, not memory. Call it when a program has run for the first time. Does nothing where
    `prepare` left malloc as it was.
    """
    for libc in _heaps:
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.malloc_trim(0)
        for _ in range(6):  # a hole is somewhat larger than the smallest of its list, and what remains is one again
            for smallest, count in reversed(_free_lists(libc)):
                for _ in range(count):
                    libc.malloc(smallest - 24)  # with its header, just what fits


def _free_lists(libc: ctypes.CDLL) -> list[tuple[int, int]]:
    """Returns the smallest size of every list of holes, in bytes, and how many it has; by size."""
    libc.open_memstream.restype = ctypes.c_void_p
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    report = ctypes.string_at(text.value, size.value).decode()
    libc.free(text)
    lists = re.findall(r'<size from="(\d+)" to="(\d+)" total="\d+" count="(\d+)"', report)
    return sorted((int(low), int(count)) for low, high, count in lists if int(low) in _HOLES and int(high) in _HOLES)


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
