"""Trains stages with several seeds each: python -m cnn_jax.ladder --workdir=DIR --stages=baseline,batchnorm --seeds=6.

Every stage and seed is an ordinary run in DIR/STAGE-SEED; with --together, one in DIR/STAGE-seedsN has all seeds. The
same command again resumes what was stopped or failed and does not repeat what is finished. --config.KEY=VALUE changes a
key in all stages.
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.progress import Progress, TextColumn
from rich.table import Table

from cnn_jax import cli
from cnn_jax import config as config_lib
from cnn_jax.errors import UserError
from cnn_jax.ladder import plan, survey
from cnn_jax.ladder.jobs import LOG_FILE, Cores, Ended, Processes, is_locked
from cnn_jax.ladder.plan import Run
from cnn_jax.utils import progress, tables, text

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the workdirs, which are named STAGE-SEED.")
_STAGES = flags.DEFINE_list("stages", None, f"Stages, or paths of config files. {config_lib.stages_hint()}")
_SEEDS = flags.DEFINE_integer("seeds", 6, "Seeds of each stage, from config.seed on.", lower_bound=1)
_JOBS = flags.DEFINE_string(
    "jobs",
    "auto",
    "Runs at a time: a number, or auto for one per core on a CPU and one elsewhere. Several runs on a CPU share the "
    "cores evenly; the number of cores changes how sums are rounded.",
)
_TOGETHER = flags.DEFINE_bool(
    "together", False, "Train all seeds of a stage as one run, in STAGE-seedsN, which is for GPUs."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the plan, with the expected time and disk space.")
_REPORT = flags.DEFINE_string("report", None, "Folder for a report on the finished runs.")


def main(overrides: dict[str, str]) -> int:
    """Trains what is missing, prints the results, and returns the exit status."""
    assert _WORKDIR.value and _STAGES.value is not None  # required
    jobs = _parse_jobs(_JOBS.value)
    workdir = Path(_WORKDIR.value).expanduser()
    runs = plan.make(_STAGES.value, _SEEDS.value, workdir, overrides, _TOGETHER.value)
    missing = [run for run in runs if not run.scores]
    slots = _slots(jobs, missing)
    if _DRY_RUN.value:
        _show_plan(runs, slots)
        return 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to --workdir={workdir}: {error.strerror}. Take another one.") from None
    with Processes(slots) as processes:
        failed = _train(processes, runs, missing)
    if processes.signal:
        finished = sum(run.scores is not None for run in runs)
        print(f"Stopped: {finished} of {text.count(len(runs), 'run')} finished. The same command resumes.")
        return 128 + processes.signal
    _show_results(runs)
    for ended in failed:
        print(
            f"{ended.job.name} failed; the same command tries again. {ended.error} (see {ended.job.folder / LOG_FILE})"
        )
    finished = [run.workdir for run in runs if run.scores]
    if _REPORT.value and finished:
        from cnn_jax.report.runs import write_report  # here, because JAX and matplotlib take a second to import

        write_report(finished, _REPORT.value, order="given")
        print(f"Report: {Path(_REPORT.value).expanduser() / 'index.html'}")
    return int(len(finished) < len(runs))


def _parse_jobs(value: str) -> int | None:
    """Returns the value of `--jobs`; None for auto."""
    if value == "auto":
        return None
    if not value.isdecimal() or not int(value):
        raise UserError(f"--jobs is {value!r}; it must be auto, or a whole number of at least 1.")
    return int(value)


def _slots(jobs: int | None, missing: list[Run]) -> list[Cores]:
    """Returns the cores of each of the runs that are trained at a time; None for all.

    They do not depend on what is missing, so that a resumed run has as many cores as before.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not missing or jobs == 1 or (jobs is None and len(cores) < 2):
        return [None]
    on_cpu = survey.prepare([run.config for run in missing]) == "cpu"
    count = jobs or (len(cores) if on_cpu else 1)
    if not on_cpu or not cores or count == 1:
        return [None] * count
    if count > len(cores):
        return [frozenset([cores[index % len(cores)]]) for index in range(count)]
    share = len(cores) // count
    return [frozenset(cores[index * share : (index + 1) * share]) for index in range(count)]


def _train(processes: Processes, runs: list[Run], missing: list[Run]) -> list[Ended]:
    """Trains the missing runs, with progress on standard error; returns those that failed."""
    left, failed = {run.name: run for run in missing}, []
    finished, before, begin = len(runs) - len(missing), _epochs_done(runs), time.monotonic()
    with progress.bar(TextColumn("{task.fields[count]}")) as bar:
        task = bar.add_task("Training", total=sum(run.epochs for run in runs), count="")
        _say(bar, f"{finished} of {text.count(len(runs), 'run')} finished; training {len(missing)}.")
        for run in filter(lambda run: is_locked(run.workdir), missing):
            _say(bar, f"{run.name} is being trained by another process, which is waited for.")
        for ended in processes.run([run.job for run in missing]):
            done = _epochs_done(runs)
            if ended:
                run = left.pop(ended.job.name)
                if ended.error:
                    failed.append(ended)
                    result = f"failed. {ended.error}"
                else:
                    finished += 1
                    assert run.scores
                    result = f"test accuracy {run.scores['accuracy']:.4f}"
                progressed, epochs_left = done - before, sum(each.epochs - each.epochs_done for each in left.values())
                more = ""
                if progressed and epochs_left:
                    more = f", about {text.duration((time.monotonic() - begin) / progressed * epochs_left)} left"
                _say(bar, f"{run.name}: {result} ({finished} of {len(runs)} finished{more})")
            bar.update(task, completed=done, count=f"{finished}/{len(runs)} runs")
    return failed


def _epochs_done(runs: Sequence[Run]) -> float:
    return sum(run.epochs_done for run in runs)


def _say(bar: Progress, line: str) -> None:
    bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_plan(runs: list[Run], slots: list[Cores]) -> None:
    """Prints the state of every run, with the time and disk space that are left."""
    costs, notes = {}, {}
    for stage in dict.fromkeys(run.stage for run in runs):
        own = [run for run in runs if run.stage == stage]
        costs[stage] = plan.estimate(own)
        if costs[stage] is None and any(not run.scores for run in own):
            try:
                costs[stage] = survey.measure(own[0].config, slots[0])
            except UserError as error:
                notes[stage] = f"Stage {stage} cannot be estimated: {error}"
    table = _table("stage", "seed", "state", "time left", "disk")
    seconds, space = [], 0
    for run in runs:
        cost, time_left, disk = costs[run.stage], "", ""
        if cost and not run.scores:
            seconds.append((1 - run.step / cost.steps) * cost.seconds)
            needed = max(cost.bytes - survey.size(run.workdir), 0)
            space += needed
            time_left, disk = text.duration(seconds[-1]), _megabytes(needed)
        table.add_row(run.stage, run.seeds, run.state(cost and cost.steps), time_left, disk)
    tables.show(table, tables.console())
    finished = sum(run.scores is not None for run in runs)
    print(f"{finished} of {text.count(len(runs), 'run')} finished.", end=" ")
    if seconds:
        took = text.duration(plan.duration(seconds, len(slots)))
        print(f"About {took} and {_megabytes(space)} left, {text.count(len(slots), 'run')} at a time.", end="")
    print("", *notes.values(), sep="\n")


def _show_results(runs: list[Run]) -> None:
    """Prints a row per stage: the mean test accuracy with its interval."""
    from cnn_jax.evaluation.statistics import t_interval  # here, because SciPy takes half a second to import

    table = _table("stage", "n", "test accuracy", "95% interval", "not finished")
    for stage in dict.fromkeys(run.stage for run in runs):
        own = [run for run in runs if run.stage == stage]
        values = [value for run in own for value in run.accuracies]
        unfinished = sum(run.config.seeds for run in own if not run.scores)
        bounds = t_interval(values) if values else None
        mean = f"{statistics.fmean(values):.4f}" if values else "-"
        between = f"[{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "-"
        table.add_row(stage, str(len(values)), mean, between, str(unfinished or ""))
    tables.show(table, tables.console())


def _table(*titles: str) -> Table:
    table = Table(*titles)
    for column, title in zip(table.columns, titles):
        column.justify = "right" if title in ("n", "seed", "time left", "disk") else "left"
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    cli.run(main, required=("workdir", "stages"), overrides=True)
