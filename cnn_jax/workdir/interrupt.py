"""Ctrl-C and SIGTERM as a request to stop after the current steps."""

import os
import signal
from types import FrameType


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is recorded, and a second one terminates the process.

    Attributes:
      signal: the recorded signal, or None.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"\nStopping after the current steps. Repeat to stop immediately and lose them.\n")
        self.signal = signal.Signals(number)
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
