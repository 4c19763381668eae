"""Trains the runs behind the tables of this repository, one per core, in a fixed order, over several sessions.

    python scripts/long_runs.py --runs=DIR --data=DIR [--plan=glance,small0,full,...] [--dry_run]

Every run is an ordinary one in a folder of its own, DIR/NAME. Finished ones are skipped and interrupted ones resume, so
the same command continues after Ctrl-C, SIGTERM or a reboot. Use a clone that stays at one commit, with an environment
of its own: a run that continues under another commit says so in its provenance. `scripts/publish_run.py DIR/NAME`
copies what a finished run recorded to reports/runs.
"""

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax.ladder import plan  # noqa: E402
from cnn_jax.ladder.jobs import Job, Processes  # noqa: E402
from cnn_jax.workdir.records import read_metrics, scores_on_test  # noqa: E402

LADDER = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment")


class Run(NamedTuple):
    """A stage with changed settings."""

    name: str
    stage: str
    settings: dict[str, object]


def ladder(name: str, stages: tuple[str, ...], seeds: range, **settings: object) -> list[Run]:
    """Returns a run for each seed and stage, a whole seed at a time; settings have __ for the dots."""
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return [Run(f"{name}-{stage}-{seed}", stage, settings | {"seed": seed}) for seed in seeds for stage in stages]


SMALL = {"data__train_examples": 10_000, "data__validation": 2000}  # with the reference's epochs
PLANS = {
    # The last column of the README's table.
    "glance": ladder("glance", LADDER, range(5), data__train_examples=5000, epochs=10),
    "small0": ladder("small", LADDER[::-1], range(1), **SMALL),
    # All images and no validation, as the reference trained.
    "full": ladder("full", ("augment", "baseline", "batchnorm", "dropout_scheduled"), range(1), data__validation=0),
    "small": ladder("small", LADDER[::-1], range(1, 6), **SMALL),
    "transfer": ladder("transfer-10k", ("transfer_lite",), range(6), **SMALL)
    + ladder("transfer-50k", ("transfer_lite",), range(6), data__validation=0),
    "rest": ladder("full", ("dropout", "basic"), range(1), data__validation=0),
}


def command(run: Run, runs: Path, data: Path) -> tuple[str, ...]:
    """Returns the command that trains a run, or resumes it."""
    settings = {"data.dir": data, "tensorboard": "off"} | run.settings
    if run.stage.startswith("transfer"):
        settings["features.dir"] = runs / "features"  # of the frozen backbone, computed once for all seeds
    return plan.command(str(ROOT / "configs" / f"{run.stage}.py"), runs / run.name, settings)


def is_finished(workdir: Path) -> bool:
    """Whether the run has been scored on the test split."""
    return scores_on_test(read_metrics(workdir)) is not None


def main() -> int:
    """Trains what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--data", type=Path, required=True, help="where tfds keeps CIFAR-10")
    parser.add_argument("--plan", default=",".join(PLANS), help="parts of the plan, in order; default: %(default)s")
    parser.add_argument("--dry_run", action="store_true", help="only print what is missing")
    options = parser.parse_args()
    unknown = [name for name in options.plan.split(",") if name not in PLANS]
    if unknown:
        parser.error(f"there is no plan {unknown[0]}; the plans are {', '.join(PLANS)}")
    options.runs, options.data = options.runs.resolve(), options.data.resolve()
    planned = [run for name in options.plan.split(",") for run in PLANS[name]]
    missing = [run for run in planned if not is_finished(options.runs / run.name)]
    print(f"{len(planned) - len(missing)} of {len(planned)} runs are finished.", flush=True)
    if options.dry_run:
        print("\n".join(" ".join(command(run, options.runs, options.data)) for run in missing))
        return 0
    return train(missing, options.runs, options.data)


def train(missing: list[Run], runs: Path, data: Path) -> int:
    """Trains the runs in order, one per core; stops all of them at SIGINT or SIGTERM."""
    os.chdir(ROOT)  # where Python finds the package, for the runs
    jobs = []
    for run in missing:
        folder = runs / run.name
        jobs.append(Job(run.name, command(run, runs, data), folder, functools.partial(is_finished, folder)))
    failed, left = [], len(jobs)
    with Processes([frozenset([core]) for core in sorted(os.sched_getaffinity(0))]) as processes:
        for ended in filter(None, processes.run(jobs)):
            left -= 1
            print(f"{ended.job.name}: {ended.error or 'finished'}; {left} left", flush=True)
            if ended.error:
                failed.append(ended.job.name)
    print(f"{left} runs are left." if processes.signal else f"Done; failed: {', '.join(failed) or 'none'}.")
    return 128 + processes.signal if processes.signal else bool(failed)


if __name__ == "__main__":
    sys.exit(main())
