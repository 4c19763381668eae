"""Ctrl-C and SIGTERM as a request to stop after the current steps."""

import os
import signal
import threading
from types import FrameType


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is recorded, and a second one terminates the process.

    Only in the main thread, which alone receives signals: elsewhere it does nothing.

    Attributes:
      signal: the recorded signal, or None.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Interrupt":
        main = threading.current_thread() is threading.main_thread()
        heard = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._previous = {number: signal.signal(number, self._record) for number in heard}
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
