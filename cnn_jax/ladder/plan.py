"""The runs of a ladder, their state on disk, and what they are expected to take."""

import dataclasses
import heapq
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError
from cnn_jax.ladder.jobs import Job, attempts, is_locked
from cnn_jax.ladder.survey import Cost, size
from cnn_jax.workdir.layout import CHECKPOINT_FOLDER, CONFIG_FILE, FEATURES_FOLDER
from cnn_jax.workdir.records import last_record, read_metrics, scores_on_test


@dataclasses.dataclass(frozen=True)
class Run:
    """A stage with one seed, or with all seeds at once.

    Attributes:
      stage: its name, which for a config file is that of the file.
      config: all keys.
      workdir: of the run.
      command: trains it, or resumes it.
    """

    stage: str
    config: ConfigDict
    workdir: Path
    command: tuple[str, ...]

    @property
    def seeds(self) -> str:
        """The seed, or the first and the last."""
        first, last = self.config.seed, self.config.seed + self.config.seeds - 1
        return str(first) if first == last else f"{first}-{last}"

    @property
    def accuracies(self) -> list[float]:
        """The test accuracy of each seed; empty where the run is not finished."""
        scores = self.scores or {}
        return scores.get("lanes", {}).get("accuracy") or ([scores["accuracy"]] if scores else [])

    @property
    def name(self) -> str:
        """For messages; that of the workdir."""
        return self.workdir.name

    @property
    def job(self) -> Job:
        """The command as a job."""
        return Job(self.name, self.command, self.workdir, lambda: self.scores is not None)

    @property
    def scores(self) -> dict[str, Any] | None:
        """The scores on the test split; None where the run is not finished."""
        return scores_on_test(read_metrics(self.workdir))

    @property
    def epochs(self) -> int:
        """Of both phases."""
        return self.config.epochs + self.config.finetune.epochs

    @property
    def epochs_done(self) -> float:
        """The epochs after which the last record was written."""
        record = last_record(self.workdir)
        return record["epoch"] if record else 0

    @property
    def step(self) -> int:
        """The step from which the run resumes."""
        steps = (self.workdir / CHECKPOINT_FOLDER).glob("*")
        return max((int(path.name) for path in steps if path.name.isdecimal()), default=0)

    @property
    def error(self) -> str | None:
        """Why the last process of the run failed; None where it did not."""
        done = attempts(self.workdir)
        return done[-1].error if done and done[-1].failed else None

    def state(self, steps: int | None) -> str:
        """Returns the state for the plan, given the steps of the run, where they are known."""
        if self.scores:
            return "finished"
        where = f"step {self.step:,}" + (f" of {steps:,}" if steps else "")
        if is_locked(self.workdir):
            return f"running, {where} is saved"
        if self.error:
            return f"failed, {where} is saved: {self.error}"
        return where if self.step else "to do"


def make(
    names: Sequence[str], seeds: int, workdir: Path, overrides: Mapping[str, str], together: bool = False
) -> list[Run]:
    """Returns the runs in their order: all stages with the first seed, then with the next.

    Args:
      names: stages, or paths of config files.
      seeds: how many, from `config.seed` on.
      workdir: the folder of the workdirs, which are STAGE-SEED.
      overrides: texts of config keys, for all stages.
      together: whether one run trains all seeds of a stage, in STAGE-seedsN.

    Raises:
      UserError: there is no such stage, a key or value is impossible, two stages have the same name, or a workdir holds
        another run.
    """
    stages: dict[str, tuple[str, ConfigDict]] = {}
    for source in names:
        config = config_lib.load(source, overrides)
        config_lib.validate(config)
        name = Path(source).stem
        if name in stages:
            raise UserError(f"--stages has two stages {name!r}: give each its own name.")
        if config.seeds != 1:
            raise UserError(
                f"config.seeds is {config.seeds} in stage {name}, but --seeds says how many a ladder has: leave "
                "config.seeds at 1, and set --seeds, with --together to train all seeds of a stage at once."
            )
        stages[name] = source, config
    if not stages:
        raise UserError(f"--stages is empty. {config_lib.stages_hint()}")
    runs = []
    for index in range(1 if together else seeds):
        for name, (source, config) in stages.items():
            own = config.copy_and_resolve_references()
            own.seed += index
            own.seeds = seeds if together else 1
            folder = workdir / f"{name}-{own.seed}"
            settings = dict(overrides) | {"seed": str(own.seed)}
            if own.seeds > 1:
                folder = workdir / f"{name}-seeds{seeds}"
                settings["seeds"] = str(seeds)
            if _shares_features(config):
                own.features.dir = settings["features.dir"] = str(workdir / FEATURES_FOLDER)
            runs.append(Run(name, own, folder, command(source, folder, settings)))
    for run in runs:
        config_lib.validate(run.config)
        if (run.workdir / CONFIG_FILE).exists():
            longer = config_lib.check_same(run.config, run.workdir / CONFIG_FILE)
            for key, (there, here) in longer.items():
                raise UserError(
                    f"{run.workdir} holds a shorter run: config.{key} is {there} there and {here} here. Take another "
                    "--workdir, or continue each run with cnn_jax.main."
                )
    return runs


def command(source: str, workdir: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the command that trains a stage or config file, or resumes it."""
    options = [f"--config.{key}={value}" for key, value in settings.items()]
    return (sys.executable, "-m", "cnn_jax.main", f"--config={source}", f"--workdir={workdir}", *options)


def estimate(runs: Sequence[Run]) -> Cost | None:
    """Returns what a run of a stage takes, by those of its runs that are finished; None where they do not tell."""
    costs = [cost for run in runs if (cost := _recorded(run))]
    return Cost(*(int(statistics.median(values)) for values in zip(*costs))) if costs else None


def duration(seconds: Sequence[float], jobs: int) -> float:
    """Returns how long runs take that start in this order, `jobs` at a time."""
    ends = [0.0] * jobs
    for each in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return max(ends)


def _recorded(run: Run) -> Cost | None:
    scores, seconds = run.scores, sum(attempt.seconds for attempt in attempts(run.workdir))
    return Cost(scores["step"], seconds, size(run.workdir)) if scores and seconds else None


def _shares_features(config: ConfigDict) -> bool:
    """Whether the seeds of a stage can share the features of a frozen backbone."""
    return config.features.cache and not config.features.dir and config.model.trainable != "all"
