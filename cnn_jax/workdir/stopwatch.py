"""Seconds per part of a run, with compilation measured separately."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from jax import monitoring

_COMPILING = (
    "/jax/core/compile/"  # tracing, lowering and compiling; excludes the savings that the compilation cache reports
)


class Stopwatch:
    """Adds up seconds by name; compilation counts as "compile".

    They are separate because compilation takes place once, whatever the number of epochs, and other frameworks have
    none.

    Attributes:
      seconds: the total by name.
    """

    def __init__(self):
        """Starts without measurements."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[float, float]] = []  # start and end of each compilation; disjoint and ordered

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measures a block, which must block until the device is done; blocks must not be nested."""
        self._spans.clear()
        monitoring.register_event_duration_secs_listener(self._listen)
        begin = time.perf_counter()
        try:
            yield
        finally:
            monitoring.unregister_event_duration_listener(self._listen)
            compilation = sum(end - start for start, end in self._spans)
            self.seconds["compile"] += compilation
            self.seconds[name] += time.perf_counter() - begin - compilation

    def _listen(self, event: str, duration_secs: float, **_) -> None:
        if not event.startswith(_COMPILING):
            return
        end = time.perf_counter()
        start = end - duration_secs
        # Inner functions are traced within outer ones and reported first; the outer span covers them.
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((max(start, self._spans[-1][1]) if self._spans else start, end))
