"""Progress of training: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich import progress as rich_progress

from cnn_jax.utils.progress import error_console
from cnn_jax.utils.text import duration

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Reports a run on standard error. Use it in a `with` statement."""

    def __init__(self, total_steps: int, epochs: int, images_per_step: int, first_step: int = 0):
        """Prepares the report.

        Args:
          total_steps: of the run.
          epochs: of the run.
          images_per_step: of all seeds.
          first_step: the step from which the run starts or resumes.
        """
        self._total_steps, self._epochs, self._images_per_step = total_steps, epochs, images_per_step
        self._console = error_console()
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
        self._task = self._bar.add_task("compiling", total=total_steps, completed=first_step, numbers="")

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def stop(self) -> None:
        """Removes the bar."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def update(self, step: int, epoch: float, values: Mapping[str, float]) -> dict[str, float]:
        """Reports a chunk that ended at `step`; returns its speed, except for the first chunk, which compiles."""
        now, speed, numbers = time.monotonic(), {}, _numbers(values)
        if self._timed_from is None:
            self._timed_from = (step, now)
        else:
            first, start = self._timed_from
            steps_per_second = (step - first) / (now - start)
            rate = steps_per_second * self._images_per_step
            speed = {"images_per_second": round(rate, 1)}
            left = (self._total_steps - step) / steps_per_second
            numbers += f"  {rate:,.0f} images/s  {duration(left)} left"
        label = f"epoch {min(int(epoch) + 1, self._epochs)}/{self._epochs}"
        self._bar.update(self._task, completed=step, description=label, numbers=numbers)
        if not self._console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self.say(f"{label}  step {step:,}/{self._total_steps:,}  {numbers}")
        return speed

    def epoch_ended(self, epoch: int, train: Mapping[str, float], validation: Mapping[str, float]) -> None:
        """Prints the line of an epoch; `validation` may be empty."""
        line = f"epoch {epoch}/{self._epochs}  train {_numbers(train)}"
        self.say(f"{line}  validation {_numbers(validation)}" if validation else line)


def _numbers(values: Mapping[str, float]) -> str:
    return f"loss {values['loss']:.3f} accuracy {values['accuracy']:.3f}"
