"""Training a run: restore, then update, log, evaluate, save, chunk by chunk."""

import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax import data, models, optim, rng, step
from cnn_jax.augment import Augmentation
from cnn_jax.checkpoint import FINGERPRINT, Checkpoints
from cnn_jax.dispatch import make_chunk
from cnn_jax.errors import UserError
from cnn_jax.evaluation import make_evaluator
from cnn_jax.interrupt import Interrupt
from cnn_jax.metrics import NAMES, summarise, zeros_like
from cnn_jax.preprocess import Preprocessing
from cnn_jax.progress import Progress
from cnn_jax.schedule import Schedule
from cnn_jax.summaries import Summaries, model_table, read_metrics

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"


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
    trainer = Trainer(config, data.load(config.data))
    state = trainer.init_state()
    config_lib.write(config, folder / CONFIG_FILE)
    with Interrupt() as interrupt, Checkpoints(folder / CHECKPOINT_FOLDER, trainer.metadata) as checkpoints:
        now, state = checkpoints.restore(state)
        with (
            Summaries(folder, config.tensorboard, now) as summaries,
            Progress(trainer.schedule, now) as progress,
        ):
            if not now:
                table = model_table(trainer.model, state.variables, trainer.image_size)
                progress.say(f"{table}\n{trainer.dataset.describe()}")
                summaries.describe(config_lib.flatten(config), {"model": f"```\n{table}\n```"})
            elif now < trainer.schedule.total_steps:
                progress.say(f"Going on from step {now:,} of {trainer.schedule.total_steps:,}.")
            now, state = _loop(config, trainer, now, state, checkpoints, summaries, progress, interrupt)
            if now < trainer.schedule.total_steps:
                progress.say(f"Stopped at step {now:,}, which is saved: the same command goes on from there.")
                return 128 + interrupt.signal
            progress.finish()
            _score_test(trainer, folder, state, summaries)
    return 0


def _loop(
    config: ConfigDict,
    trainer: "Trainer",
    now: int,
    state: step.TrainState,
    checkpoints: Checkpoints,
    summaries: Summaries,
    progress: Progress,
    interrupt: Interrupt,
) -> tuple[int, step.TrainState]:
    """Trains from step `now` to the end, or until interrupted; returns where it stopped, which is saved."""
    schedule, saved_at = trainer.schedule, time.monotonic()
    while now < schedule.total_steps and not interrupt.signal:
        start = now
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
            scores = trainer.evaluate(state.variables, "validation")
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


class Trainer:
    """A configuration and a data set, compiled. What it computes is a pure function of (state, step).

    Attributes:
      dataset: the data.
      schedule: which step does what.
      model: the network.
      image_size: height and width of what it sees.
      metadata: what inference must know of the run; JSON.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset):
        """Puts the training and validation images on the device; compiles when it is first used."""
        self.dataset = dataset
        self.schedule = Schedule(len(dataset.train), config.batch_size, config.epochs, config.steps_per_call)
        self.model = models.build(config.model, len(dataset.class_names), config.dtype)
        self._seed, self._key = config.seed, rng.root(config.seed)
        self._learning_rate = optim.make_schedule(
            config.optimizer, self.schedule.total_steps, self.schedule.steps_per_epoch
        )
        self._optimizer = optim.make_optimizer(config.optimizer, self._learning_rate)

        preprocess = Preprocessing.from_config(config.data)
        self._arrays = {name: _on_device(getattr(dataset, name)) for name in ("train", "validation")}
        self.image_size = jax.eval_shape(preprocess, self._arrays["train"]["image"][:1]).shape[1:3]
        self.metadata = {
            "config": config.to_dict(),
            "class_names": list(dataset.class_names),
            "input_size": list(self._arrays["train"]["image"].shape[1:3]),
            "preprocessing": dataclasses.asdict(preprocess),
            FINGERPRINT: _fingerprint(self._arrays),
        }

        train_step = step.make_train_step(
            self.model,
            self._optimizer,
            preprocess=preprocess,
            augment=Augmentation.from_config(config.augment, config.data.mean),
            label_smoothing=config.label_smoothing,
            diagnostics=config.diagnostics,
        )

        def one_step(state, row, arrays, key):
            return train_step(state, step.gather(arrays, row), key)

        def body(carry, *arguments):
            state, metrics = carry
            state, update = one_step(state, *arguments)
            return state, metrics.merge(update)

        self._one_step, self._chunk = one_step, make_chunk(body)
        self._evaluate = make_evaluator(self.model, preprocess, config.eval_batch_size)
        self._summarise = jax.jit(summarise)

    def init_state(self) -> step.TrainState:
        """Returns the state at step 0."""
        init = jax.jit(lambda key: step.init_state(self.model, self._optimizer, key, self.image_size))
        return init(self._key)

    def update(self, state: step.TrainState, now: int) -> tuple[int, step.TrainState, dict[str, float]]:
        """Trains from step `now` to the end of the chunk; returns that step, the state there and the chunk's metrics.

        The buffers of `state` are reused: it must not be touched afterwards.
        """
        stop = self.schedule.next_stop(now)
        rows = self.schedule.rows(self._seed, now, stop)
        first, arrays = jax.tree.map(lambda x: x[0], rows), self._arrays["train"]
        _, shapes = jax.eval_shape(self._one_step, state, first, arrays, self._key)
        state, metrics = self._chunk((state, zeros_like(shapes)), rows, arrays, self._key)
        values = self._fetch(metrics) | {"learning_rate": float(self._learning_rate(stop - 1))}
        return stop, state, values

    def evaluate(self, variables: PyTree, split: str) -> dict[str, float]:
        """Scores the network on "train", "validation" or "test", every image once; empty where there are none."""
        if split not in self._arrays:
            self._arrays[split] = _on_device(getattr(self.dataset, split))
        arrays = self._arrays[split]
        return self._fetch(self._evaluate(variables, arrays)) if len(arrays["label"]) else {}

    def _fetch(self, metrics: Any) -> dict[str, float]:
        values = jax.device_get(self._summarise(metrics))
        return {name: float(values[name]) for name in (*NAMES, *sorted(values.keys() - NAMES))}


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


def _score_test(trainer: Trainer, folder: Path, state: step.TrainState, summaries: Summaries) -> None:
    """Scores the last state on the test split, unless an earlier process did, and says how to go on."""
    end, epochs = trainer.schedule.total_steps, trainer.schedule.epochs
    earlier = [r for r in read_metrics(folder) if (r["step"], r["split"]) == (end, "test")]
    if earlier:
        scores = earlier[0]
    else:
        scores = trainer.evaluate(state.variables, "test")
        summaries.record(end, epochs, "test", scores)
    print(f"Test split, {len(trainer.dataset.test):,} images, after {epochs} epochs:")
    for name in NAMES:
        value = math.nan if scores[name] is None else scores[name]  # JSON has no NaN
        print(f"  {name:<20} {value:.4f}")
    print(f"Workdir: {folder}")


def _on_device(split: data.Split) -> dict[str, jax.Array]:
    return jax.device_put({"image": split.images(), "label": split.labels})


def _fingerprint(arrays: dict[str, dict[str, jax.Array]]) -> str:
    """A hash of the pixels and labels that a run learns and chooses from."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
