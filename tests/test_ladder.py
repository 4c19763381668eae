"""The ladder: its plan, its processes, and whole ladders that are stopped, killed and repeated."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats
from whole_runs import records

from cnn_jax.errors import UserError
from cnn_jax.ladder import __main__ as ladder
from cnn_jax.ladder import plan
from cnn_jax.ladder.jobs import LOG_FILE, Attempt, Job, Processes, attempts, is_locked
from cnn_jax.ladder.survey import Cost

STAGE = """
from configs import augment

def get_config():
    config = augment.get_config()
    config.epochs, config.batch_size, config.steps_per_call, config.tensorboard = 2, 16, 5, "off"
    config.data.update({"name": "digits", "train_examples": 200, "validation": 100, "image_size": 8})
    config.model.update({"widths": (4, 8), "convs_per_block": 1, "hidden": (16,), "dropout": ()})
    config.augment.shift = 0.2  # one of 8 pixels
    %s
    return config
"""
STEPS = 25


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Config files of two stages that differ in one key, and of one whose loss overflows."""
    folder = tmp_path_factory.mktemp("stages")
    changes = {"plain": "config.augment.flip = False", "flipped": "", "broken": "config.optimizer.learning_rate = 1e30"}
    for name, change in changes.items():
        (folder / f"{name}.py").write_text(STAGE % change)
    return {name: str(folder / f"{name}.py") for name in changes}


def arguments(workdir, stages, *more):
    command = [sys.executable, "-m", "cnn_jax.ladder", f"--workdir={workdir}", f"--stages={','.join(stages)}"]
    return [*command, *more]


def run(workdir, stages, *more):
    command = arguments(workdir, stages, *more)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(stages, tmp_path_factory):
    """The folder of a ladder of two stages and two seeds that nothing disturbed, and its process."""
    workdir = tmp_path_factory.mktemp("ladder")
    done = run(workdir, [stages["plain"], stages["flipped"]], "--seeds=2")
    assert done.returncode == 0, done.stderr
    return workdir, done


NAMES = ("plain-0", "flipped-0", "plain-1", "flipped-1")


def test_results_are_those_of_the_runs(finished):
    workdir, done = finished
    for stage in ("plain", "flipped"):
        tests = [records(workdir / f"{stage}-{seed}")[-1] for seed in (0, 1)]
        assert [test["split"] for test in tests] == ["test", "test"]
        values = [test["accuracy"] for test in tests]
        low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
        row = next(line.split() for line in done.stdout.splitlines() if line.split()[0] == stage)
        assert row == [stage, "2", f"{np.mean(values):.4f}", f"[{low:.4f},", f"{high:.4f}]"]
    lines = done.stderr.splitlines()
    assert lines[0] == "0 of 4 runs finished; training 4."
    assert sorted(line.split(":")[0] for line in lines[1:]) == sorted(NAMES)
    assert "(4 of 4 finished)" in lines[-1]


def test_each_run_is_the_one_that_main_trains(finished, stages, tmp_path):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("processes are not pinned")
    command = [sys.executable, "-m", "cnn_jax.main", f"--config={stages['flipped']}", f"--workdir={tmp_path}"]
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})  # as the ladder does
        subprocess.run([*command, "--config.seed=1"], cwd=ROOT, check=True, capture_output=True)
    finally:
        os.sched_setaffinity(0, cores)
    assert records(tmp_path) == records(finished[0] / "flipped-1")


def test_a_finished_ladder_repeats_nothing(finished, stages, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    done = run(workdir, [stages["plain"], stages["flipped"]], "--seeds=2")
    assert done.returncode == 0 and done.stderr == "4 of 4 runs finished; training 0.\n"
    assert done.stdout == finished[1].stdout
    plan_of_it = run(workdir, [stages["plain"], stages["flipped"]], "--seeds=2", "--dry_run")
    assert plan_of_it.stdout.count("finished") == 5 and "4 of 4 runs finished." in plan_of_it.stdout
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    reported = run(workdir, [stages["plain"], stages["flipped"]], "--seeds=2", f"--report={tmp_path / 'report'}")
    assert reported.stdout.endswith(f"Report: {tmp_path / 'report' / 'index.html'}\n")
    rows = json.loads((tmp_path / "report" / "results.json").read_text())["rows"]
    assert [(row["name"], len(row["seeds"])) for row in rows] == [("plain", 2), ("flipped", 2)]


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def saved(workdir):
    return [path for path in workdir.glob("*/checkpoints/*") if path.name.isdecimal()]


def has_printed(name, workdir):
    """Whether the last process of a job, which may still run, has printed anything."""
    log = workdir / name / LOG_FILE
    return log.exists() and len(log.read_text().rpartition("$ ")[2].splitlines()) > 1


@pytest.mark.slow
def test_a_ladder_that_is_stopped_and_killed_ends_with_the_same_records(finished, stages, tmp_path):
    often = "--config.checkpoint.minutes=0.00001"
    command = arguments(tmp_path, [stages["plain"], stages["flipped"]], "--seeds=2", often)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: saved(tmp_path), process)
        process.send_signal(signal.SIGTERM)
        output, messages = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert output == "Stopped: 0 of 4 runs finished. The same command resumes.\n"
    assert "Stopping the runs, which save first." in messages and "Traceback" not in messages
    assert any(0 < int(path.name) < STEPS for path in saved(tmp_path))

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: any(is_locked(tmp_path / n) and has_printed(n, tmp_path) for n in NAMES), process)
        process.kill()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "is being trained by another process" in done.stderr
    assert done.stdout == finished[1].stdout
    for name in NAMES:
        assert records(tmp_path / name) == records(finished[0] / name)


def test_a_failed_run_is_shown_and_stops_no_other(stages, tmp_path):
    names = [stages["broken"], stages["plain"]]
    done = run(tmp_path, names, "--seeds=1", "--jobs=1")
    assert done.returncode == 1
    assert "broken-0: failed. Error: The loss is nan between steps" in done.stderr
    assert "plain-0: test accuracy" in done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]] == [["broken", "0"], ["plain", "1"]]
    assert "broken-0 failed; the same command tries again. Error: The loss is nan" in done.stdout
    assert str(tmp_path / "broken-0" / LOG_FILE) in done.stdout

    planned = run(tmp_path, names, "--seeds=2", "--jobs=1", "--dry_run")
    assert planned.returncode == 0, planned.stderr
    rows = [line.split() for line in planned.stdout.splitlines()]
    assert rows[0] == ["stage", "seed", "state", "time", "left", "disk"]
    assert rows[1][:5] == ["broken", "0", "failed,", "step", "0"] and "The loss is nan" in planned.stdout
    assert rows[2] == ["plain", "0", "finished"]
    assert rows[3][:4] == ["broken", "1", "to", "do"] and rows[4][:4] == ["plain", "1", "to", "do"]
    hours, minutes, seconds = map(int, rows[4][4].split(":"))  # by the finished run
    (attempt,) = attempts(tmp_path / "plain-0")
    assert abs(3600 * hours + 60 * minutes + seconds - attempt.seconds) <= 1
    assert "1 of 4 runs finished. About 0:" in planned.stdout and "1 run at a time" in planned.stdout
    assert not (tmp_path / "plain-1").exists()


@pytest.mark.parametrize(
    "given, says",
    [
        (["--workdir=W"], "--stages=... is missing"),
        (["--workdir=W", "--stages=baseline", "--config.batchsize=3"], "Did you mean config.batch_size?"),
        (["--workdir=/dev/null/x", "--stages=baseline", "--jobs=1"], "Cannot write to --workdir=/dev/null/x"),
    ],
)
def test_one_clear_line(command, tmp_path, given, says):
    workdir = tmp_path / "w"
    done = command("ladder", *(argument.replace("=W", f"={workdir}") for argument in given))
    assert done.returncode == 1 and says in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and not workdir.exists()


@pytest.mark.parametrize(
    "names, overrides, says",
    [
        (["baseline", "nothing"], {}, "There is no stage nothing"),
        (["baseline", str(ROOT / "configs" / "baseline.py")], {}, "two stages 'baseline'"),
        (["baseline"], {"seeds": "2"}, "set --seeds"),
        (["baseline"], {"seed": str(2**32 - 1)}, "config.seed is 4294967296"),
        ([], {}, "--stages is empty"),
    ],
)
def test_a_plan_is_checked_before_anything_starts(tmp_path, names, overrides, says):
    with pytest.raises(UserError, match=says):
        plan.make(names, 2, tmp_path, overrides)


def test_jobs_are_auto_or_a_number():
    assert ladder._parse_jobs("auto") is None and ladder._parse_jobs("3") == 3
    for value in ("0", "-1", "many", ""):
        with pytest.raises(UserError, match="--jobs is"):
            ladder._parse_jobs(value)


def test_another_configuration_in_a_workdir_is_refused(finished, stages):
    with pytest.raises(UserError, match=r"plain-0 holds a shorter run: config\.epochs is 2 there and 3 here"):
        plan.make([stages["plain"]], 1, finished[0], {"epochs": "3"})


def test_the_plan_takes_a_whole_seed_at_a_time(tmp_path):
    runs = plan.make(["batchnorm", "transfer_lite"], 2, tmp_path, {"seed": "3", "epochs": "4"})
    assert [run.name for run in runs] == ["batchnorm-3", "transfer_lite-3", "batchnorm-4", "transfer_lite-4"]
    assert [run.seeds for run in runs] == ["3", "3", "4", "4"] and {run.epochs for run in runs} == {4}
    assert runs[2].command[1:] == (
        *("-m", "cnn_jax.main", "--config=batchnorm", f"--workdir={tmp_path / 'batchnorm-4'}"),
        *("--config.seed=4", "--config.epochs=4"),
    )
    assert f"--config.features.dir={tmp_path / 'features'}" in runs[3].command
    assert runs[0].state(100) == "to do" and not runs[0].epochs_done


def test_one_run_can_train_all_seeds_of_a_stage(tmp_path):
    first, second = plan.make(["batchnorm", "augment"], 3, tmp_path, {"seed": "4"}, together=True)
    assert (first.name, second.name, first.seeds) == ("batchnorm-seeds3", "augment-seeds3", "4-6")
    assert first.command[-2:] == ("--config.seed=4", "--config.seeds=3") and first.accuracies == []
    record = {"step": 9, "epoch": 1, "split": "test", "accuracy": 0.5}
    for run, more in ((first, {"lanes": {"accuracy": [0.25, 0.5, 0.75]}}), (second, {})):
        run.workdir.mkdir()
        (run.workdir / "metrics.jsonl").write_text(json.dumps(record | more) + "\n")
    assert (first.accuracies, second.accuracies) == ([0.25, 0.5, 0.75], [0.5])


def test_the_command_starts_without_jax_and_matplotlib(command):
    code = "import sys, cnn_jax.ladder.__main__; assert not {'jax', 'matplotlib', 'scipy', 'clu'} & set(sys.modules)"
    assert command("", code=code).returncode == 0


def test_the_time_of_a_plan_is_that_of_its_last_run():
    assert plan.duration([4, 1, 1, 1], 2) == 4
    assert plan.duration([1, 1, 1, 4], 2) == 5
    assert plan.duration([1, 2, 3], 1) == 6


def job(folder, script, finished=lambda: False):
    return Job(folder.name, ("sh", "-c", script), folder, finished)


def test_jobs_run_at_the_same_time_on_their_cores(tmp_path):
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    slots = [frozenset([core]) for core in cores[:2]] or [None, None]
    code = "import os; print(*getattr(os, 'sched_getaffinity', lambda _: [])(0))"
    with Processes(slots) as processes:
        jobs = [job(tmp_path / str(i), f'{sys.executable} -c "{code}"; sleep 0.3') for i in range(2)]
        ended = [each for each in processes.run(jobs) if each]
    assert {(each.job.name, each.error) for each in ended} == {("0", None), ("1", None)}
    printed = sorted((tmp_path / str(i) / LOG_FILE).read_text().splitlines()[1] for i in range(2))
    assert printed == [str(core) for core in cores[:2]] or not cores
    if cores:
        assert os.sched_getaffinity(0) == set(cores)


def test_an_error_is_the_line_that_names_it(tmp_path):
    scripts = {
        "reported": "echo before; echo 'Error: no such file'; echo after; exit 1",
        "crashed": "echo Traceback; echo 'ValueError: 3'; echo; exit 2",
        "killed": "echo before; kill -KILL $$",
        "silent": "exit 3",
        "good": "exit 0",
    }
    with Processes([None]) as processes:
        jobs = [job(tmp_path / name, script) for name, script in scripts.items()]
        ended = {
            each.job.name: each.error for each in processes.run([*jobs, job(tmp_path / "done", "exit 1", bool)]) if each
        }
    assert ended == {
        "reported": "Error: no such file",
        "crashed": "ValueError: 3",
        "killed": "stopped by SIGKILL",
        "silent": "exit status 3",
        "good": None,
        "done": "exit status 1",
    }
    with Processes([None]) as processes:
        list(processes.run([job(tmp_path / "reported", "exit 0"), job(tmp_path / "silent", "exit 1", lambda: True)]))
    assert [each.failed for each in attempts(tmp_path / "reported")] == [True, False]
    assert len(attempts(tmp_path / "silent")) == 1  # it was finished, and not repeated
    assert not Attempt(128 + signal.SIGTERM, 1, "").failed and not Attempt(-signal.SIGTERM, 1, "").failed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_jobs(tmp_path, number, capfd, request):
    script = "trap 'echo saved; exit 143' TERM; echo ready; while true; do sleep 0.05; done"
    jobs = [job(tmp_path / str(i), script) for i in range(3)]
    previous = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, previous))
    before = signal.getsignal(number)  # not ignored, as SIGINT is in the processes of pytest-xdist
    with Processes([None, None]) as processes:
        for ended in processes.run(jobs):
            assert ended is None
            logs = [tmp_path / str(i) / LOG_FILE for i in range(2)]
            if not processes.signal and all(path.exists() and "\nready" in path.read_text() for path in logs):
                os.kill(os.getpid(), number)
    assert processes.signal == number and signal.getsignal(number) == before
    assert all("\nsaved\n[ladder] exit status 143" in path.read_text() for path in logs)
    assert not (tmp_path / "2").exists()
    assert "Stopping the runs" in capfd.readouterr().err


@pytest.mark.slow
def test_the_estimate_is_about_the_time_of_a_run(stages):
    from cnn_jax import config as config_lib
    from cnn_jax.ladder import survey

    cost = survey.measure(config_lib.load(stages["plain"]), None)
    assert isinstance(cost, Cost) and cost.steps == STEPS
    assert 1 < cost.seconds < 60 and 10_000 < cost.bytes < 2_000_000
