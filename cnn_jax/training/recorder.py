"""Records the training of a run: metrics.jsonl, TensorBoard, the progress bar, and the check that losses are finite."""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax
from clu import metrics as clu_metrics

from cnn_jax.errors import UserError
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.plan import Chunk
from cnn_jax.workdir.progress import Progress
from cnn_jax.workdir.records import Summaries


class Recorder:
    """Records chunks one behind the loop: while the device trains a chunk, the numbers of the previous one are fetched.

    Use it in a `with` statement. Call `flush` before a state is saved: it then has no loss that nobody has seen.

    Attributes:
      progress: the bar.
      summaries: metrics.jsonl and TensorBoard.
      values: the metrics of the last chunk that was fetched.
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
        self.summaries = Summaries(workdir, config.tensorboard, first_step)
        self.progress = Progress(plan.total_steps, plan.epochs, plan.batch_size * config.seeds, first_step)
        self.values: dict[str, Any] = {}
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
          UserError: the loss of the chunk before is not finite.
        """
        pending, self._pending = self._pending, (chunk, self._fetch.start(metrics) | (measured or {}), learning_rate)
        self._record(pending)

    def flush(self) -> None:
        """Records the last chunk; waits for it.

        Raises:
          UserError: its loss is not finite.
        """
        pending, self._pending = self._pending, None
        self._record(pending)

    def _record(self, pending: tuple[Chunk, dict[str, jax.Array], float] | None) -> None:
        if pending is None:
            return
        chunk, values, learning_rate = pending
        self.values, epoch = self._fetch.finish(values) | {"learning_rate": learning_rate}, self._plan.epoch(chunk.stop)
        speed = self.progress.update(chunk.stop, epoch, self.values)
        self.summaries.record(chunk.stop, epoch, "train", self.values | speed)
        loss = self.values["loss"]
        if self._on_nan == "stop" and not math.isfinite(loss):
            self._pending = None
            raise UserError(
                f"The loss is {loss} between steps {chunk.start} and {chunk.stop}, which are not saved. Lower "
                "config.optimizer.learning_rate (in another --workdir), or continue with --config.on_nan=continue."
            )
