"""How training is going: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich import progress as rich_progress
from rich.console import Console

from cnn_jax.training.plan import Schedule

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Reports a run on standard error. Use it in a `with` statement."""

    def __init__(self, schedule: Schedule, first_step: int, seeds: int = 1):
        """Prepares to report a run of so many seeds at once that goes on from `first_step`."""
        self._schedule, self._seeds = schedule, seeds
        self._console = Console(stderr=True)
        self._timed_from: tuple[int, float] | None = None  # set after the first chunk, which compiles
        self._last_line = time.monotonic()
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TextColumn("{task.percentage:3.0f}%"),
            rich_progress.TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = schedule.total_steps
        self._task = self._bar.add_task("compiling", total=total, completed=first_step, numbers="")

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def stop(self) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line; above the bar, where there is one."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def update(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Reports a chunk that ended at `step`; returns its speed, but for the first chunk, which compiles."""
        now, speed, numbers = time.monotonic(), {}, _numbers(values)
        if self._timed_from is None:
            self._timed_from = (step, now)
        else:
            first, start = self._timed_from
            rate = (step - first) * self._schedule.batch_size / (now - start)
            left = (self._schedule.total_steps - step) * self._schedule.batch_size / rate
            rate *= self._seeds
            speed = {"images_per_second": round(rate, 1)}
            numbers += f"  {rate:,.0f} images/s  {_duration(left)} left"
        label = f"epoch {min(int(self._schedule.epoch(step)) + 1, self._schedule.epochs)}/{self._schedule.epochs}"
        self._bar.update(self._task, completed=step, description=label, numbers=numbers)
        if not self._console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self.say(f"{label}  step {step:,}/{self._schedule.total_steps:,}  {numbers}")
        return speed

    def epoch_ended(self, epoch: int, train: Mapping[str, float], validation: Mapping[str, float]) -> None:
        """Prints the line of an epoch; `validation` may be empty."""
        line = f"epoch {epoch}/{self._schedule.epochs}  train {_numbers(train)}"
        self.say(f"{line}  validation {_numbers(validation)}" if validation else line)


def _numbers(values: Mapping[str, float]) -> str:
    return f"loss {values['loss']:.3f} accuracy {values['accuracy']:.3f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
