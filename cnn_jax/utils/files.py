"""Atomic file writes that survive a power loss, and JSON that may be damaged."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cnn_jax.errors import UserError

WAITS = 20 if os.name == "nt" else 0  # of 50 ms: Windows replaces no file that another process has open


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yields a file that becomes `path` when the block ends, replacing a file of that name.

    It is written as `NAME.PID.partial` in the same folder, so that no reader sees half of it. Where the block or the
    disk fails, `path` is left as it was. After a power loss it is the old file or the new one.

    Args:
      path: the file to write; its folder must exist.
      mode: "w" for text in UTF-8, "wb" for bytes.

    Raises:
      OSError: the file cannot be written.
    """
    # With the process id, because two runs may compute the same cached file at the same time.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise the disk may know the new name before the content
        _replace(partial, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def sync(*paths: Path) -> None:
    """Waits until files, or the lists of names in folders, are on the disk and not only in the memory of the system.

    Does nothing on Windows, which syncs no file that is open for reading, and no folder.

    Raises:
      OSError: the disk has failed.
    """
    if os.name == "nt":
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has no such operation for folders
                raise
        finally:
            os.close(descriptor)


def write_output(path: Path, parts: Iterable[bytes]) -> None:
    """Writes the file that --output names, or replaces it, atomically.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with replacing(path, "wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise UserError(
            f"Cannot write --output={path} ({error.strerror}): free space there, or choose another file."
        ) from None


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
      ValueError: it is not JSON, or nested too deeply for Python, which is a `RecursionError` of `json.loads`.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: see `parse_json`.
    """
    return parse_json(path.read_bytes())


def _replace(partial: Path, path: Path) -> None:
    for _ in range(WAITS):
        try:
            partial.replace(path)
            return
        except PermissionError:
            time.sleep(0.05)
    partial.replace(path)
