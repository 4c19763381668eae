"""Errors of the disk under a workdir as one line."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cnn_jax.errors import UserError


@contextlib.contextmanager
def errors_in_one_line(folder: Path) -> Iterator[None]:
    """Turns what a full, read-only, failing or vanished disk raises in the block into a `UserError`.

    Args:
      folder: named where the error itself names no file.
    """
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        code, path = _find(error)
        if code is None:
            raise
        raise UserError(
            f"{path or folder}: {os.strerror(code)}. Free space or restore access there, then repeat the command: it "
            "resumes from the last checkpoint."
        ) from None


def _find(error: BaseException | None) -> tuple[int | None, str | None]:
    """Returns the number of the system error behind an exception, and the file that it names."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno, error.filename
        match = re.search(r"OS error (\d+)", str(error))  # of tensorstore, in a ValueError
        if match:
            return int(match[1]), None
        parts = getattr(error, "exceptions", None)  # of an ExceptionGroup
        error = parts[0] if parts else error.__cause__ or error.__context__
    return None, None
