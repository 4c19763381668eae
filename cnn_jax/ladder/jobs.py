"""Commands as processes of their own, several at once, which a signal stops together."""

import contextlib
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

try:
    import fcntl
except ImportError:  # on Windows, where logs are not locked: two ladders must not share a workdir there
    fcntl = None

LOG_FILE = "log.txt"  # what the processes of a job printed, with a line at the end of each
_POLL = 0.5  # seconds
_END = re.compile(r"\[ladder\] exit status (-?\d+) after ([\d.]+) s")

Cores = frozenset[int] | None  # to which a process is pinned; None for all


class Job(NamedTuple):
    """A command that can be repeated until its work is done.

    Attributes:
      name: for messages.
      command: the program and its arguments.
      folder: holds the log; created if there is none.
      finished: whether nothing is left to do.
    """

    name: str
    command: Sequence[str]
    folder: Path
    finished: Callable[[], bool]


class Ended(NamedTuple):
    """A job whose process has ended.

    Attributes:
      job: the job.
      error: why it failed, on one line; None where it succeeded.
    """

    job: Job
    error: str | None


class Attempt(NamedTuple):
    """A process in the log of a job: its exit status (negative for a signal), seconds, and last error."""

    status: int
    seconds: float
    error: str

    @property
    def failed(self) -> bool:
        """Whether it neither succeeded nor was stopped by `Processes`."""
        return self.status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


class Processes:
    """Runs jobs. Use it in a `with` statement: SIGINT, SIGTERM and SIGHUP then stop all processes with SIGTERM.

    Processes have a session of their own, so that Ctrl-C reaches them once, from here. A second signal is passed on
    too, and runs take it as a request to stop immediately. A job's log is locked while its process lives, even after
    this process was killed; a job that another process works on is waited for.

    Attributes:
      signal: the first signal received, or None.
    """

    def __init__(self, slots: Sequence[Cores]):
        """Prepares one worker for each item of `slots`, the cores of its processes."""
        self.signal: signal.Signals | None = None
        self._slots = slots
        self._waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._workers: list[threading.Thread] = []

    def __enter__(self) -> "Processes":
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._previous = {number: signal.signal(number, self._record) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        if any(worker.is_alive() for worker in self._workers):  # an exception
            self._stop()
        for worker in self._workers:
            worker.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended | None]:
        """Yields each job when it has ended, and None twice a second; ends early after a signal.

        Jobs that a signal stopped are not yielded.
        """
        for job in jobs:
            self._waiting.put(job)
        self._workers = [threading.Thread(target=self._work, args=(cores,)) for cores in self._slots]
        for worker in self._workers:
            worker.start()
        while any(worker.is_alive() for worker in self._workers) or not self._ended.empty():
            try:
                yield self._ended.get(timeout=_POLL)
            except queue.Empty:
                yield None

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"\nStopping the runs, which save first. Repeat to stop them immediately.\n")
        self.signal = self.signal or signal.Signals(number)
        self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def _work(self, cores: Cores) -> None:
        if cores:
            os.sched_setaffinity(0, cores)  # of this thread, from which its processes inherit them
        while not self._stopped.is_set():
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                error = self._execute(job)
            except OSError as reason:
                error = f"Error: {reason}"
            if error is None or not self._stopped.is_set():
                self._ended.put(Ended(job, error))

    def _execute(self, job: Job) -> str | None:
        """Runs a job to its end, and returns its error."""
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / LOG_FILE).open("a") as log:
            while not _lock(log):
                if self._stopped.wait(_POLL):
                    return "stopped"
            if job.finished():  # meanwhile, by the process that held the lock
                return None
            log.write(f"$ {shlex.join(job.command)}\n")
            log.flush()
            begin = time.monotonic()
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            self._running.add(process)
            if self._stopped.is_set():  # between the loop's check and the line above
                process.send_signal(signal.SIGTERM)
            status = process.wait()
            self._running.discard(process)
            log.write(f"[ladder] exit status {status} after {time.monotonic() - begin:.1f} s\n")
        return attempts(job.folder)[-1].error if status else None


def is_locked(folder: Path) -> bool:
    """Whether a process works on the job in a folder."""
    try:
        with (folder / LOG_FILE).open() as log:
            return not _lock(log)
    except OSError:
        return False


def attempts(folder: Path) -> list[Attempt]:
    """Returns the processes in the log of a job that have ended, in order."""
    path = folder / LOG_FILE
    found, lines = [], []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        end = _END.fullmatch(line)
        if end:
            status = int(end[1])
            found.append(Attempt(status, float(end[2]), _error(lines, status) if status else ""))
        lines = [] if end or line.startswith("$ ") else [*lines, line.strip()]
    return found


def _error(lines: list[str], status: int) -> str:
    """Returns the line of an output that says what went wrong."""
    reported = [line for line in lines if line.startswith("Error: ")]
    if reported:
        return reported[-1]
    if status < 0:
        return f"stopped by {signal.Signals(-status).name}"
    return next((line for line in reversed(lines) if line), f"exit status {status}")


def _lock(log: IO) -> bool:
    """Locks an open log, and returns whether no other process holds it; processes that inherit the file keep it."""
    if not fcntl:
        return True
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
