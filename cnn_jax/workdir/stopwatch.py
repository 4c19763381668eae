"""How long the parts of a run take, with what JAX compiles apart from it."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from jax import monitoring

_COMPILING = "/jax/core/compile/"  # tracing, lowering and compiling; not the cache's estimates of what it saved


class Stopwatch:
    """Adds up seconds by name; those spent compiling go to "compile".

    Whoever compares with a framework that does not compile, or trains twice, wants the two apart.

    Attributes:
      seconds: by name.
    """

    def __init__(self):
        """Begins with nothing measured."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[float, float]] = []  # of compiling: disjoint, in order

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measures a block, which must wait for the device itself; blocks must not be nested."""
        self._spans.clear()
        monitoring.register_event_duration_secs_listener(self._listen)
        begin = time.perf_counter()
        try:
            yield
        finally:
            monitoring.unregister_event_duration_listener(self._listen)
            compiling = sum(end - start for start, end in self._spans)
            self.seconds["compile"] += compiling
            self.seconds[name] += time.perf_counter() - begin - compiling

    def _listen(self, event: str, duration: float, **_) -> None:
        if not event.startswith(_COMPILING):
            return
        end = time.perf_counter()
        start = end - duration
        # Tracing a function traces those that it calls, which were reported before it.
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((max(start, self._spans[-1][1]) if self._spans else start, end))
