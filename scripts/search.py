"""Searches the recipe of stage `modern` on validation images alone, and takes it apart.

    python scripts/search.py --runs=DIR --data=DIR [--random=12] [--refine=1] [--jobs=N] [--dry_run]
    python scripts/search.py --runs=DIR --data=DIR --ablate [--seeds=6]

Every trial is an ordinary run of stage `augment` with changed settings, in a folder of its own: DIR/search-NAME. The
first trials are `augment` itself and the recipe of the literature (`START`); then come `--random` draws from `SPACE`;
then, `--refine` times, the best so far with one setting changed at a time. The order is fixed, so that the same command
resumes. Only records of the split "validation" are read: no choice depends on the test images. All trials, failed ones
too, are written to reports/modern_trials.json.

`--ablate` trains stage `modern`, stage `modern` without one ingredient each (`INGREDIENTS`), and `augment`, with
several seeds, in DIR/modern-NAME-SEED: a whole seed at a time, so that finished seeds are paired. Results, with test
accuracy: reports/modern_ablation.json.
"""

import argparse
import functools
import json
import math
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from long_runs import is_finished  # noqa: E402

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.evaluation.statistics import paired_difference, t_interval  # noqa: E402
from cnn_jax.ladder import plan  # noqa: E402
from cnn_jax.ladder.jobs import Job, Processes, attempts  # noqa: E402
from cnn_jax.workdir import provenance  # noqa: E402
from cnn_jax.workdir.records import read_metrics, scores_on_test  # noqa: E402

# The size of all trials: that of the quick table, whose 5,000 other images validate. Only the end is validated.
SIZE = {"data.train_examples": 5000, "epochs": 10, "eval.epochs": 1000, "checkpoint.epochs": 1000, "tensorboard": "off"}
NO_DROPOUT, LIGHT = (), (0.0, 0.1, 0.2, 0.3)
SPACE: dict[str, tuple[Any, ...]] = {
    "optimizer.learning_rate": (0.01, 0.02, 0.05, 0.1),
    "batch_size": (32, 64),
    "optimizer.schedule": ("cosine", "linear", "onecycle"),
    "optimizer.weight_decay": (0.0, 5e-4, 5e-3),
    "label_smoothing": (0.0, 0.1),
    "model.bn_momentum": (0.9, 0.97, 0.99),
    "model.dropout": (NO_DROPOUT, LIGHT, (0.2, 0.3, 0.4, 0.5)),
    "augment.cutout": (0, 8),
    "augment.mixup": (0.0, 0.2),
    "average.decay": (0.0, 0.99),
}
# In every trial but `augment`: Nesterov momentum costs nothing, and a warm-up makes high rates safe.
COMMON = {"optimizer.nesterov": True, "eval.mirror": True, "average.ramp": 1.0}
START = {
    "optimizer.learning_rate": 0.05,
    "batch_size": 64,
    "optimizer.schedule": "cosine",
    "optimizer.weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "model.bn_momentum": 0.9,
    "model.dropout": LIGHT,
    "augment.cutout": 0,
    "augment.mixup": 0.0,
    "average.decay": 0.99,
}
# Without an ingredient, its keys have the values of `augment`.
INGREDIENTS = {
    "schedule": ("optimizer.schedule", "optimizer.warmup_epochs", "optimizer.learning_rate", "batch_size"),
    "nesterov": ("optimizer.nesterov",),
    "weight_decay": ("optimizer.weight_decay",),
    "label_smoothing": ("label_smoothing",),
    "bn_momentum": ("model.bn_momentum",),
    "light_dropout": ("model.dropout",),
    "cutout": ("augment.cutout",),
    "mixup": ("augment.mixup",),
    "average": ("average.decay", "average.ramp", "average.every"),
    "mirror": ("eval.mirror",),
}

Settings = Mapping[str, Any]


def settings_of(point: Settings) -> dict[str, Any]:
    """Returns the settings of a trial at a point of `SPACE`."""
    warmup = 0 if point["optimizer.schedule"] == "onecycle" else 1
    return {**COMMON, **point, "optimizer.warmup_epochs": warmup}


def draws(count: int) -> dict[str, Settings]:
    """Returns points of `SPACE`, drawn with a fixed seed."""
    generator = random.Random(0)
    points = [{key: generator.choice(values) for key, values in SPACE.items()} for _ in range(count)]
    return {f"random{number:02d}": point for number, point in enumerate(points)}


def neighbours(best: Settings, tried: list[Settings], number: int) -> dict[str, Settings]:
    """Returns the points that differ from the best in one setting, apart from those already tried."""
    points = [{**best, key: value} for key, values in SPACE.items() for value in values]
    new = [point for index, point in enumerate(points) if point not in tried and point not in points[:index]]
    return {f"refine{number}-{index:02d}": point for index, point in enumerate(new)}


def validation(workdir: Path, total: int) -> float | None:
    """Returns the accuracy on the validation split after the last epoch; None if the run has not got there."""
    found = [r for r in read_metrics(workdir) if r["split"] == "validation" and r["epoch"] >= total]
    return found[-1]["accuracy"] if found else None


class Search:
    """Trials in the folder of the runs."""

    def __init__(self, runs: Path, data: Path, seed: int = 0):
        """Prepares a search; nothing is trained yet."""
        self.runs, self.data, self.seed = runs, data, seed
        self.trials: dict[str, Settings] = {}

    def job(self, name: str, settings: Settings, stage: str = "augment", prefix: str = "search") -> Job:
        """Returns the run of a trial."""
        folder = self.runs / f"{prefix}-{name}"
        given = {"seed": self.seed, "data.dir": self.data} | SIZE | dict(settings)
        command = plan.command(str(ROOT / "configs" / f"{stage}.py"), folder, given)
        return Job(folder.name, command, folder, functools.partial(is_finished, folder))

    def score(self, name: str) -> float | None:
        """Returns the validation accuracy of a trial; NaN if it failed, None if it has not ended."""
        folder = self.runs / f"search-{name}"
        value = validation(folder, SIZE["epochs"]) if folder.exists() else None
        failed = folder.exists() and value is None and any(attempt.failed for attempt in attempts(folder))
        return math.nan if failed else value

    def best(self) -> str:
        """Returns the name of the best trial."""
        scores = {name: self.score(name) for name in self.trials if name != "augment"}
        finite = {name: score for name, score in scores.items() if score is not None and not math.isnan(score)}
        return max(finite, key=lambda name: finite[name])

    def run(self, points: Mapping[str, Settings], cores: list[frozenset[int]], dry_run: bool) -> bool:
        """Trains what is missing; returns whether all of it has ended."""
        self.trials |= points
        missing = [name for name in points if self.score(name) is None]
        print(f"{len(points) - len(missing)} of {len(points)} trials have ended.", flush=True)
        if dry_run or not missing:
            if dry_run:
                print("\n".join(f"{name}: {json.dumps(points[name])}" for name in missing))
            return not missing
        jobs = [self.job(name, {} if name == "augment" else settings_of(points[name])) for name in missing]
        with Processes(cores) as processes:
            for ended in filter(None, processes.run(jobs)):
                name = ended.job.name.removeprefix("search-")
                print(f"{name}: {self.score(name)} {ended.error or ''}", flush=True)
                self.write()
        return not processes.signal

    def write(self) -> None:
        """Writes reports/modern_trials.json."""
        rows = []
        for name, point in self.trials.items():
            score, folder = self.score(name), self.runs / f"search-{name}"
            if score is None:
                continue
            held = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
            segments = provenance.read(folder)
            rows.append(
                {
                    "trial": name,
                    "settings": point,
                    "validation_accuracy": None if math.isnan(score) else score,
                    "seed": held.get("seed"),
                    "commit": segments[0]["provenance"]["commit"] if segments else None,
                    "seconds": round(sum(attempt.seconds for attempt in attempts(folder)), 1),
                }
            )
        content = {
            "note": "CIFAR-10 re-encoded as JPEG; accuracy on 5,000 validation images; one core per trial",
            "command": "python scripts/search.py --runs=DIR --data=DIR",
            "size": SIZE,
            "common": COMMON,
            "space": SPACE,
            "trials": rows,
        }
        (ROOT / "reports" / "modern_trials.json").write_text(json.dumps(content, indent=1) + "\n")


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the runs of the ablation: name, stage and settings."""
    modern, augment = (config_lib.flatten(config_lib.load(name)) for name in ("modern", "augment"))
    found: dict[str, tuple[str, dict[str, Any]]] = {"modern": ("modern", {}), "augment": ("augment", {})}
    for name, keys in INGREDIENTS.items():
        changed = {key: augment[key] for key in keys if modern[key] != augment[key]}
        if changed:
            found[f"no_{name}"] = ("modern", changed)
    return found


def ablate(search: Search, seeds: int, cores: list[frozenset[int]], dry_run: bool) -> None:
    """Trains the variants with several seeds, and writes what each ingredient is worth."""
    jobs = []
    for seed in range(1, seeds + 1):  # the search used 0
        for name, (stage, settings) in variants().items():
            jobs.append(search.job(f"{name}-{seed}", {**settings, "seed": seed}, stage, "modern"))
    missing = [job for job in jobs if not job.finished()]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are finished.", flush=True)
    if dry_run:
        print("\n".join(job.name for job in missing))
        return
    with Processes(cores) as processes:
        for ended in filter(None, processes.run(missing)):
            print(f"{ended.job.name}: {ended.error or 'finished'}", flush=True)
            write_ablation(search.runs, seeds)
    write_ablation(search.runs, seeds)


def write_ablation(runs: Path, seeds: int) -> None:
    """Writes reports/modern_ablation.json from the finished runs."""
    accuracies: dict[str, dict[int, float]] = {}
    commits = set()
    for name in variants():
        for seed in range(1, seeds + 1):  # the search used 0
            folder = runs / f"modern-{name}-{seed}"
            scores = scores_on_test(read_metrics(folder)) if folder.exists() else None
            if scores:
                accuracies.setdefault(name, {})[seed] = scores["accuracy"]
                commits |= {segment["provenance"]["commit"] for segment in provenance.read(folder)}
    rows = []
    for name, found in accuracies.items():
        values = list(found.values())
        row: dict[str, Any] = {"name": name, "settings": variants()[name][1], "test_accuracy": found, "n": len(values)}
        row |= {"mean": sum(values) / len(values), "interval": t_interval(values), "cost": None}
        cost = paired_difference(found, accuracies["modern"]) if name != "modern" and "modern" in accuracies else None
        if cost:  # what leaving it out costs: modern minus this
            row["cost"] = cost._asdict()
        rows.append(row)
    content = {
        "note": "CIFAR-10 re-encoded as JPEG; test accuracy; cost is modern minus the variant, paired by seed",
        "command": "python scripts/search.py --runs=DIR --data=DIR --ablate",
        "size": SIZE,
        "commits": sorted(commits),
        "rows": rows,
    }
    (ROOT / "reports" / "modern_ablation.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    """Runs the search or the ablation; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--data", type=Path, required=True, help="where tfds keeps CIFAR-10")
    parser.add_argument("--random", type=int, default=12, help="random trials; default: %(default)s")
    parser.add_argument("--refine", type=int, default=1, help="rounds of refinement; default: %(default)s")
    parser.add_argument("--ablate", action="store_true", help="take the finished recipe apart instead")
    parser.add_argument("--seeds", type=int, default=6, help="seeds of the ablation; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time; default: cores")
    parser.add_argument("--dry_run", action="store_true", help="only list what is missing")
    options = parser.parse_args()
    search = Search(options.runs.resolve(), options.data.resolve())
    os.chdir(ROOT)  # where Python finds the package, for the runs
    cores = [frozenset([core]) for core in sorted(os.sched_getaffinity(0))][-options.jobs :]
    if options.ablate:
        ablate(search, options.seeds, cores, options.dry_run)
        return 0
    if not search.run({"augment": {}, "start": START} | draws(options.random), cores, options.dry_run):
        return 1
    for number in range(1, options.refine + 1):
        best = search.best()
        print(f"Best so far: {best}, {search.score(best)}", flush=True)
        points = neighbours(search.trials[best], list(search.trials.values()), number)
        if not search.run(points, cores, options.dry_run):
            return 1
    search.write()
    best = search.best()
    print(f"Best: {best}, validation accuracy {search.score(best)}: {json.dumps(settings_of(search.trials[best]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
