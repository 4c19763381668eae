"""Training, inference and the ladder where a system lacks what only Unix or Linux has."""

import errno
import os
from pathlib import Path

import pytest

from cnn_jax.utils import files

# What macOS (the first lines) and Windows (all) lack, removed before anything of the package is imported.
WITHOUT = """
import os, pathlib, shutil, signal, sys

def remove(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

usage = shutil.disk_usage(".")
shutil.disk_usage = lambda path: usage  # all systems have it, Windows without statvfs
remove(os, "sched_getaffinity", "sched_setaffinity")
read_text = pathlib.Path.read_text
def without_proc(path, *args, **kwargs):
    if path.as_posix().startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return read_text(path, *args, **kwargs)
pathlib.Path.read_text = without_proc
remove(os, "fork", "forkpty", "killpg", "getuid", "geteuid", "getpgid", "setsid", "statvfs", "sysconf", "getloadavg")
remove(signal, "SIGHUP", "SIGALRM", "SIGKILL", "SIGUSR1", "SIGUSR2", "setitimer", "pthread_sigmask", "pthread_kill")
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
import ctypes
CDLL = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **kwargs: object() if name is None else CDLL(name, *args, **kwargs)  # no mallopt
"""
TRAIN = """
import cnn_jax
result = cnn_jax.train(cnn_jax.load_config("tests/small_config.py", epochs=1), sys.argv[1])
assert result.finished and cnn_jax.evaluate(sys.argv[1])["examples"] == 359
print("trained")
"""
LADDER = """
import runpy
sys.argv = ["ladder", "--workdir=" + sys.argv[1], "--stages=tests/small_config.py", "--seeds=1", "--config.epochs=1"]
runpy.run_module("cnn_jax.ladder", run_name="__main__")
"""


def test_a_run_needs_nothing_that_only_linux_has(command, tmp_path):
    done = command("", str(tmp_path), code=WITHOUT + TRAIN)
    assert done.returncode == 0 and done.stdout.endswith("trained\n"), done.stderr


def test_the_ladder_needs_no_locks_and_no_affinity(command, tmp_path):
    done = command("", str(tmp_path), code=WITHOUT + LADDER)
    assert done.returncode == 0 and "small_config" in done.stdout, done.stderr


def test_an_open_file_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    path, left = tmp_path / "file", [2]
    rename = Path.replace

    def refuse(self, target):
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "used by another process")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), files.replacing(path) as file:  # a system where waiting does not help
        file.write("old")
    assert list(tmp_path.iterdir()) == []
    left[0] = 2
    monkeypatch.setattr(files, "WAITS", 3)
    with files.replacing(path) as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]
