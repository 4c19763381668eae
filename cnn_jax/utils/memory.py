"""The memory that this process may use."""

import contextlib
import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def total_memory() -> float:
    """Returns the bytes of memory of this machine, or of its container or process where they have a limit."""
    return min(_of_machine(), _of_container(), _of_process())


def _of_machine() -> float:
    if not hasattr(os, "sysconf"):
        return 8e9  # Windows does not say without further packages
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_container() -> float:
    """Returns the smallest limit of the control groups of this process."""
    own = _own_group()
    groups = [_CGROUPS / "memory"] if own is None else [_CGROUPS / own, *(_CGROUPS / own).parents]
    limits = [math.inf]
    for path in (group / name for group in groups for name in ("memory.max", "memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _own_group() -> str | None:
    """Returns the path of the control group of this process; None where there is version 1 only."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return line.removeprefix("0::/")
    return None


def _of_process() -> float:
    """Returns the limit of `ulimit -v`."""
    try:
        import resource
    except ImportError:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit
