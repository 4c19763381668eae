"""Errors of the disk under a workdir as one line."""

import contextlib
import errno
import functools
import gc
import inspect
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from cnn_jax.errors import UserError


@contextlib.contextmanager
def errors_in_one_line(folder: Path) -> Iterator[None]:
    """Turns what a full, read-only, failing or vanished disk raises in the block into a `UserError`.

    Args:
      folder: named where the error itself names no file.
    """
    _silence_orbax()
    try:
        yield
        return
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        code, path = _find(error)
        if code is None:
            raise
    # Outside of the `except` block, so that nothing refers to the error any more, nor to what Orbax left unfinished.
    gc.collect()
    raise UserError(
        f"{path or folder}: {os.strerror(code)}. Free space or restore access there, then repeat the command: it "
        "resumes from the last checkpoint."
    )


def check_room(folder: Path, size: int) -> None:
    """Raises an `OSError` where the disk has fewer than `size` bytes left."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


class _NotOfThreads(logging.Filter):
    """Drops log records of Orbax's threads, and of errors of the disk in what they run."""

    def filter(self, record: logging.LogRecord) -> bool:
        of_disk = record.exc_info and _find(record.exc_info[1])[0]
        return not (of_disk or "_SignalingThread" in record.getMessage())


@functools.cache
def _silence_orbax() -> None:
    """Stops the tracebacks that Orbax's threads and unfinished writes print for an error that Orbax also raises."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_NotOfThreads())
    show = sys.unraisablehook

    def unraisablehook(unraisable):
        # The latter: tensorstore has finished a write for which nobody waits any more.
        if not inspect.iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = unraisablehook


def _find(error: BaseException | None) -> tuple[int | None, str | None]:
    """Returns the number of the system error behind an exception, and the file that it names."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno, error.filename
        match = re.search(r"os_error_code='(\d+)'", str(error))  # of tensorstore, in a ValueError
        if match:
            return int(match[1]), None
        parts = getattr(error, "exceptions", None)  # of an ExceptionGroup
        error = parts[0] if parts else error.__cause__ or error.__context__
    return None, None
