"""The training loop: restore, then train, record, validate and save, chunk by chunk."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.data import summary
from cnn_jax.data.pipeline import UNREADABLE
from cnn_jax.errors import UserError
from cnn_jax.models.summary import model_table
from cnn_jax.parallel.distributed import Consensus, check_same, is_alone
from cnn_jax.parallel.placement import describe_devices
from cnn_jax.training import early_stopping, init_from
from cnn_jax.training.diagnosis import first_not_finite
from cnn_jax.training.experiment import Experiment, features_folder
from cnn_jax.training.feature_cache import Stopped
from cnn_jax.training.metrics import NAMES
from cnn_jax.training.phases import Phase
from cnn_jax.training.plan import Chunk
from cnn_jax.training.recorder import NotFinite, Recorder
from cnn_jax.training.state import TrainState
from cnn_jax.utils import files
from cnn_jax.utils.text import count
from cnn_jax.workdir import provenance
from cnn_jax.workdir.checkpoint import FINGERPRINT, Checkpoints
from cnn_jax.workdir.disk import errors_in_one_line
from cnn_jax.workdir.interrupt import Interrupt
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER, CONFIG_FILE, PROFILE_FOLDER, TIMES_FILE
from cnn_jax.workdir.lock import writable
from cnn_jax.workdir.records import read_metrics
from cnn_jax.workdir.stopwatch import Stopwatch

SCORED = ("train", "validation")  # the splits that training reads


def train(config: ConfigDict, workdir: str) -> int:
    """Trains the run that `config` describes in `workdir`, or resumes it, and scores it on the test split.

    Args:
      config: a stage (see configs/base.py).
      workdir: the run's folder, created if there is none.

    Returns:
      The exit status: 0 when the run is complete, 128 + the signal's number when it was stopped.

    Raises:
      UserError: an impossible configuration, unusable data, a workdir that holds another run, a loss that is not
        finite.
    """
    config_lib.validate(config)
    folder = Path(workdir).expanduser()
    with errors_in_one_line(folder), writable(folder) as own_folder:
        return _run(config, folder, own_folder, _check_workdir(config, folder))


def _run(config: ConfigDict, workdir: Path, folder: Path, longer: dict[str, tuple[Any, Any]]) -> int:
    """Does what `train` says, in a workdir that no other process writes to.

    Args:
      config: of the run.
      workdir: of the run.
      folder: where this process writes (see `cnn_jax.workdir.lock.writable`).
      longer: by what this run is longer than the one in the workdir (see `cnn_jax.config.check_same`).
    """
    watch = Stopwatch()
    experiment = Experiment(config, data.load(config.data), features_folder(config, workdir))
    check_same("run", lambda: [experiment.metadata, str(workdir)])

    def difference(metadata: dict[str, Any]) -> str:
        return config_lib.difference(config.to_dict(), metadata["config"])

    opened = Checkpoints(workdir / CHECKPOINT_FOLDER, experiment.metadata, difference)
    with Interrupt() as interrupt, opened as checkpoints:
        with watch.measure("initialise"):
            # 1. This run's last checkpoint. 2. Another run's. 3. Pretrained weights. 4. Random weights.
            start, state = experiment.restore(checkpoints) or (0, experiment.init())
        with Recorder(folder, experiment, start) as recorder:
            report = _Report(experiment, recorder, folder, watch, interrupt, start)
            report.begin(state, longer)
            config_lib.write(config, folder / CONFIG_FILE)  # after `longer` has been noted
            try:
                now, state = _train(experiment, checkpoints, recorder, report, start, state)
                if report.ended(now):
                    report.end(state, now)
                    return 0
                saved = ", which is saved: the same command resumes from there" if now else ""
                report.say(f"Stopped at step {now:,}{saved}.")
            except NotFinite as error:
                report.say("The loss is not finite: looking for the first step and layer.")
                found = first_not_finite(experiment, checkpoints, error.chunk)
                where = f": first in {found}" if found else ""
                raise UserError(
                    f"{error}, which are not saved{where}. Lower config.optimizer.learning_rate (in another "
                    "--workdir), or resume with --config.on_nan=skip or --config.on_nan=continue."
                ) from None
            except Stopped:
                report.say("Stopped; the features so far are kept: the same command resumes from there.")
        return 128 + (interrupt.signal or signal.SIGTERM)  # which another process received


def _train(
    experiment: Experiment,
    checkpoints: Checkpoints,
    recorder: Recorder,
    report: "_Report",
    now: int,
    state: TrainState,
) -> tuple[int, TrainState]:
    """Trains from step `now` to the end or until stopped; returns the last step, which is saved, and its state.

    While the device trains a chunk, the metrics of the previous one are fetched, and the last checkpoint is written.
    """
    plan, keys, score = experiment.plan, experiment.keys, None
    schedule = _SaveSchedule(experiment.config.checkpoint, plan.total_steps, now, Consensus(experiment.place))
    for phase in experiment.phases_from(now):
        if report.interrupted() or report.ended(now):
            break
        report.prepare(phase, state, SCORED)
        pipeline = experiment.pipeline(phase, state.variables)
        if now and now == phase.start:
            state = phase.restart(state)
        if experiment.config.warm_up:
            with report.watch.measure("warm-up"):
                experiment.warm_up(phase, state, pipeline, now)
        for chunk in plan.chunks(now, phase.stop):
            if report.interrupted() or (score is not None and report.ended(now)):
                break
            with report.watch.measure("train"), report.profile(chunk) as wait_for:
                rows = pipeline.rows(*chunk)
                with jax.transfer_guard("disallow"):  # the step itself moves nothing between host and device
                    sharpness = phase.sharpness(chunk, state, rows, pipeline.shared, keys)
                    state, metrics = phase.train(state, rows, pipeline.shared, keys, phase.longest_chunk)
                wait_for(state)
                # Fetches the previous chunk's metrics.
                recorder.train(chunk, metrics, phase.rate(chunk.stop - 1), sharpness)
                now, epoch, score = chunk.stop, plan.epoch_ended(chunk.stop), None
                save = schedule.due(now, epoch)
                if epoch or save:
                    recorder.flush()  # no state is scored or saved whose loss was not seen
            if epoch:
                score = report.validate(state, now, epoch)
            if save:
                checkpoints.save(now, state.items, score, wait=False)
                schedule.saved(now)
    if now > schedule.last:  # stopped since the last checkpoint
        recorder.flush()
        checkpoints.save(now, state.items, score)
    checkpoints.wait()
    return now, state


class _SaveSchedule:
    """When checkpoints are due: after a number of epochs or minutes, and at the end."""

    def __init__(self, config: Any, total_steps: int, first_step: int, agree: Consensus):
        self._config, self._total, self._agree = config, total_steps, agree
        self.saved(first_step)

    def due(self, step: int, epoch: int | None) -> bool:
        """Whether to save after a step, which may be the end of an epoch."""
        minutes = (time.monotonic() - self._time) / 60
        overdue = self._config.minutes > 0 and self._agree(self._config.minutes < minutes)
        return step == self._total or overdue or bool(epoch and epoch % self._config.epochs == 0)

    def saved(self, step: int) -> None:
        """Notes that a step has been saved."""
        self.last, self._time = step, time.monotonic()


class _Report:
    """What is said, scored and written around the steps of a run."""

    def __init__(
        self,
        experiment: Experiment,
        recorder: Recorder,
        folder: Path,
        watch: Stopwatch,
        interrupt: Interrupt,
        start: int,
    ):
        self._experiment, self._recorder, self._folder = experiment, recorder, folder
        self._total, self._interrupt, self._start = experiment.plan.total_steps, interrupt, start
        self.watch, self.say = watch, recorder.progress.say
        self._explained, self._any_interrupted = False, Consensus(experiment.place)
        self._finished = self.ended(start)  # by an earlier process, which may not have scored the test split

    def interrupted(self) -> bool:
        """Whether a signal has asked a process to stop; see `cnn_jax.parallel.distributed.Consensus`."""
        return self._any_interrupted(self._interrupt.signal is not None)

    def _stop(self) -> bool:
        """Whether to stop before training; several processes do so once they train, because each is elsewhere."""
        return self._interrupt.signal is not None and is_alone()

    def ended(self, step: int) -> bool:
        """Whether the run ends at a step that has been trained and scored: its last one, or by early stopping."""
        config, last = self._experiment.config, self._experiment.phases[-1]
        if step == self._total or not config.early_stopping.patience:
            return step == self._total
        return early_stopping.triggered(config, read_metrics(self._folder), last.begin, step)

    def begin(self, state: TrainState, longer: dict[str, tuple[Any, Any]]) -> None:
        """Says what is going to be trained or resumed, and records the provenance of the steps to come.

        Args:
          state: from which the run starts or resumes.
          longer: see `cnn_jax.config.check_same`.
        """
        origin: dict[str, Any] | None = self._experiment.origin
        if not self._start:
            self._describe(state)
        elif not self._finished:
            self.say(f"Resuming from step {self._start:,} of {self._total:,}.")
        if longer:
            origin = {"longer": longer}
            changes = ", ".join(f"config.{key} {here} (was {there})" for key, (there, here) in longer.items())
            tested = any(record["split"] == "test" for record in read_metrics(self._folder))
            again = (
                " The test split will be scored again, at the new end: choose by validation alone." if tested else ""
            )
            self.say(f"The run becomes longer: {changes}.{again}")
        if not (self._finished and self._recorded_test(self._start)):
            current = provenance.collect(self._experiment.place.layout, self._experiment.metadata[FINGERPRINT])
            differing = provenance.record(self._folder, self._start, current, origin)
            if differing:
                self.say(
                    f"Resuming with {provenance.describe(differing)}: the remaining steps may not be bit-identical to "
                    "those of an uninterrupted run."
                )

    def prepare(self, phase: Phase, state: TrainState, splits: tuple[str, ...]) -> None:
        """Brings splits to the device; features of a frozen backbone may take long."""
        progress, slow = self._recorder.progress, self._experiment.must_compute_features(phase, *splits)
        with self.watch.measure("prepare"):
            if slow:
                progress.stop()  # the features have a bar of their own
            for split in splits:
                jax.block_until_ready(self._experiment.examples(phase, state.variables, split, self._stop).shared)
            if slow:
                progress.start()

    @contextlib.contextmanager
    def profile(self, chunk: Chunk) -> Iterator[Callable[[Any], Any]]:
        """Traces one chunk, the first that is already compiled, if the configuration asks for it.

        Yields a function that waits for its argument, so that the trace holds all of the chunk.
        """
        folder, compiled = self._folder / PROFILE_FOLDER, chunk.start > self._start
        if not (self._experiment.config.profile and compiled) or folder.exists():
            yield lambda state: None
            return
        with jax.profiler.trace(str(folder)):
            yield jax.block_until_ready

    def validate(self, state: TrainState, step: int, epoch: int) -> float | None:
        """Scores the validation split where it is due, and returns the accuracy."""
        scores: dict[str, Any] = {}
        if epoch % self._experiment.config.eval.epochs == 0 or step == self._total:
            with self.watch.measure("validation"):
                scores = self._experiment.evaluate(state.variables, "validation", step)
            if scores:
                self._recorder.summaries.record(step, epoch, "validation", scores)
        training = self._recorder.epoch_average()
        self._recorder.progress.epoch_ended(epoch, training, scores)
        self._explain(training, scores, step)
        return scores.get("accuracy")

    def _explain(self, training: dict[str, float], scores: dict[str, Any], step: int) -> None:
        """Says once why a network that learns can be worse than guessing on the validation images."""
        momentum = self._experiment.config.model.get("bn_momentum", 0.0)
        initial = momentum**step  # share of the initial values in BatchNorm's running statistics
        guessing = math.log(self._experiment.model.num_classes)
        if not self._explained and scores and scores["loss"] > guessing > training["loss"] and initial > 0.01:
            self._explained = True
            settled = math.ceil(math.log(0.01) / math.log(momentum))
            self.say(
                "The validation loss is high because BatchNorm's running statistics still hold "
                f"{initial:.0%} of their initial values; they settle by step {settled:,}. For a shorter run, lower "
                f"config.model.bn_momentum from {momentum:g} to 0.9."
            )

    def end(self, state: TrainState, step: int) -> None:
        """Scores the test split once at the last step, and prints the scores and the times."""
        if step < self._total and not self._finished:
            patience = count(self._experiment.config.early_stopping.patience, "epoch")
            self.say(f"Early stopping: the validation accuracy has not improved for {patience}.")
        self._recorder.progress.stop()
        scores = self._recorded_test(step) or self._score_test(state, step)
        if not self._finished:
            self._report_times(step)
        self._show_test(scores)

    def _describe(self, state: TrainState) -> None:
        experiment = self._experiment
        variables, partition = experiment.place.seed(state.variables), experiment.phases[0].step.partition
        labels = partition.labels if partition else None
        table = model_table(experiment.model, variables, experiment.image_size, labels)
        skip = experiment.config.data.on_bad_image == "skip"
        self.say("\n".join([table, *summary.describe(experiment.splits.dataset, skip), *experiment.splits.remarks]))
        self._say_duplicates(*experiment.splits.duplicates)
        if experiment.plan.steps_per_epoch < 5:
            self.say(
                f"An epoch is only {experiment.plan.steps_per_epoch:.1f} steps: a smaller --config.batch_size than "
                f"{experiment.config.batch_size} may learn more in the same time."
            )
        if experiment.origin:
            self.say(init_from.describe(experiment.origin))
        hparams = config_lib.flatten(experiment.metadata["config"])
        self._recorder.summaries.describe(hparams, {"model": f"```\n{table}\n```"})

    def _recorded_test(self, step: int) -> dict[str, Any] | None:
        """Returns the scores on the test split, if an earlier process recorded them at this step."""
        records = read_metrics(self._folder)
        of_test = (r for r in records if (r["step"], r["split"]) == (step, "test"))
        return next((record for record in of_test if set(NAMES) <= record.keys()), None)

    def _score_test(self, state: TrainState, step: int) -> dict[str, Any]:
        known = set(self._experiment.splits.duplicates)
        self.prepare(self._experiment.phases[-1], state, ("test",))
        if "test" not in known:  # otherwise they have been said before training
            self._say_duplicates("test")
        with self.watch.measure("test"):
            scores = self._experiment.evaluate(state.variables, "test", step)
        epoch = self._experiment.plan.epoch_ended(step)
        assert epoch  # a run ends with an epoch
        self._recorder.summaries.record(step, epoch, "test", scores)
        return scores | {"epoch": epoch}

    def _say_duplicates(self, *splits: str) -> None:
        for split in splits:
            for line in self._experiment.splits.duplicates[split]:
                self.say(line)

    def _show_test(self, scores: dict[str, Any]) -> None:
        images = len(self._experiment.splits.dataset.test) - scores.get(UNREADABLE, 0)
        unreadable = f" ({scores[UNREADABLE]} more cannot be read)" if scores.get(UNREADABLE) else ""
        print(f"Test split, {count(images, 'image')}{unreadable}, after {count(scores['epoch'], 'epoch')}:")
        of_record = ("step", "epoch", "split", "lanes", UNREADABLE)
        others = [name for name in scores if name not in (*NAMES, *of_record) and not name.endswith("_std")]
        for name in (*NAMES, *others):
            value = math.nan if scores[name] is None else scores[name]  # JSON has no NaN
            spread = f" ± {scores[f'{name}_std']:.4f}" if scores.get(f"{name}_std") is not None else ""
            print(f"  {name:<20} {value:.4f}{spread}")
        print(f"Workdir: {self._folder}")

    def _report_times(self, step: int) -> None:
        """Prints, and writes to the workdir, where the seconds of this process went, with compilation apart."""
        seconds = dict(self.watch.seconds)
        parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items() if name != "compile")
        print(f"Times: {parts}; compilation (not included above) {seconds['compile']:.2f} s.")
        device = describe_devices()["kind"]
        times = {"steps": step - self._start, "device": device, "jax": jax.__version__, "seconds": seconds}
        with files.replacing(self._folder / TIMES_FILE) as file:
            file.write(json.dumps(times, indent=1) + "\n")


def _check_workdir(config: ConfigDict, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Returns by what this run is longer than the one in the workdir (see `cnn_jax.config.check_same`).

    Raises:
      UserError: the workdir holds another run, or perhaps does.
    """
    if (folder / CONFIG_FILE).exists():
        return config_lib.check_same(config, folder / CONFIG_FILE)
    checkpoints = folder / CHECKPOINT_FOLDER
    if checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir()):
        raise UserError(
            f"{folder} has checkpoints but no {CONFIG_FILE}, so it may hold another run. Bring that file back, or take "
            "another --workdir."
        )
    return {}
