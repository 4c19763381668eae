"""glibc's heap, in which XLA:CPU allocates and frees all that a step needs, at every step."""

import ctypes
import re
import sys

# glibc's names for what `mallopt` sets (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_HOLES = range(2**11, 2**20)  # bytes: smaller ones are found at once, larger ones are what a step works in
_kept: list[ctypes.CDLL] = []  # libc, once it keeps freed memory


def keep_freed_memory() -> None:
    """Stops malloc from giving large blocks back to the system; does nothing where malloc is not glibc's.

    On a CPU XLA allocates what a step needs and frees it after the step. By default glibc takes such blocks from the
    system and gives them back, and the system clears every page again: a fifth of the time of a step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            libc.mallopt(parameter, value)
        _kept.append(libc)


def retire_holes() -> None:
    """Takes the holes that a compiler leaves in the heap out of use, and gives their memory back to the system.

    glibc keeps free blocks in lists that are sorted by size, and walks through one, under the one lock of the heap,
    whenever a step takes or frees a block. After XLA has compiled, thousands of holes stand there, and a step takes a
    third longer until the process ends. Here their pages go back to the system and the holes are allocated for good:
    what they cost is addresses, not memory. Call it when a program has run for the first time. Does nothing unless
    `keep_freed_memory` did something.
    """
    for libc in _kept:
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
