"""Records the training of a run: metrics.jsonl, loggers, the progress bar, and the check that losses are finite."""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax
from clu import metrics as clu_metrics

from cnn_jax.parallel.distributed import is_primary
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.plan import Chunk
from cnn_jax.training.step import SKIPPED
from cnn_jax.utils.text import count
from cnn_jax.workdir.progress import Progress
from cnn_jax.workdir.records import Summaries, read_metrics


class NotFinite(Exception):
    """The loss of a chunk is not finite, and `config.on_nan` is "stop".

    Attributes:
      chunk: which one.
      loss: its mean.
    """

    def __init__(self, chunk: Chunk, loss: float):
        """Takes the attributes."""
        super().__init__(f"The loss is {loss} between steps {chunk.start} and {chunk.stop}")
        self.chunk, self.loss = chunk, loss


class Recorder:
    """Records chunks one behind the loop: while the device trains a chunk, the numbers of the previous one are fetched.

    Use it in a `with` statement. Call `flush` before a state is saved: it then has no loss that nobody has seen.

    Attributes:
      progress: the bar.
      summaries: metrics.jsonl and the loggers.
    """

    def __init__(self, workdir: Path, experiment: Experiment, first_step: int):
        """Opens the files and prepares the progress bar.

        Args:
          workdir: the folder of the run.
          experiment: what is trained.
          first_step: the step from which the run starts or resumes.
        """
        plan, config = experiment.plan, experiment.config
        self._plan, self._fetch, self._on_nan = plan, experiment.fetch, config.on_nan
        self._count_unreadable = experiment.splits.count_unreadable
        loggers = (config.tensorboard, config.loggers) if is_primary() else ("off", ())
        self.summaries = Summaries(workdir, *loggers, first_step)
        self.progress = Progress(plan.total_steps, plan.epochs, plan.batch_size * config.seeds, first_step)
        self._of_epoch = self._since_last_epoch(read_metrics(workdir), first_step)
        self._pending: tuple[Chunk, dict[str, jax.Array], float] | None = None

    def __enter__(self) -> "Recorder":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.summaries)
            stack.enter_context(self.progress)
            self._close = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._close.__exit__(*error)

    def train(
        self,
        chunk: Chunk,
        metrics: clu_metrics.Collection,
        learning_rate: float,
        measured: dict[str, jax.Array] | None = None,
    ) -> None:
        """Takes the metrics of a chunk, which may still be computed, and records the chunk before it.

        Args:
          chunk: the steps.
          metrics: of them.
          learning_rate: of the last one.
          measured: further numbers by name, on the device, with the seed axis if there is one.

        Raises:
          NotFinite: the loss of the chunk before is not finite.
        """
        pending, self._pending = self._pending, (chunk, self._fetch.start(metrics) | (measured or {}), learning_rate)
        self._record(pending)

    def flush(self) -> None:
        """Records the last chunk; waits for it.

        Raises:
          NotFinite: its loss is not finite.
        """
        pending, self._pending = self._pending, None
        self._record(pending)

    def _record(self, pending: tuple[Chunk, dict[str, jax.Array], float] | None) -> None:
        if pending is None:
            return
        chunk, values, learning_rate = pending
        steps = chunk.stop - chunk.start
        values = _count_skipped(self._fetch.finish(values), steps) | {"learning_rate": learning_rate}
        self._of_epoch.append((steps - round(values.get(SKIPPED, 0)), values))
        # The epoch to which the last step belongs, at the end of an epoch as well.
        ongoing = (chunk.stop - 1) * self._plan.batch_size / self._plan.num_examples
        speed = self.progress.update(chunk.stop, ongoing, values)
        self.summaries.record(
            chunk.stop, self._plan.epoch(chunk.stop), "train", values | speed | self._count_unreadable("train")
        )
        if values.get(SKIPPED):
            self.progress.say(
                f"Steps {chunk.start:,} to {chunk.stop:,}: {count(round(values[SKIPPED]), 'update')} skipped, whose "
                "loss or gradient was not finite."
            )
        if self._on_nan == "stop" and not math.isfinite(values["loss"]):
            self._pending = None
            raise NotFinite(chunk, values["loss"])

    def epoch_average(self) -> dict[str, float]:
        """Returns the loss and accuracy of training since this was last asked, averaged over the updates made."""
        chunks, self._of_epoch = [chunk for chunk in self._of_epoch if chunk[0]], []
        total = sum(steps for steps, _ in chunks) or math.nan
        return {name: sum(steps * values[name] for steps, values in chunks) / total for name in ("loss", "accuracy")}

    def _since_last_epoch(self, records: list[dict[str, Any]], step: int) -> list[tuple[int, dict[str, Any]]]:
        """Returns the updates and values of the chunks before `step`, back to the end of an epoch."""
        before = self._plan.end_of_epoch(step * self._plan.batch_size // self._plan.num_examples)
        found = []
        for record in records:
            if record["split"] == "train" and before < record["step"] <= step:
                values = {name: math.nan if record[name] is None else record[name] for name in ("loss", "accuracy")}
                found.append((record["step"] - before - round(record.get(SKIPPED, 0)), values))
                before = record["step"]
        return found


def _count_skipped(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the values of a chunk with the number of skipped updates in place of their share."""
    counts = {name: round(values[name] * steps, 3) for name in (SKIPPED, f"{SKIPPED}_std") if name in values}
    if "lanes" in values and SKIPPED in values["lanes"]:
        counts["lanes"] = values["lanes"] | {SKIPPED: [round(share * steps, 3) for share in values["lanes"][SKIPPED]]}
    return values | counts
