"""What `config.diagnostics` costs: the time of a step with and without it, and of a measurement of the sharpness.

    python scripts/diagnostics_cost.py [--stages=baseline,batchnorm] [--batch_size=32] [--rounds=15]

Steps on random images of 32x32 pixels. With and without take turns, and the cost is the median over the rounds of the
ratio within a round, of the wall clock and of the CPU's seconds; the latter do not count what else the machine does.
Writes reports/diagnostics_cost.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import measuring

import jax  # isort: skip  after the compiler's settings

STEPS = 10  # of a round
MEASUREMENTS = 3  # of the sharpness


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of a call by the wall clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


class Training:
    """A run that trains `STEPS` steps at a time."""

    def __init__(self, stage: str, batch_size: int, diagnostics: bool):
        """Compiles."""
        sizes = {"batch_size": batch_size, "steps_per_call": STEPS, "sharpness_every": 1}
        self._experiment = measuring.experiment(stage, diagnostics=diagnostics, **sizes)
        self._state, self._now = self._experiment.init(), 0
        self.steps()

    def steps(self) -> Any:
        """Trains a chunk and returns its state."""
        self._now, self._state, _ = self._experiment.train_chunk(self._state, self._now)
        return self._state

    def sharpness(self) -> Any:
        """Measures the sharpness once."""
        experiment = self._experiment
        phase = experiment.phases[0]
        pipeline = experiment.pipeline(phase, self._state.variables)
        chunk = (self._now, self._now + 1)
        return phase.sharpness(chunk, self._state, pipeline.rows(*chunk), pipeline.shared, experiment.keys)


def measure(stage: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Returns the medians of a stage."""
    without, with_them = (Training(stage, batch_size, diagnostics) for diagnostics in (False, True))
    with_them.sharpness()  # compiles
    times: list[tuple[tuple[float, float], ...]] = []
    for turn in range(rounds):
        pair = [timed(run.steps) for run in ((without, with_them) if turn % 2 else (with_them, without))]
        times.append(tuple(pair if turn % 2 else reversed(pair)))
    sharp = [timed(with_them.sharpness) for _ in range(MEASUREMENTS)]
    row: dict[str, Any] = {"stage": stage, "batch_size": batch_size, "rounds": rounds}
    for clock, name in enumerate(("wall", "cpu")):
        step = statistics.median(plain[clock] for plain, _ in times) / STEPS
        row[f"step_ms_{name}"] = 1000 * step
        row[f"ratio_{name}"] = statistics.median(full[clock] / plain[clock] for plain, full in times)
        row[f"sharpness_in_steps_{name}"] = statistics.median(each[clock] for each in sharp) / step
    return row


def main() -> None:
    """Measures, prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="baseline,batchnorm")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for stage in arguments.stages.split(","):
        rows.append(measure(stage, arguments.batch_size, arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    report = {"command": "python scripts/diagnostics_cost.py", "machine": measuring.machine(), "rows": rows}
    (measuring.ROOT / "reports" / "diagnostics_cost.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
