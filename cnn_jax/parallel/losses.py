"""Copies standard input to standard error, with one line in place of what JAX logs before it ends a process.

JAX ends the processes of a run when one of them is lost. It cannot be asked to do so in Python, and what it says is a
page of C++; so this runs in a process of its own, which outlives it. It imports nothing but the standard library.
"""

import io
import re
import signal
import sys
from collections.abc import Iterable
from typing import IO

# Of a record of absl's C++ logging: "E1127 22:55:40.843820   22503 coordination_service.cc:1549] ...".
_RECORD = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] ")
_OF_JAX = ("coordination_service", "client.h", "client.cc", "service.cc", "preemption")
_NAMES = (r"stopped sending heartbeats\):\s*([\d,\s]+)", r"task[:/ ](\d+)")
_FIRST = "leader task"  # is process 0
_START = "RegisterTask"  # what a process asks process 0 at the start


def main() -> None:
    """Copies until the other end is closed."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for the process, which says what follows from them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    copy(sys.stdin, sys.stderr)


def copy(lines: Iterable[str], output: IO[str] | io.TextIOBase) -> None:
    """Copies lines, except for what JAX says of lost processes."""
    held, fatal = [], False
    for line in lines:
        record = _RECORD.match(line)
        if record:
            of_loss = record[2].startswith(_OF_JAX) and record[1] in "WEF"
            fatal = fatal or (of_loss and record[1] == "F")
            held = [*held, line] if of_loss else []
        elif held:
            held.append(line)
        if not held and not line.startswith("[Gloo]"):
            output.write(line)
            output.flush()
    if fatal:
        output.write(explain("".join(held)))
        output.flush()


def explain(log: str) -> str:
    """Returns one line that names the process whose loss a log reports."""
    if _START in log:
        return (
            "Error: The processes of this run did not find each other in time: start all of them, with the same "
            "--coordinator=HOST:PORT and --num_processes=N, and see that they reach that port.\n"
        )
    names = next((re.findall(r"\d+", found[1]) for pattern in _NAMES if (found := re.search(pattern, log))), [])
    if not names and _FIRST in log:
        names = ["0"]
    lost = f"process {' and '.join(names)}" if names else "another process"
    return (
        f"Error: {lost} of this run was lost, so this one ends too. What {lost} printed last may say why. The same "
        "command, given to all processes, resumes from the last checkpoint.\n"
    )


if __name__ == "__main__":
    main()
