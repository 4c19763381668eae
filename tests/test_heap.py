"""The holes that compiling leaves in the heap are taken out of use, and never against the user's will."""

import ctypes
import os
import subprocess
import sys

import pytest

HOLES = """
import ctypes
from cnn_jax import heap, runtime
runtime.prepare()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(4000 + 96 * index) for index in range(2000)]
for block in blocks[::2]:
    libc.free(block)
holes = [sum(count for _, count in heap._free_lists(libc))]
heap.retire_holes()
print(*holes, sum(count for _, count in heap._free_lists(libc)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
@pytest.mark.parametrize("environment, retired", [({}, True), ({"MALLOC_ARENA_MAX": "1"}, False)])
def test_holes_of_the_heap_are_retired_unless_the_user_set_malloc(environment, retired):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", HOLES], env=clean | environment, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before > 800 and done.stderr == ""
    assert after < 50 if retired else after == before
