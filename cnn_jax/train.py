"""Training a run: restore, then update, log, evaluate, save, chunk by chunk."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import data, step
from cnn_jax.checkpoint import Checkpoints
from cnn_jax.errors import UserError
from cnn_jax.features import Stopped
from cnn_jax.interrupt import Interrupt
from cnn_jax.metrics import NAMES
from cnn_jax.progress import Progress
from cnn_jax.stopwatch import Stopwatch
from cnn_jax.summaries import Summaries, model_table, read_metrics
from cnn_jax.trainer import Trainer

CONFIG_FILE = "config.json"
TIMES_FILE = "times.json"
CHECKPOINT_FOLDER = "checkpoints"
FEATURES_FOLDER = "features"


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
    folder = _open_workdir(config, Path(workdir).expanduser())
    trainer = Trainer(config, data.load(config.data), _features_folder(config, folder))
    watch = Stopwatch()
    with Interrupt() as interrupt, Checkpoints(folder / CHECKPOINT_FOLDER, trainer.metadata) as checkpoints:
        with watch.measure("initialise"):
            now, state = checkpoints.restore(trainer.like) or (0, jax.block_until_ready(trainer.init_state()))
        config_lib.write(config, folder / CONFIG_FILE)
        start, total = now, trainer.schedule.total_steps
        with (
            Summaries(folder, config.tensorboard, now) as summaries,
            Progress(trainer.schedule, now, config.seeds) as progress,
        ):
            try:
                if not now:
                    _describe(trainer, state, summaries, progress)
                elif now < total:
                    progress.say(f"Going on from step {now:,} of {total:,}.")
                now, state = _loop(config, trainer, now, state, checkpoints, summaries, progress, interrupt, watch)
                if now == total:
                    progress.stop()
                    scores = _score_test(trainer, folder, state, summaries, interrupt, watch)
                    if start < total:
                        _report_times(watch, trainer, start, folder)
                    _show_test(trainer, folder, scores)
                    return 0
                progress.say(f"Stopped at step {now:,}, which is saved: the same command goes on from there.")
            except Stopped:
                progress.say("Stopped; the features so far are kept: the same command goes on from there.")
    return 128 + interrupt.signal


def _loop(
    config: ConfigDict,
    trainer: "Trainer",
    now: int,
    state: step.TrainState,
    checkpoints: Checkpoints,
    summaries: Summaries,
    progress: Progress,
    interrupt: Interrupt,
    watch: Stopwatch,
) -> tuple[int, step.TrainState]:
    """Trains from step `now` to the end, or until interrupted; returns where it stopped, which is saved."""
    schedule, saved_at = trainer.schedule, time.monotonic()
    while now < schedule.total_steps and not interrupt.signal:
        start = now
        slowly = trainer.must_prepare(start)
        with watch.measure("prepare"):
            if slowly:
                progress.stop()  # for a bar of its own
            trainer.prepare(state.variables, start, lambda: bool(interrupt.signal))
            if slowly:
                progress.start()
        with watch.measure("train"):
            now, state, values = trainer.update(state, start)
        speed = progress.update(now, values)
        summaries.record(now, schedule.epoch(now), "train", values | speed)
        if config.on_nan == "stop" and not math.isfinite(values["loss"]):
            raise UserError(
                f"The loss is {values['loss']} between steps {start} and {now}, which are not saved. Lower "
                "config.optimizer.learning_rate (in another --workdir), or go on with --config.on_nan=continue."
            )
        epoch, score = schedule.epoch_ended(now), None
        if epoch:
            validates = epoch % config.eval.epochs == 0 or now == schedule.total_steps
            with watch.measure("validation"):
                scores = trainer.evaluate(state.variables, "validation", now) if validates else {}
            if scores:
                summaries.record(now, epoch, "validation", scores)
                score = scores["accuracy"]
            progress.epoch_ended(epoch, values, scores)
        overdue = config.checkpoint.minutes and time.monotonic() - saved_at > 60 * config.checkpoint.minutes
        due = epoch and epoch % config.checkpoint.epochs == 0
        if due or overdue or interrupt.signal or now == schedule.total_steps:
            checkpoints.save(now, state, score)
            saved_at = time.monotonic()
    return now, state


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


def _describe(trainer: Trainer, state: step.TrainState, summaries: Summaries, progress: Progress) -> None:
    """Says what is going to be trained, and on what."""
    labels = trainer.phases[0].partition.labels
    table = model_table(trainer.model, trainer.lane(state.variables), trainer.image_size, labels)
    progress.say(f"{table}\n{trainer.dataset.describe()}")
    summaries.describe(config_lib.flatten(trainer.metadata["config"]), {"model": f"```\n{table}\n```"})


def _score_test(
    trainer: Trainer,
    folder: Path,
    state: step.TrainState,
    summaries: Summaries,
    interrupt: Interrupt,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Scores the last state on the test split, unless an earlier process did."""
    end = trainer.schedule.total_steps
    earlier = [r for r in read_metrics(folder) if (r["step"], r["split"]) == (end, "test")]
    if earlier:
        return earlier[0]
    with watch.measure("prepare"):
        trainer.prepare(state.variables, end - 1, lambda: bool(interrupt.signal), ("test",))
    with watch.measure("test"):
        scores = trainer.evaluate(state.variables, "test", end)
    summaries.record(end, trainer.schedule.epochs, "test", scores)
    return scores


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
