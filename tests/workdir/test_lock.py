"""One process at a time writes to a workdir."""

import json
import os
import socket
import subprocess
import sys

import pytest

from cnn_jax.errors import UserError
from cnn_jax.workdir import lock
from cnn_jax.workdir.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from cnn_jax.workdir.lock import Lock
with Lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that has the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def write_owner(tmp_path, **changes):
    """Leaves a lock as a process that was killed leaves it."""
    owner = {"host": socket.gethostname(), "boot": lock._boot(), "pid": 1, "start": "2026-01-01 00:00:00+0000"}
    (tmp_path / "lock").write_text(json.dumps(owner | changes))


def test_the_second_process_is_refused_until_the_first_has_ended(tmp_path, owner):
    line = rf"Process {owner.pid} on {socket.gethostname()}, started 20\d\d-.* is training in .*another --workdir"
    with pytest.raises(UserError, match=line), Lock(tmp_path):
        pass
    owner.kill()  # SIGKILL
    owner.wait()
    with Lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_an_owner_on_another_host_needs_a_person(tmp_path):
    write_owner(tmp_path, host="elsewhere", boot="another")
    with pytest.raises(UserError, match=r"Process 1 on elsewhere.* delete .*lock and repeat"), Lock(tmp_path):
        pass
    assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"
    write_owner(tmp_path, host="another-container")
    with Lock(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_the_process_id_decides(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    write_owner(tmp_path, pid=os.getppid())
    with pytest.raises(UserError, match=rf"Process {os.getppid()} on .* cannot be asked"), Lock(tmp_path):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_owner(tmp_path, pid=ended.pid)
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_a_damaged_file_names_nobody(tmp_path, content):
    (tmp_path / "lock").write_text(content, errors="surrogateescape")
    with Lock(tmp_path):
        pass
