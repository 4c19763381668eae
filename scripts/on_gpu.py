"""Runs and measures everything that waits for a GPU, most important first: bash scripts/on_gpu.sh does it.

    python scripts/on_gpu.py [--minutes=30] [--steps=NAME,...] [--airbench=DIR] [--hiverge=DIR] [--output=reports/gpu]
    python scripts/on_gpu.py --rehearse     the same on a CPU, at tiny sizes: its numbers mean nothing

Each step is a process of its own with a time limit, and its result a file, OUTPUT/NAME.json, which is written whenever
something new is known. `status` there is `finished`, `failed` or `timed out`, the latter two with the last line of the
step's log (FOLDER/NAME.log); neither stops the others. The same command again skips finished steps, repeats the others
and resumes training runs. Remove a file to measure its step again.

- resume: `cnn_jax.main` trains, is stopped by SIGTERM and resumes; all arrays and records are compared, bit for bit,
  with those of a run that nobody stopped. Where they differ, the same with `config.deterministic`. Then the run is
  evaluated and exported, and the exported model must answer as the workdir does.
- command_buffers: the training step at batch 32 with and without CUDA graphs of convolutions and loops.
- benchmark: scripts/benchmark.py --gpu beside PyTorch and Keras, as far as they are installed.
- ladder: five stages on 50,000 images, the seeds of a stage together.
- bfloat16: stage `augment` in both types, paired by seed.
- seeds: several seeds at once relative to one (scripts/benchmark_seeds.py).
- speedrun: scripts/speedrun.py.
- airbench, hiverge: the original codes, airbench94_muon.py and cifar10_speedrun.py, of the checkouts that are given.
  Their times are by their own clocks, which include the evaluation with test-time augmentation.
- speedrun_variants: the speed run with each option that is off by default.
- host: how long the GPU waits for the host. Not from a trace, because tracing turns CUDA graphs off: the time per step
  of a whole run is compared with that of chunks that are dispatched one after another.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

# Without JAX, which would take the memory of the GPU from the commands.
from cnn_jax.utils import files  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402
from cnn_jax.workdir.layout import METRICS_FILE  # noqa: E402
from cnn_jax.workdir.records import read_metrics, scores_on_test  # noqa: E402

GRACE = 30.0  # seconds between SIGTERM, at which runs save, and SIGKILL
LEAST = 20.0  # seconds that must be left for a step to start
LADDER = ("baseline", "batchnorm", "dropout", "dropout_scheduled", "augment")
TINY = str(ROOT / "tests" / "small_config.py")
TINY_SPEEDRUN = str(ROOT / "tests" / "speedrun_config.py")
SCAN = "--config.mesh.steps=scan"  # in a rehearsal: a GPU does so anyway


class Failed(Exception):
    """A step cannot be completed; the message says why."""


class Work:
    """What a step has at hand, in its own process.

    Attributes:
      rehearse: whether everything is tiny and on a CPU.
      folder: for the runs of this step.
      options: of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace):
        """Makes the folder."""
        self.rehearse, self.options = options.rehearse, options
        self.folder = options.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path, self._held = options.output / f"{name}.json", {}

    def add(self, **values: Any) -> None:
        """Adds values to the result, and writes it."""
        self._held |= values
        write(self._path, {"status": "running", **self._held})

    def run(self, *command: Any) -> str:
        """Runs a command with this interpreter, and returns its standard output.

        Raises:
          Failed: its exit status is not 0.
        """
        process = self.start(*command, stdout=subprocess.PIPE, text=True)
        output, _ = process.communicate()
        print(output, flush=True)
        _check(process)
        return output

    def start(self, *command: Any, **options: Any) -> subprocess.Popen:
        """Starts a command with this interpreter."""
        words = [sys.executable, *map(str, command)]
        print("$", *words, flush=True)
        return subprocess.Popen(words, cwd=ROOT, **options)

    def train(self, workdir: Path, *settings: str) -> None:
        """Trains a run, or resumes it."""
        self.run("-m", "cnn_jax.main", f"--workdir={workdir}", *settings)

    def detail(self, *command: Any, name: str = "") -> dict[str, Any]:
        """Runs a script that writes JSON to --output, adds that to the result as it comes, and returns it.

        With a `name`, it becomes one value of the result.
        """
        path = self.folder / "output.json"
        path.unlink(missing_ok=True)
        process = self.start(*command, f"--output={path}")
        while process.poll() is None:
            time.sleep(0.2)
            if path.exists():
                found = files.read_json(path)
                self.add(**{name: found} if name else found)
        _check(process)
        found = files.read_json(path)
        self.add(**{name: found} if name else found)
        return found


def _check(process: subprocess.Popen) -> None:
    if process.returncode:
        assert isinstance(process.args, list)
        raise Failed(f"exit status {process.returncode} of {' '.join(process.args[1:])}")


def resume(work: Work) -> None:
    """Stops and resumes a run; then evaluates and exports it."""
    stage = [f"--config={TINY}", SCAN] if work.rehearse else ["--config=augment", "--config.epochs=8"]
    for kernels in ("default", "deterministic"):
        settings = [*stage, f"--config.deterministic={kernels == 'deterministic'}"]
        whole, stopped = (work.folder / f"{kernels}-{name}" for name in ("whole", "stopped"))
        for workdir in (whole, stopped):
            shutil.rmtree(workdir, ignore_errors=True)
        work.train(whole, *settings)
        step = _stop(work, stopped, settings)
        work.train(stopped, *settings)
        found = {"stopped_at_step": step} | _difference(whole, stopped)
        if not found["equal"]:
            again = work.folder / f"{kernels}-again"
            shutil.rmtree(again, ignore_errors=True)
            work.train(again, *settings)
            found["two_undisturbed_runs"] = _difference(whole, again)
        work.add(**{f"{kernels}_kernels": found})
        if found["equal"]:
            break
    work.add(bit_for_bit=found["equal"], needs_deterministic_kernels=found["equal"] and kernels == "deterministic")
    work.run("-m", "cnn_jax.evaluate", f"--workdir={whole}")
    evaluated = files.read_json(whole / "evaluation.json")
    model, images = work.folder / "model.jaxexport", _write_images(work.folder / "images")
    exported = work.run("-m", "cnn_jax.export", f"--workdir={whole}", f"--output={model}")
    answers = [
        [json.loads(line)["top"][0] for line in work.run("-m", "cnn_jax.predict", *source, *images).splitlines()]
        for source in ((f"--workdir={whole}", "--json"), (f"--model={model}", "--json"))
    ]
    same = [one["class"] == other["class"] for one, other in zip(*answers, strict=True)]
    work.add(
        evaluated={"step": evaluated["step"], "accuracy": evaluated["accuracy"]},
        exported=exported.strip().splitlines()[-1],
        answers_of_workdir_and_exported_model=answers,
    )
    if not all(same) or "for cpu and cuda" not in exported:
        raise Failed("the exported model does not answer as the workdir does, or is not for cuda")
    if not found["equal"]:
        raise Failed("a resumed run is not, bit for bit, the run that was not stopped")
    kind = "deterministic" if kernels == "deterministic" else "default"
    work.add(summary=f"resumed bit for bit with {kind} kernels; evaluated, exported and answered")


def _stop(work: Work, workdir: Path, settings: Sequence[str]) -> int:
    """Starts a run and sends it SIGTERM after its first record; returns the step at which it was saved."""
    process = work.start("-m", "cnn_jax.main", f"--workdir={workdir}", *settings)
    record = workdir / METRICS_FILE
    while process.poll() is None and not (record.exists() and record.stat().st_size):
        time.sleep(0.01)
    process.terminate()
    process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        raise Failed(f"the run ended with exit status {process.returncode} before it could be stopped")
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def _difference(first: Path, second: Path) -> dict[str, Any]:
    """Compares the arrays of the last checkpoints, and the records without those of speed."""
    import numpy as np
    from soak import leaves

    with mock.patch.dict(os.environ, JAX_PLATFORMS="cpu"):  # this process leaves the GPU to its commands
        one, other = leaves(first), leaves(second)
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    largest = 0.0
    for name in differing:
        if name in one and name in other and one[name][:2] == other[name][:2] and one[name][0].startswith("float"):
            values = (np.frombuffer(each[name][2], each[name][0]).astype(np.float64) for each in (one, other))
            largest = max(largest, float(np.abs(np.subtract(*values)).max()))
    records = [
        [{key: value for key, value in record.items() if key != "images_per_second"} for record in read_metrics(folder)]
        for folder in (first, second)
    ]
    same_records = records[0] == records[1]
    return {
        "equal": not differing and same_records,
        "arrays": len(one),
        "differing_arrays": len(differing),
        "first_differing": differing[:3],
        "largest_difference": largest,
        "equal_records": same_records,
    }


def _write_images(folder: Path) -> list[Path]:
    """Returns the paths of some pictures of random squares."""
    import numpy as np
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        squares = np.random.RandomState(number).randint(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(squares.repeat(8, 0).repeat(8, 1)).save(path)
    return paths


def command_buffers(work: Work) -> None:
    """Times the step with several values of XLA's flag, alternately."""
    import benchmark

    flag, given = "--xla_gpu_enable_command_buffer", os.environ.get("XLA_FLAGS", "")
    values = {
        "as cnn_jax sets it": None,
        "off": "",
        "XLA's default": "+FUSION",  # which is in the default list
        "convolutions and loops": "+CONVOLUTION,+WHILE",
    }
    variant, batch, images, rounds, device = "float32", 32, 51_200, 5, "cuda"
    if work.rehearse:
        values = dict(list(values.items())[:2])
        variant, batch, images, rounds, device = "float32-scan", 2, 4, 2, "cpu"
    contenders = {
        name: benchmark.Contender(
            "ours",
            variant,
            environment=() if value is None else (("XLA_FLAGS", f"{given} {flag}={value}".strip()),),
        )
        for name, value in values.items()
    }
    failed: dict[str, str] = {}
    found = benchmark.race(contenders, "train", batch, images, rounds, device, failed)
    for each in found.values():
        each["milliseconds_per_step"] = [round(1e3 * value * batch / images, 4) for value in each["seconds"]]
    medians = {name: statistics.median(each["milliseconds_per_step"]) for name, each in found.items()}
    work.add(stage="batchnorm", batch_size=batch, steps_per_chunk=images // batch, flags=values)
    work.add(milliseconds_per_step=medians, variants=found, failed_variants=failed)
    work.add(summary=", ".join(f"{name} {value:.3f} ms" for name, value in medians.items()))


def benchmark_peers(work: Work) -> None:
    """Runs scripts/benchmark.py."""
    options = ["--gpu", "--rounds=5", "--kinds=train32,train512,infer"]
    if work.rehearse:
        options = ["--rounds=2", "--kinds=train32", "--images=32", "--only=PyTorch default"]
    found = work.detail(HERE / "benchmark.py", *options)
    measured = sorted({name for kind in found["work"].values() for name in kind})
    left_out = f"; left out: {', '.join(found['failed'])}" if found["failed"] else ""
    work.add(summary=f"measured: {', '.join(measured)}{left_out}")


def ladder(work: Work) -> None:
    """Trains the stages, and notes the accuracies of each that is finished."""
    from cnn_jax.ladder import plan

    stages, seeds = list(LADDER), 8
    settings = {"data.validation": "0", "tensorboard": "off"}
    if work.rehearse:
        stages, seeds, settings = [TINY], 2, {"mesh.steps": "scan", "epochs": "1", "tensorboard": "off"}
    command = ["-m", "cnn_jax.ladder", f"--workdir={work.folder}", f"--stages={','.join(stages)}", f"--seeds={seeds}"]
    command += ["--together", "--jobs=1", *(f"--config.{key}={value}" for key, value in settings.items())]
    process = work.start(*command)
    finished: dict[str, dict[str, Any]] = {}
    while True:
        ended = process.poll() is not None
        for run in plan.make(stages, seeds, work.folder, settings, together=True):
            if run.accuracies and run.stage not in finished:
                finished[run.stage] = of_seeds(run.accuracies) | {"seconds": _seconds(run.workdir)}
                work.add(seeds=seeds, stages=finished)
        if ended:
            break
        time.sleep(1)
    _check(process)
    work.add(summary=", ".join(f"{stage} {found['mean']:.4f}" for stage, found in finished.items()))


def _seconds(workdir: Path) -> dict[str, float]:
    return {name: round(value, 2) for name, value in files.read_json(workdir / "times.json")["seconds"].items()}


def bfloat16(work: Work) -> None:
    """Trains the same seeds in both types."""
    from cnn_jax.evaluation.statistics import paired_difference

    settings = ["--config=augment", "--config.epochs=10", "--config.data.validation=0", "--config.seeds=8"]
    if work.rehearse:
        settings = [f"--config={TINY}", "--config.epochs=1", "--config.seeds=2", SCAN]
    found: dict[str, dict[int, float]] = {}
    for dtype in ("float32", "bfloat16"):
        workdir = work.folder / dtype
        work.train(workdir, *settings, "--config.tensorboard=off", f"--config.dtype={dtype}")
        scores = scores_on_test(read_metrics(workdir))
        assert scores  # the run is finished
        values = scores["lanes"]["accuracy"]
        found[dtype] = dict(enumerate(values))
        work.add(**{dtype: of_seeds(values) | {"seconds": _seconds(workdir)}})
    difference = paired_difference(found["float32"], found["bfloat16"])
    assert difference and difference.interval
    low, high = difference.interval
    work.add(difference=difference._asdict(), settings=settings)
    work.add(summary=f"bfloat16 - float32: {difference.mean:+.4f} [{low:+.4f}, {high:+.4f}], n = {len(values)}")


def seeds_at_once(work: Work) -> None:
    """Runs scripts/benchmark_seeds.py."""
    options = ["--seeds=8", "--ways=one,vmap,devices", "--steps=200", "--rounds=7"]
    if work.rehearse:
        options = ["--seeds=2", "--ways=one,vmap", "--steps=1", "--rounds=1", "--batch_size=2", "--scan"]
    rows = work.detail(HERE / "benchmark_seeds.py", *options)["rows"]
    work.add(summary=", ".join(f"{row['way']} {row['times_one_seed']:.2f}" for row in rows) + " times one seed")


def speedrun(work: Work) -> None:
    """Runs scripts/speedrun.py."""
    work.add(summary=_speedrun(work, 2 if work.rehearse else 40))


def _speedrun(work: Work, seeds: int, *changes: str, name: str = "") -> str:
    """Runs it with some settings; returns the result in words."""
    stage = [f"--stage={TINY_SPEEDRUN}", SCAN, "--config.epochs=1"] if work.rehearse else []
    command = [HERE / "speedrun.py", f"--seeds={seeds}", *stage, *changes]
    found = work.detail(*command, name=name)["scores"]
    return f"{found['seconds']:.3f} s, accuracy {found['accuracy']:.4f}, n = {found['n']}"


def speedrun_variants(work: Work) -> None:
    """The speed run with each option that is off by default, for which more seeds may be worth their time."""
    sides = "(6, 8)" if work.rehearse else "(24, 28, 32)"
    variants = {
        "as it is": (),
        "batched Muon": ("--config.optimizer.muon.batched=True",),
        "progressive resizing": (f"--config.augment.sides={sides}",),
    }
    found = []
    for name, changes in list(variants.items())[work.rehearse :]:
        found.append(f"{name}: {_speedrun(work, 2 if work.rehearse else 10, *changes, name=name)}")
    work.add(summary="; ".join(found))


def airbench(work: Work) -> None:
    """Runs airbench94_muon.py."""
    _original(work, work.options.airbench / "airbench94_muon.py")


def hiverge(work: Work) -> None:
    """Runs cifar10_speedrun.py."""
    _original(work, work.options.hiverge / "cifar10_speedrun.py")


def _original(work: Work, script: Path) -> None:
    """Runs one of the codes compared with until enough of its runs are done."""
    if not script.is_file():
        raise Failed(f"there is no {script}")
    wanted, found = 2 if work.rehearse else 40, []
    if not work.rehearse:
        _write_torch_data(work.folder / "cifar10")
    with subprocess.Popen(
        [sys.executable, "-u", script], cwd=work.folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for run in rows_of_original(process.stdout):
            found.append(run)
            timed = found[1:]  # the first is its warm-up
            if timed:
                work.add(
                    revision=revision(script.parent),
                    seconds=statistics.median(each["seconds"] for each in timed),
                    accuracy=of_seeds([each["accuracy"] for each in timed]),
                    accuracy_without_tta=of_seeds([each["accuracy_without_tta"] for each in timed]),
                    runs=timed,
                )
            if len(timed) == wanted:
                process.terminate()
                break
    if len(found) < 2:
        raise Failed(f"{script.name} ended with exit status {process.returncode}")
    seconds, accuracies = ([each[name] for each in found[1:]] for name in ("seconds", "accuracy"))
    mean = statistics.fmean(accuracies)
    work.add(summary=f"{statistics.median(seconds):.3f} s, accuracy {mean:.4f}, n = {len(seconds)}")


def rows_of_original(lines: Iterator[str]) -> Iterator[dict[str, float]]:
    """Yields the final row of each run: both codes print `| run | epoch | train | val | tta | seconds |`."""
    for line in lines:
        print(line, end="")
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 6 and cells[1] == "eval":
            without, accuracy, seconds = map(float, cells[3:])
            yield {"seconds": seconds, "accuracy": accuracy, "accuracy_without_tta": without}


def _write_torch_data(folder: Path) -> None:
    """Writes CIFAR-10 as both codes keep it, so that they need not download it."""
    import torch

    from cnn_jax import config as config_lib
    from cnn_jax import data

    folder.mkdir(exist_ok=True)
    dataset = data.load(config_lib.load("speedrun", {"data.validation": "0"}).data)
    for name in ("train", "test"):
        split = getattr(dataset, name)
        arrays = {"images": torch.from_numpy(split.images()), "labels": torch.from_numpy(split.labels).long()}
        torch.save(arrays | {"classes": list(dataset.class_names)}, folder / f"{name}.pt")


def host(work: Work) -> None:
    """Compares whole runs with chunks alone, and measures the host alone."""
    alone = ["--epochs=3", "--batch_size=500"] if work.rehearse else []
    work.detail(HERE / "host_time.py", *alone)
    settings = ["--config=augment", "--config.epochs=5"]
    if work.rehearse:
        settings = [f"--config={TINY}", SCAN]
    workdir = work.folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    work.train(workdir, *settings)
    times = files.read_json(workdir / "times.json")
    whole = times["seconds"]["train"] / times["steps"]

    import measuring  # isort: skip  now this process may take the GPU
    import jax

    sizes = {"batch_size": 4, "steps_per_call": 2, "model__widths": (4,), "model__dropout": ()} if work.rehearse else {}
    experiment = measuring.experiment("augment", 8 if work.rehearse else 44_800, mesh__steps="scan", **sizes)
    phase, state, now = experiment.phases[0], experiment.init(), 0
    pipeline = experiment.pipeline(phase, state.variables)
    per_step, chunks = [], 3 if work.rehearse else 28
    for _ in range(3 if work.rehearse else 8):
        ahead = []
        for _ in range(chunks):
            chunk = next(experiment.plan.chunks(now))
            ahead.append(pipeline.rows(*chunk))
            now = chunk.stop
        begin, steps = time.perf_counter(), sum(len(rows["mask"]) for rows in ahead)
        for rows in ahead:
            state, _ = phase.train(state, rows, pipeline.shared, experiment.keys, phase.longest_chunk)
        jax.block_until_ready(state)
        per_step.append((time.perf_counter() - begin) / steps)
    chunk_alone = statistics.median(per_step[1:])  # the first compiles
    work.add(
        milliseconds_per_step={"whole run": 1e3 * whole, "chunks alone": 1e3 * chunk_alone},
        share_of_the_time_of_training_that_is_the_hosts=1 - chunk_alone / whole,
        note="times.json's `train` per step; validation and compilation are not in it",
    )
    work.add(summary=f"{1e3 * whole:.3f} ms per step, {1e3 * chunk_alone:.3f} ms without records and progress")


def machine(work: Work) -> None:
    """Notes what the numbers are measured on; refuses a machine without a GPU."""
    import measuring

    found = measuring.machine()
    if not work.rehearse and found["devices"]["platform"] == "cpu":
        raise Failed("JAX finds no GPU here: install cnn_jax[gpu] on a machine with one, or try --rehearse")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip() if shutil.which(query[0]) else None
    work.add(**found, host=platform.node(), nvidia_smi=gpu, summary=f"{found['devices']['kind']}, {gpu or 'no GPU'}")


class Step(NamedTuple):
    """What one process does, and the seconds that it may take."""

    run: Callable[[Work], None]
    seconds: float


STEPS = {
    "resume": Step(resume, 360),
    "command_buffers": Step(command_buffers, 180),
    "benchmark": Step(benchmark_peers, 480),
    "ladder": Step(ladder, 600),
    "bfloat16": Step(bfloat16, 240),
    "seeds": Step(seeds_at_once, 120),
    "speedrun": Step(speedrun, 240),
    "airbench": Step(airbench, 240),
    "hiverge": Step(hiverge, 360),
    "speedrun_variants": Step(speedrun_variants, 240),
    "host": Step(host, 120),
}


def of_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of a score over seeds, with its interval."""
    from cnn_jax.evaluation.statistics import t_interval

    return {"n": len(values), "mean": statistics.fmean(values), "interval": t_interval(values), "values": list(values)}


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a result atomically."""
    with files.replacing(path) as file:
        file.write(json.dumps(values, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Returns a result; empty where there is none."""
    return files.read_json(path) if path.exists() else {}


class Conductor:
    """Runs the steps one after another, in the time there is."""

    def __init__(self, options: argparse.Namespace):
        """Begins to count the time."""
        self._options, self._begin = options, time.monotonic()
        self._machine: dict[str, Any] = {}

    def __call__(self, names: Sequence[str]) -> int:
        """Runs the steps, and the ladder again if time is left; returns how many are not finished."""
        about, error = self._run("machine", Step(machine, 120))
        if error:
            sys.exit(f"Error: {error}")
        self._machine = {key: value for key, value in about.items() if key not in ("status", "summary", "machine")}
        ready = [name for name in names if not self._skip(name)]
        for name in ready:
            # A CPU may take long even for tiny steps, most of which is compilation.
            self._run(name, STEPS[name]._replace(seconds=900) if self._options.rehearse else STEPS[name])
        if "ladder" in ready and read(self._path("ladder")).get("status") == "timed out":
            self._run("ladder", STEPS["ladder"]._replace(seconds=self._left()))
        states = {name: read(self._path(name)).get("status") for name in names}
        missing = [name for name in names if states[name] not in ("finished", "left out")]
        self._say(f"finished: {len(names) - len(missing)} of {len(names)}; results: {self._options.output}")
        if missing:
            self._say(f"the same command repeats {', '.join(missing)}")
        return len(missing)

    def _skip(self, name: str) -> bool:
        if read(self._path(name)).get("status") == "finished":
            self._say(f"{name}: finished before")
            return True
        if name in ("airbench", "hiverge") and getattr(self._options, name) is None:
            reason = f"no checkout is given (--{name}=DIR)"
            write(self._path(name), {"status": "left out", "reason": reason})
            self._say(f"{name}: left out, {reason}")
            return True
        return False

    def _run(self, name: str, step: Step) -> tuple[dict[str, Any], str | None]:
        """Runs a step within its time, and completes its result; returns it, and why it failed."""
        path, log = self._path(name), self._options.folder / f"{name}.log"
        limit = min(step.seconds, self._left())
        if limit < LEAST:
            self._say(f"{name}: not started, too little time is left")
            return {}, "too little time is left"
        path.unlink(missing_ok=True)
        self._say(f"{name}: at most {limit:.0f} s")
        command = [sys.executable, __file__, f"--step={name}", *self._arguments()]
        environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if self._options.rehearse else {})
        begin = time.monotonic()
        with log.open("w") as output:
            # A session of its own, so that the step and its commands can be stopped together.
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
            try:
                process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                timed_out = process.poll() is None
                self._end(process)
        error = None
        if timed_out or process.returncode:
            error = f"stopped after {limit:.0f} s" if timed_out else _last_line(log)
        status = "timed out" if timed_out else "failed" if error else "finished"
        held = {key: value for key, value in read(path).items() if key not in ("status", "machine")}
        result = {
            "status": status,
            **({"error": error, "last_line": _last_line(log)} if error else {}),
            **({"rehearsal": "on a CPU, tiny: no measurement"} if self._options.rehearse else {}),
            "seconds_of_the_step": round(time.monotonic() - begin, 1),
            **held,
            "machine": self._machine,
        }
        write(path, result)
        self._say(f"{name}: {status} in {time.monotonic() - begin:.0f} s; {error or held.get('summary', '')}")
        return result, error

    def _arguments(self) -> list[str]:
        options = self._options
        given = [f"--output={options.output}", f"--folder={options.folder}"]
        given += [f"--{name}={getattr(options, name)}" for name in ("airbench", "hiverge") if getattr(options, name)]
        return [*given, "--rehearse"] if options.rehearse else given

    def _end(self, process: subprocess.Popen) -> None:
        """Stops a process and its commands: SIGTERM, at which runs save, and SIGKILL for what is left."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            if process.poll() is not None:
                return
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue

    def _path(self, name: str) -> Path:
        return self._options.output / f"{name}.json"

    def _left(self) -> float:
        return 60 * self._options.minutes - (time.monotonic() - self._begin)

    def _say(self, text: str) -> None:
        left = max(self._left(), 0)
        print(f"[{left // 60:.0f}:{left % 60:02.0f} left] {text}", flush=True)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-500:].removeprefix("Error: ") if lines else "it printed nothing"


def _terminated(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Runs one step, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", default=",".join(STEPS), help="some of %(default)s")
    parser.add_argument("--airbench", type=Path, help="a checkout of KellerJordan/cifar10-airbench")
    parser.add_argument("--hiverge", type=Path, help="a checkout of hiverge/cifar10-speedrun")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--output", type=Path, help="folder of the results; reports/gpu, or runs/rehearsal/reports")
    parser.add_argument("--folder", type=Path, help="folder of runs and logs; runs/gpu, or runs/rehearsal")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one step, in this process
    options = parser.parse_args()
    default = ROOT / "runs" / ("rehearsal" if options.rehearse else "gpu")
    options.folder = (options.folder or default).absolute()
    options.output = (options.output or (default if options.rehearse else ROOT) / "reports" / "gpu").absolute()
    for name in ("airbench", "hiverge"):
        checkout = getattr(options, name)
        setattr(options, name, checkout and checkout.absolute())
    for folder in (options.folder, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    if options.step:
        # Its commands, which get the signal too, save and end, and so does the step. A handler, because commands would
        # inherit that a signal is ignored.
        signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            function = machine if options.step == "machine" else STEPS[options.step].run
            function(Work(options.step, options))
        except Failed as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        return 0
    names = options.steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"there is no step {unknown[0]}; the steps are {', '.join(STEPS)}")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return int(Conductor(options)(names) > 0)
    except KeyboardInterrupt:
        print("Stopped; the same command continues.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
