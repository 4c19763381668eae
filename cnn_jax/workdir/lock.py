"""Lock of a workdir: one process at a time writes to it."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.parallel.distributed import check_same, is_primary
from cnn_jax.utils import files
from cnn_jax.workdir.layout import LOCK_FILE, METRICS_FILE

_PATIENCE = 30.0  # seconds that a network file system may take to show what another host has written

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[Path]:
    """Yields the folder in which this process writes records and what else it has to say of a run.

    That is the workdir itself, locked, for the first or only process of a run. Others have the same numbers to write:
    they get a temporary folder with the records so far, which early stopping reads.

    Raises:
      UserError: see `Lock.__enter__`; or not all processes see the same workdir.
    """

    def owner():
        return (workdir / LOCK_FILE).read_text() if (workdir / LOCK_FILE).exists() else ""

    if is_primary():
        with Lock(workdir):
            check_same("workdir", owner)
            yield workdir
        return
    check_same("workdir", owner, _PATIENCE)
    with tempfile.TemporaryDirectory(prefix="cnn_jax-", ignore_cleanup_errors=True) as folder:
        if (workdir / METRICS_FILE).exists():
            shutil.copy(workdir / METRICS_FILE, folder)
        yield Path(folder)


class Lock:
    """The right to write to a workdir, for a `with` statement. Readers do not need it.

    The system releases the lock when the process ends, even by SIGKILL. The file stays: it names the owner, and is
    empty while there is none. So the owner also counts where the file system has no locks, or keeps them on each host
    by itself, as some network file systems do.
    """

    def __init__(self, workdir: Path):
        """Takes no lock yet.

        Args:
          workdir: the folder, created with the lock if there is none.
        """
        self._workdir, self._path = workdir, workdir / LOCK_FILE

    def __enter__(self) -> "Lock":
        """Takes the lock.

        Raises:
          UserError: another process has it, or the workdir cannot be written.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+")
        except OSError as error:
            raise UserError(f"Cannot write to --workdir={self._workdir}: {error.strerror}. Take another one.") from None
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            self._file.truncate(0)
        finally:
            self._file.close()

    def _take(self) -> None:
        try:
            owner, locked = self._owner(), self._lock()
        except BlockingIOError:
            raise UserError(
                f"{self._describe(self._owner())} is training in {self._workdir}. Wait until it has ended, or take "
                "another --workdir."
            ) from None
        here = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
        if owner:
            same_machine = owner.get("host") == here["host"] or (here["boot"] and owner.get("boot") == here["boot"])
            if not (same_machine and (locked or _has_ended(owner.get("pid")))):
                raise UserError(
                    f"{self._describe(owner)} took the lock of {self._workdir}, and cannot be asked from here whether "
                    f"it still runs. If it does not, delete {self._path} and repeat the command."
                )
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(here | {"start": time.strftime("%Y-%m-%d %H:%M:%S%z")}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # so that other hosts see it
        except OSError as error:
            raise UserError(
                f"Cannot write to --workdir={self._workdir}: {error.strerror}. Free space there, or take another one."
            ) from None

    def _lock(self) -> bool:
        """Whether the file is now locked; False where the file system or the platform has no locks."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def _owner(self) -> dict[str, Any]:
        """Returns what the file says of its owner; empty if it says nothing, as that of a process about to write it."""
        self._file.seek(0)
        try:
            owner = files.parse_json(self._file.read())
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    @staticmethod
    def _describe(owner: dict[str, Any]) -> str:
        if not owner:
            return "Another process"
        return f"Process {owner.get('pid')} on {owner.get('host')}, started {owner.get('start')},"


def _boot() -> str | None:
    """Returns what names this start of the machine, in all of its containers; None where there is no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _has_ended(pid: object) -> bool:
    """Whether there is no such process on this machine; False where this cannot be known."""
    if fcntl is None or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
