"""Training a run: restore, then update, log, evaluate, save, chunk by chunk."""

import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.models.summary import model_table
from cnn_jax.training import step
from cnn_jax.training.experiment import Trainer
from cnn_jax.training.feature_cache import Stopped
from cnn_jax.training.metrics import NAMES
from cnn_jax.workdir import provenance
from cnn_jax.workdir.checkpoint import FINGERPRINT, Checkpoints
from cnn_jax.workdir.interrupt import Interrupt
from cnn_jax.workdir.progress import Progress
from cnn_jax.workdir.records import Summaries, read_metrics
from cnn_jax.workdir.stopwatch import Stopwatch

CONFIG_FILE = "config.json"
TIMES_FILE = "times.json"
CHECKPOINT_FOLDER = "checkpoints"
FEATURES_FOLDER = "features"
PROFILE_FOLDER = "profile"


def train(config: ConfigDict, workdir: str) -> int:
    """Trains the run that `config` describes in `workdir`, or goes on with it, and scores it on the test split.

    Args:
      config: a stage (see configs/base.py).
      workdir: the run's folder, made where there is none.

    Returns:
      The exit status: 0 when the run is complete, 128 + the signal's number when it was stopped.

    Raises:
      UserError: an impossible configuration, unusable data, a workdir that holds another run, a loss that is not
        finite.
    """
    config_lib.validate(config)
    folder, watch = _open_workdir(config, Path(workdir).expanduser()), Stopwatch()
    trainer = Trainer(config, data.load(config.data), _features_folder(config, folder))
    with Interrupt() as interrupt, Checkpoints(folder / CHECKPOINT_FOLDER, trainer.metadata) as checkpoints:
        with watch.measure("initialise"):
            now, state = checkpoints.restore(trainer.like) or (0, jax.block_until_ready(trainer.init_state()))
        config_lib.write(config, folder / CONFIG_FILE)
        with (
            Summaries(folder, config.tensorboard, now) as summaries,
            Progress(trainer.schedule, now, config.seeds) as progress,
        ):
            run = _Run(config, folder, trainer, checkpoints, summaries, progress, interrupt, watch)
            return run.go_on(now, state)


@dataclasses.dataclass
class _Run:
    """Everything that a run has at hand, opened."""

    config: ConfigDict
    folder: Path
    trainer: Trainer
    checkpoints: Checkpoints
    summaries: Summaries
    progress: Progress
    interrupt: Interrupt
    watch: Stopwatch

    def go_on(self, start: int, state: step.TrainState) -> int:
        """Trains from step `start` to the end and scores the test split; returns the exit status."""
        total = self.trainer.schedule.total_steps
        if not start:
            self._describe(state)
        elif start < total:
            self.progress.say(f"Going on from step {start:,} of {total:,}.")
        if start < total or not self._earlier_test():
            self._record_provenance(start)
        try:
            now, state = self._loop(start, state)
            if now == total:
                self.progress.stop()
                scores = self._earlier_test() or self._score_test(state)
                if start < total:
                    _report_times(self.watch, self.trainer, start, self.folder)
                _show_test(self.trainer, self.folder, scores)
                return 0
            self.progress.say(f"Stopped at step {now:,}, which is saved: the same command goes on from there.")
        except Stopped:
            self.progress.say("Stopped; the features so far are kept: the same command goes on from there.")
        return 128 + self.interrupt.signal

    def _loop(self, now: int, state: step.TrainState) -> tuple[int, step.TrainState]:
        """Trains from step `now` to the end, or until interrupted; returns where it stopped, which is saved."""
        schedule, saved_at, first = self.trainer.schedule, time.monotonic(), now
        while now < schedule.total_steps and not self.interrupt.signal:
            start = now
            self._prepare(state, start)
            with self.watch.measure("train"), self._trace(start > first):
                now, state, values = self.trainer.update(state, start)
            speed = self.progress.update(now, values)
            self.summaries.record(now, schedule.epoch(now), "train", values | speed)
            self._check_finite(values["loss"], start, now)
            epoch, score = schedule.epoch_ended(now), None
            if epoch:
                scores = self._validate(state, now, epoch)
                score = scores.get("accuracy")
                self.progress.epoch_ended(epoch, values, scores)
            if self._must_save(now, epoch, saved_at):
                self.checkpoints.save(now, state, score)
                saved_at = time.monotonic()
        return now, state

    def _prepare(self, state: step.TrainState, now: int) -> None:
        """Brings what the phase trains on to the device; features of a frozen backbone may take long."""
        slowly = self.trainer.must_prepare(now)
        with self.watch.measure("prepare"):
            if slowly:
                self.progress.stop()  # for a bar of its own
            self.trainer.prepare(state.variables, now, self._stop)
            if slowly:
                self.progress.start()

    def _trace(self, compiled: bool) -> contextlib.AbstractContextManager:
        """Profiles one chunk, the first that is already compiled, where the configuration asks for it."""
        folder = self.folder / PROFILE_FOLDER
        if not (self.config.profile and compiled) or folder.exists():
            return contextlib.nullcontext()
        return jax.profiler.trace(str(folder))

    def _check_finite(self, loss: float, start: int, now: int) -> None:
        if self.config.on_nan == "stop" and not math.isfinite(loss):
            raise UserError(
                f"The loss is {loss} between steps {start} and {now}, which are not saved. Lower "
                "config.optimizer.learning_rate (in another --workdir), or go on with --config.on_nan=continue."
            )

    def _validate(self, state: step.TrainState, now: int, epoch: int) -> dict[str, Any]:
        if epoch % self.config.eval.epochs and now < self.trainer.schedule.total_steps:
            return {}
        with self.watch.measure("validation"):
            scores = self.trainer.evaluate(state.variables, "validation", now)
        if scores:
            self.summaries.record(now, epoch, "validation", scores)
        return scores

    def _must_save(self, now: int, epoch: int | None, saved_at: float) -> bool:
        due, limit = self.config.checkpoint.epochs, 60 * self.config.checkpoint.minutes
        overdue = limit and time.monotonic() - saved_at > limit
        ended = now == self.trainer.schedule.total_steps
        return bool((epoch and epoch % due == 0) or overdue or self.interrupt.signal or ended)

    def _describe(self, state: step.TrainState) -> None:
        """Says what is going to be trained, and on what."""
        trainer, labels = self.trainer, self.trainer.phases[0].partition.labels
        table = model_table(trainer.model, trainer.lane(state.variables), trainer.image_size, labels)
        self.progress.say(f"{table}\n{trainer.dataset.describe()}")
        self._say_duplicates("train", "validation")
        self.summaries.describe(config_lib.flatten(trainer.metadata["config"]), {"model": f"```\n{table}\n```"})

    def _record_provenance(self, start: int) -> None:
        """Records the provenance of this process, and reports where that of the steps before it differs."""
        current = provenance.collect(self.trainer.layout, self.trainer.metadata[FINGERPRINT])
        differing = provenance.record(self.folder, start, current)
        if differing:
            self.progress.say(
                f"Resuming with {provenance.describe(differing)}: the remaining steps may not be bit-identical to "
                "those of an uninterrupted run."
            )

    def _earlier_test(self) -> dict[str, Any] | None:
        """The scores on the test split, where an earlier process recorded them."""
        end = self.trainer.schedule.total_steps
        return next((r for r in read_metrics(self.folder) if (r["step"], r["split"]) == (end, "test")), None)

    def _score_test(self, state: step.TrainState) -> dict[str, Any]:
        """Scores the last state on the test split."""
        end = self.trainer.schedule.total_steps
        with self.watch.measure("prepare"):
            self.trainer.prepare(state.variables, end - 1, self._stop, ("test",))
        self._say_duplicates("test")
        with self.watch.measure("test"):
            scores = self.trainer.evaluate(state.variables, "test", end)
        self.summaries.record(end, self.trainer.schedule.epochs, "test", scores)
        return scores

    def _say_duplicates(self, *splits: str) -> None:
        """Says which images of these splits occur more than once."""
        for line in (line for split in splits for line in self.trainer.duplicates[split]):
            self.progress.say(line)

    def _stop(self) -> bool:
        return self.interrupt.signal is not None


def _open_workdir(config: ConfigDict, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to --workdir={folder}: {error.strerror}. Take another one.") from None
    if (folder / CONFIG_FILE).exists():
        config_lib.check_same(config, folder / CONFIG_FILE)
    return folder


def _features_folder(config: ConfigDict, workdir: Path) -> Path | None:
    """Where features of a frozen backbone are kept; None: they are not."""
    if not config.features.cache:
        return None
    return Path(config.features.dir).expanduser() if config.features.dir else workdir / FEATURES_FOLDER


def _show_test(trainer: Trainer, folder: Path, scores: dict[str, Any]) -> None:
    """Prints the scores on the test split and how to go on."""
    print(f"Test split, {len(trainer.dataset.test):,} images, after {trainer.schedule.epochs} epochs:")
    for name in NAMES:
        value = math.nan if scores[name] is None else scores[name]  # JSON has no NaN
        spread = f" ± {scores[f'{name}_std']:.4f}" if scores.get(f"{name}_std") is not None else ""
        print(f"  {name:<20} {value:.4f}{spread}")
    print(f"Workdir: {folder}")


def _report_times(watch: Stopwatch, trainer: Trainer, start: int, folder: Path) -> None:
    """Prints, and writes beside the metrics, where the seconds of this process went; what it compiled is apart."""
    steps, seconds = trainer.schedule.total_steps - start, dict(watch.seconds)
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items() if name != "compile")
    print(f"Times: {parts}; compiling, which is in none of them, {seconds['compile']:.2f} s.")
    times = {"steps": steps, "device": jax.devices()[0].device_kind, "jax": jax.__version__, "seconds": seconds}
    (folder / TIMES_FILE).write_text(json.dumps(times, indent=1) + "\n")
