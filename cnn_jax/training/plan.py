"""Maps steps to epochs and chunks, as pure functions of the step number."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple


class Chunk(NamedTuple):
    """Steps between two returns to Python: from `start` up to, not including, `stop`."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
      num_examples: training images.
      batch_size: images per step.
      epochs: passes over the training images.
      steps_per_call: the longest chunk.
      epochs_per_pause: no chunk crosses the end of every so many epochs, where there is validation or a checkpoint.
      even: whether the chunks between two pauses differ by at most one step in length, so that one compiled program
        serves all; otherwise all but the last have `steps_per_call` steps.
    """

    num_examples: int
    batch_size: int
    epochs: int
    steps_per_call: int
    epochs_per_pause: int = 1
    even: bool = False

    @property
    def total_steps(self) -> int:
        """The step after which training ends."""
        return self.end_of_epoch(self.epochs)

    @property
    def steps_per_epoch(self) -> float:
        """Not an integer in general: a batch may hold examples of two epochs."""
        return self.num_examples / self.batch_size

    @property
    def longest_chunk(self) -> int:
        """The number of steps that no chunk exceeds."""
        if not self.even:
            return self.steps_per_call
        between_pauses = math.ceil(min(self.epochs_per_pause, self.epochs) * self.steps_per_epoch)
        return math.ceil(between_pauses / math.ceil(between_pauses / self.steps_per_call))

    def end_of_epoch(self, epoch: int) -> int:
        """Returns the first step after which every image has been seen `epoch` times."""
        return math.ceil(epoch * self.num_examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """Returns the passes over the training images after `step` steps, to two decimals."""
        return round(step * self.batch_size / self.num_examples, 2)

    def epoch_ended(self, step: int) -> int | None:
        """Returns the epoch that ended exactly with `step`, or None."""
        epoch = min(step * self.batch_size // self.num_examples, self.epochs)
        return epoch if epoch and self.end_of_epoch(epoch) == step else None

    def chunks(self, start: int, stop: int | None = None) -> Iterator[Chunk]:
        """Yields the chunks from step `start` up to `stop` (None for the end of the run).

        Where chunks end does not depend on `start`, so a resumed run stops where the first one would have.
        """
        stop = self.total_steps if stop is None else stop
        while start < stop:
            end = min(self._end_of_chunk(start), stop)
            yield Chunk(start, end)
            start = end

    def _end_of_chunk(self, step: int) -> int:
        epoch = step * self.batch_size // self.num_examples
        before = epoch - epoch % self.epochs_per_pause
        start, end = self.end_of_epoch(before), self.end_of_epoch(min(before + self.epochs_per_pause, self.epochs))
        steps = end - start
        if self.even:
            count = math.ceil(steps / self.longest_chunk)
            ends = (start + math.ceil(steps * number / count) for number in range(1, count + 1))
            return next(each for each in ends if each > step)
        return min(start + ((step - start) // self.steps_per_call + 1) * self.steps_per_call, end)
