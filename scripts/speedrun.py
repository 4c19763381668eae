"""Times the speed run over many seeds, and scores each with and without test-time augmentation.

    python scripts/speedrun.py [--seeds=40] [--stage=speedrun] [--output=FILE.json] [--config.KEY=VALUE ...]

All images are trained on, unless --config.data.validation says otherwise. The seeds follow one another in one process
that compiles once. The clock covers what depends on the seed: random weights, the whitening of training images, the
order of the images, and all steps. It starts when the images are on the device and a whole run has been made, which is
reported apart as the warm-up. The codes compared with do the same (github.com/KellerJordan/cifar10-airbench,
hiverge/cifar10-speedrun); of these, hiverge's also includes the evaluation, whose seconds are separate here. The file
is written after every seed.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import measuring  # isort: skip  before JAX, for which it sets up the compiler
import jax

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.evaluation.statistics import t_interval
from cnn_jax.training.evaluator import Evaluator
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import EvalStep
from cnn_jax.transforms.tta import NO_TTA
from cnn_jax.utils import files

GOAL = 0.94  # test accuracy


def train(experiment: Experiment) -> TrainState:
    """Returns the state after all steps, once they are done."""
    state, now = experiment.init(), 0
    while now < experiment.plan.total_steps:
        now, state, _ = experiment.train_chunk(state, now)
    return jax.block_until_ready(state)


class Scorer:
    """Scores variables on the test split."""

    def __init__(self, experiment: Experiment):
        """Compiles when it is first called."""
        phase, config = experiment.phases[-1], experiment.config
        inputs = dataclasses.replace(phase.step.inputs, tta=NO_TTA)
        self._experiment, self._phase = experiment, phase
        self._plain = Evaluator(EvalStep(experiment.model, inputs), config.eval_batch_size, experiment.place)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns both accuracies, and the seconds of each evaluation."""
        experiment = self._experiment
        examples = experiment.examples(self._phase, state.variables, "test")
        begin = time.perf_counter()
        plain = experiment.fetch(self._plain(state.variables, examples))["accuracy"]
        between = time.perf_counter()
        augmented = experiment.fetch(self._phase.evaluate(state.variables, examples))["accuracy"]
        return {
            "accuracy": augmented,
            "accuracy_without_tta": plain,
            "seconds_of_evaluation": time.perf_counter() - between,
            "seconds_of_evaluation_without_tta": between - begin,
        }


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Returns the median and quartiles of the seconds, and the mean accuracies with their intervals."""
    seconds = [run["seconds"] for run in runs]
    found: dict[str, Any] = {"n": len(runs), "seconds": statistics.median(seconds)}
    if len(runs) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        found["seconds_quartiles"] = [low, high]
    for name in ("accuracy", "accuracy_without_tta"):
        values = [run[name] for run in runs]
        found |= {name: statistics.fmean(values), f"{name}_interval": t_interval(values)}
    reached = [run["accuracy"] >= GOAL for run in runs]
    return found | {"share_of_seeds_at_the_goal": sum(reached) / len(runs), "goal": GOAL}


def main() -> None:
    """Measures, prints a line per seed, and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--stage", default="speedrun", help="a stage, or the path of a config file")
    parser.add_argument("--output", type=Path, default=Path("speedrun.json"))
    options, others = parser.parse_known_args()
    if not all(text.startswith("--config.") and "=" in text for text in others):
        parser.error(f"unknown arguments: {' '.join(others)}")
    changes = dict(text.removeprefix("--config.").split("=", 1) for text in others)
    try:
        config = config_lib.load(options.stage, {"data.validation": "0", "steps_per_call": "1000000"} | changes)
        config_lib.validate(config)
        experiment = Experiment(config, data.load(config.data))
    except UserError as error:
        sys.exit(f"Error: {error}")
    score = Scorer(experiment)
    begin = time.perf_counter()
    score(train(experiment.with_seed(config.seed + options.seeds)))  # a seed that is not measured
    about = {
        "machine": measuring.machine(),
        "stage": options.stage,
        "changes": changes,
        "images": experiment.plan.num_examples,
        "steps": experiment.plan.total_steps,
        "warm_up_seconds": time.perf_counter() - begin,
    }
    runs: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + options.seeds):
        own = experiment.with_seed(seed)
        begin = time.perf_counter()
        state = train(own)
        runs.append({"seed": seed, "seconds": time.perf_counter() - begin} | score(state))
        print(
            f"seed {seed}: {runs[-1]['seconds']:.3f} s, accuracy {runs[-1]['accuracy']:.4f}, without test-time "
            f"augmentation {runs[-1]['accuracy_without_tta']:.4f}",
            flush=True,
        )
        with files.replacing(options.output) as file:
            file.write(json.dumps(about | {"scores": summary(runs), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
