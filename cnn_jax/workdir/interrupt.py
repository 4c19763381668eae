"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import os
import signal
from types import FrameType


class Interrupt:
    """While its `with` block runs, the first SIGINT or SIGTERM is noted; a second one ends the process at once.

    Attributes:
      signal: what came, or None.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"\nStopping after these steps; once more stops at once, and loses them.\n")
        self.signal = signal.Signals(number)
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
