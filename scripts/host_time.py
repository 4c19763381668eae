"""Measures what the host does between two chunks of steps, by training with steps that compute nothing.

    python scripts/host_time.py [--seeds=1] [--batch_size=32] [--epochs=4] [--tensorboard=off] [--output=FILE.json]

The ordinary training loop runs stage `augment` on 45,000 random images, in chunks as a GPU runs them, but the step
returns its state and ones. What remains is the host's time. A GPU does not wait for it as long as a chunk takes
longer, because the loop dispatches a chunk before it fetches the metrics of the one before. It does wait at the end of
an epoch, for the validation scores and for the copy that is saved. Printed are the medians of

- chunk: from the dispatch of a chunk to that of the next, within an epoch;
- epoch: from the dispatch of the last chunk of an epoch to that of the next epoch's first.

both by the clock and in processor time of the main thread, which does not depend on what else the machine does. The
first epoch, which compiles, is left out.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import measuring  # isort: skip  before JAX, for which it sets up the compiler
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import config as config_lib
from cnn_jax.data.pipeline import gather
from cnn_jax.data.splits import ArraySource, Dataset, Split
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk
from cnn_jax.training import loop
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.phases import on_rows
from cnn_jax.training.step import EvalStep


def empty(step):
    """A step that leaves its state as it is and returns ones of the same shapes."""

    def nothing(state, row, shared, own):
        shapes = jax.eval_shape(step, state, row, shared, own)[1]
        return state, jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)

    return nothing


def make_experiment(config, place, dispatched):
    """The experiment, with chunks that compute nothing and note when they are dispatched."""
    generator, names = np.random.RandomState(0), tuple("0123456789")

    def split(count):
        images = generator.randint(0, 256, (count, 32, 32, 3), np.uint8)
        return Split(ArraySource(names, generator.randint(0, 10, count).astype(np.int32), images), np.arange(count))

    experiment = Experiment(config, Dataset("random", names, *map(split, (45_000, 5_000, 10_000))), place=place)
    (phase,) = experiment.phases
    chunk = Chunk(empty(on_rows(phase.step)), place)

    def train(*arguments):
        dispatched.append((time.perf_counter(), time.thread_time()))
        return chunk(*arguments)

    scoring = EvalStep(phase.step.model, phase.step.inputs)

    def score(state, row, arrays, variables):
        return state, scoring(variables, gather(row, arrays))

    phase.evaluate.chunk = Chunk(empty(score), place, seed_rows=False)
    experiment.phases = [dataclasses.replace(phase, train=train)]
    return experiment


def main() -> None:
    """Trains, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tensorboard", default="tensorboardX")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = config_lib.load(measuring.ROOT / "configs" / "augment.py")
    config.update_from_flattened_dict(
        {name: getattr(options, name) for name in ("seeds", "batch_size", "epochs", "tensorboard")}
    )
    place = Placement.choose(
        options.seeds, devices=jax.devices()[:1], seed_layout="vmap" if options.seeds > 1 else None, scan=True
    )
    dispatched: list[tuple[float, float]] = []
    experiment = make_experiment(config, place, dispatched)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loop, "Experiment", lambda *_: experiment),
        mock.patch.object(loop.data, "load", lambda _: experiment.splits.dataset),
    ):
        loop.train(config, folder)
    starts = [chunk.start for chunk in experiment.plan.chunks(0)]
    ends = {experiment.plan.end_of_epoch(epoch) for epoch in range(1, options.epochs)}
    first = experiment.plan.end_of_epoch(1)
    periods: dict[str, list[tuple[float, float]]] = {"chunk": [], "epoch": []}
    for (_, start), (before, after) in zip(itertools.pairwise(starts), itertools.pairwise(dispatched), strict=True):
        if start > first:
            wall, processor = ((b - a) * 1e3 for a, b in zip(before, after, strict=True))
            periods["epoch" if start in ends else "chunk"].append((wall, processor))
    result = {}
    for name, values in periods.items():
        wall, processor = (round(statistics.median(each), 2) for each in zip(*values, strict=True))
        result[name] = {"median_ms": wall, "median_processor_ms": processor, "n": len(values)}
    result["options"] = {name: getattr(options, name) for name in ("seeds", "batch_size", "epochs", "tensorboard")}
    print(json.dumps(result))
    if options.output:
        options.output.write_text(json.dumps({"machine": measuring.machine()} | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
