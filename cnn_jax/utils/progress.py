"""The console for progress, and bars outside the training loop."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def error_console() -> Console:
    """Returns a console on standard error; no terminal in notebooks, though they ask rich for colours."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    file = cast(IO[str], _StandardError())
    return Console(file=file, force_terminal=None if terminal else False, force_jupyter=False)


def bar(count: ProgressColumn | None = None, shown: bool = True) -> Progress:
    """Returns a progress bar for a `with` statement: description, bar, count and remaining time.

    It is drawn on standard error, where that is a terminal, and removed at the end. Standard output is not redirected.

    Args:
      count: the column that shows the count; "completed/total" by default.
      shown: False to draw nothing, for tasks that take a moment.
    """
    console = error_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        count or MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
        redirect_stdout=False,
    )


class _StandardError:
    """Standard error, until its reader is gone: what is written afterwards is lost, and the run continues."""

    def write(self, text: str) -> None:
        if sys.stderr:  # None where it is closed
            with self._losing_output():
                sys.stderr.write(text)

    def flush(self) -> None:
        if sys.stderr:
            with self._losing_output():
                sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    @contextlib.contextmanager
    def _losing_output(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a closed pipe or terminal, or a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
