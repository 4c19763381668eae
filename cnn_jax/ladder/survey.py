"""Short measurements in processes of their own, so that the ladder's process takes no memory of an accelerator."""

import collections
import dataclasses
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnn_jax import runtime
from cnn_jax.errors import UserError
from cnn_jax.ladder.jobs import Cores

_SECONDS = 3.0  # of training steps, for each phase
_EPOCHS = 1000  # more than are measured
_STEPS_PER_CALL = 10  # where a chunk is a loop, its length does not matter


class Cost(NamedTuple):
    """What a run takes: steps, seconds, and bytes on disk."""

    steps: int
    seconds: float
    bytes: int


def prepare(configs: Sequence[ConfigDict]) -> str:
    """Returns the platform of the devices ("cpu", "gpu"), and downloads or prepares the data of all configurations.

    Data that cannot be had is left to the runs, which report it.
    """
    sections = [config.data.to_dict() for config in configs]
    return _in_a_process(None, _prepare, [each for i, each in enumerate(sections) if each not in sections[:i]])


def measure(config: ConfigDict, cores: Cores) -> Cost:
    """Returns what a run of this configuration is expected to take, after some seconds of it.

    Args:
      config: of a run with one seed.
      cores: to which its process is pinned.

    Raises:
      UserError: the data or the weights cannot be had.
    """
    return _in_a_process(cores, _measure, config.to_dict(), time.time())


def _in_a_process(cores: Cores, function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, _start, (cores,)) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        raise UserError("The process that measures was killed, perhaps for lack of memory.") from None


def _start(cores: Cores) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
    if cores:
        os.sched_setaffinity(0, cores)
    runtime.prepare()


def _prepare(sections: list[dict[str, Any]]) -> str:
    from cnn_jax import data
    from cnn_jax.parallel.placement import describe_devices

    for section in sections:
        try:
            data.load(ConfigDict(section))
        except UserError:
            continue
    return describe_devices()["platform"]


def _measure(values: dict[str, Any], began: float) -> Cost:
    import jax

    from cnn_jax import config as config_lib
    from cnn_jax import data
    from cnn_jax.data.splits import Split
    from cnn_jax.parallel.placement import Placement
    from cnn_jax.training.experiment import Experiment
    from cnn_jax.workdir.checkpoint import Checkpoints
    from cnn_jax.workdir.layout import CHECKPOINT_FOLDER

    config = ConfigDict(values)
    dataset, place = data.load(config.data), Placement.choose(config.seeds)
    # A part of each split, whose time is scaled: steps take the same time whatever the number of images.
    most = max(config.batch_size, 2 * config.eval_batch_size)
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    small = {name: Split(split.source, split.indices[:most]) for name, split in parts.items()}
    images = {name: len(split) for name, split in parts.items()}
    begin = time.perf_counter()
    small["train"].images()
    decoding = (time.perf_counter() - begin) / len(small["train"]) * sum(images.values())
    longer = config.copy_and_resolve_references()
    longer.epochs = _EPOCHS
    longer.finetune.epochs = _EPOCHS if config.finetune.epochs else 0
    longer.steps_per_call = config.steps_per_call if place.scan else min(config.steps_per_call, _STEPS_PER_CALL)
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) if config.features.cache else None
        experiment = Experiment(longer, dataclasses.replace(dataset, **small), features, place)
        plan = dataclasses.replace(
            experiment.plan, num_examples=images["train"], epochs=config.epochs + config.finetune.epochs
        )
        state = experiment.init()
        seconds, measured, epochs = decoding, 0.0, 0.0
        lengths = collections.Counter()  # of all parts of the run and of its fine-tuning
        for phase in experiment.phases:
            lengths[phase.begin] += phase.stop - phase.start
        in_run = dict(zip(sorted(lengths), (own.epochs for own in config_lib.phases(config))))
        for phase in experiment.phases:
            own_epochs = in_run[phase.begin] * (phase.stop - phase.start) / lengths[phase.begin]
            if experiment.must_compute_features(phase, "train"):
                begin = time.perf_counter()
                jax.block_until_ready(experiment.examples(phase, state.variables, "train").shared)
                measured += time.perf_counter() - begin
                seconds += measured / len(small["train"]) * sum(images.values())
            step, state, _ = experiment.train_chunk(state, phase.start)  # compiles
            first, begin = step, time.perf_counter()
            while step < phase.stop and time.perf_counter() - begin < _SECONDS:
                step, state, _ = experiment.train_chunk(state, step)
            took = time.perf_counter() - begin
            steps = own_epochs * plan.steps_per_epoch
            epochs += own_epochs
            seconds, measured = seconds + took / max(step - first, 1) * steps, measured + took
            experiment.evaluate(state.variables, "test", step)  # compiles
            begin = time.perf_counter()
            experiment.evaluate(state.variables, "test", step)
            per_image = (time.perf_counter() - begin) / len(small["test"])
            seconds += per_image * images["validation"] * own_epochs / config.eval.epochs
        seconds += per_image * images["test"]
        stored = size(Path(folder)) // len(small["train"]) * sum(images.values())
        begin = time.perf_counter()
        with Checkpoints(Path(folder) / CHECKPOINT_FOLDER, experiment.metadata) as checkpoints:
            checkpoints.save(1, state.items)
        seconds += (time.perf_counter() - begin) * (epochs / config.checkpoint.epochs - 1)
        kept = min(3 if images["validation"] else 2, epochs)  # the last two and the best
        stored += round(size(Path(folder) / CHECKPOINT_FOLDER) * kept)
        # The start of the process, imports, data, compilation and one checkpoint.
        seconds += time.time() - began - measured
    return Cost(plan.total_steps, max(seconds, 0), stored)


def size(folder: Path) -> int:
    """Returns the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
