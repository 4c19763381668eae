"""A disk that is full at any moment of a save: one line, no half-written step, and the same command resumes."""

import errno
import subprocess
import sys

import pytest
from conftest import ROOT

from cnn_jax.errors import UserError
from cnn_jax.workdir.disk import check_room, errors_in_one_line

# Saves a step for each level of a disk that is almost full, and again when there is room.
SAVE = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests/workdir")
from test_checkpoint import METADATA, assert_equal, make_items
from cnn_jax.errors import UserError
from cnn_jax.workdir import checkpoint, manifest
disk, checked, levels = Path(sys.argv[1]), sys.argv[2] == "checked", sys.argv[3:]
if not checked:  # as if the disk became full after the check
    checkpoint.check_room = lambda *_: None
folder, filler = disk / "checkpoints", disk / "filler"
with checkpoint.Checkpoints(folder, METADATA) as checkpoints:
    checkpoints.save(1, make_items(1, 2000))
    for step, level in enumerate(map(int, levels), 2):
        free = os.statvfs(disk)
        filler.write_bytes(bytes(max(free.f_bavail * free.f_frsize - level * 1024, 0)))
        try:
            checkpoints.save(step, make_items(step, 2000))
        except UserError as error:
            print(error)
        filler.unlink()
        assert [each.number for each in manifest.inspect(folder)] == list(range(max(step - 2, 1), step))
        checkpoints.save(step, make_items(step, 2000))
    restored = checkpoints.restore(lambda step: make_items(0, 2000))
    assert_equal(restored, (step, make_items(step, 2000)))
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("Only root may mount a file system.")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("check", ["checked", "unchecked"])
def test_a_full_disk_is_one_line(small_disk, check):
    levels = [0, 4, 20, 40, 60, 90]
    command = [sys.executable, "-c", SAVE, str(small_disk), check, *map(str, levels)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == len(levels) * (
        f"{small_disk}/checkpoints: No space left on device. Free space or restore access there, then repeat the "
        "command: it resumes from the last checkpoint.\n"
    )


def test_errors_that_are_not_of_the_disk_are_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError), errors_in_one_line(tmp_path):
        1 / 0  # noqa: B018
    with pytest.raises(BrokenPipeError), errors_in_one_line(tmp_path):
        raise BrokenPipeError
    with pytest.raises(UserError, match=r"^/x/y: Read-only file system\. Free space"), errors_in_one_line(tmp_path):
        raise OSError(errno.EROFS, "", "/x/y")
    with pytest.raises(OSError, match="No space left"):
        check_room(tmp_path, 2**60)
