"""Signals as a request to stop after the current steps."""

import contextlib
import os
import select
import signal
import threading
from types import FrameType

_REPEATED = (signal.SIGINT, signal.SIGTERM)  # exit at once the second time
# A terminal that is closed sends SIGHUP more than once, and every write to a closed pipe causes a SIGPIPE.
# Windows has neither.
_ONCE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGPIPE") if hasattr(signal, name))


class Interrupt:
    """Context in which the first SIGINT, SIGTERM, SIGHUP or SIGPIPE is recorded.

    A second SIGINT or SIGTERM ends the process at once, even while XLA compiles and no handler in Python can run.
    SIGHUP is ignored where it was ignored before, as under `nohup`. SIGPIPE counts only where nobody reads standard
    output or standard error any more, because libraries cause it too: asyncio when it closes an event loop, a logger
    whose server closes the connection. Outside of the main thread, which alone can handle signals, the context does
    nothing.

    Attributes:
      signal: the recorded signal, or None.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        # Python writes the number of each signal to this pipe as soon as it arrives.
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        for number in (*_REPEATED, *_ONCE):
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._writer)  # which ends the thread
        self._previous = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number != getattr(signal, "SIGPIPE", None) or _reader_is_gone():
            self.signal = self.signal or signal.Signals(number)

    def _watch(self, reader: int) -> None:
        """Waits for signals in a thread."""
        asked = False
        with open(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] not in _REPEATED:
                    continue
                if asked:
                    os._exit(128 + number[0])
                asked = True
                with contextlib.suppress(OSError):  # nobody may be reading
                    os.write(2, b"\nStopping after the current steps. Repeat to stop immediately and lose them.\n")


def _reader_is_gone() -> bool:
    """Whether the other end of standard output or standard error is closed."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # errors and hang-ups are reported in any case
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
