"""Kills training runs at random moments, starts them again, and compares them bit by bit with undisturbed runs.

python scripts/soak.py --kills=100 [--minutes=30] [--stages=augment,seeds] [--seed=0] [--folder=DIR] [--output=FILE]

Small runs on handwritten digits save after every few steps. Most kills are SIGKILL, before a random file operation of
the kind that a run can least afford to lose, such as writing the manifest of a checkpoint or deleting an old step; some
come a little later, or at any time. A run may also get SIGTERM, SIGHUP, two SIGINT, a SIGSTOP for a while, or lose the
reader of its standard error. Once a run has ended, every leaf of its last checkpoint and every record must equal those
of a run that nobody disturbed, every step must have a valid manifest, and no step may count as damaged.

The output is JSON. If it exists already, for the same seed and source, the kills are added to it, so that a long soak
can be done in parts; the random moments then continue where they ended.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Each saves after every chunk of steps.
STAGES = {
    "augment": ["--config=tests/small_config.py"],
    "seeds": ["--config=tests/small_config.py", "--config.seeds=2"],
    "transfer": ["--config=tests/transfer_config.py"],  # with cached features, and fine-tuning in a second phase
    "speedrun": ["--config=tests/speedrun_config.py"],
}
SAVE_ALWAYS = "--config.checkpoint.minutes=0.00001"

# File operations before which a process is killed, by the name of their kind.
KINDS = {
    "saving": lambda event, path: ".partial" in path,
    "manifest": lambda event, path: event == "open" and path.endswith("manifest.json"),
    "commit": lambda event, path: event == "os.rename" and Path(path).name.isdigit(),
    "deletion": lambda event, path: ".deleted" in path,
    "features": lambda event, path: "/features/" in path,
    "records": None,  # halfway through a line of metrics.jsonl
    "other files": lambda event, path: True,
}
WEIGHTS = {"saving": 4, "manifest": 3, "commit": 2, "deletion": 3, "features": 1, "records": 2, "other files": 2}
WEIGHTS |= {"start-up": 1, "any time": 4}
SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT twice", "SIGSTOP", "broken pipe")
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR


@dataclasses.dataclass
class Moment:
    """When and how to disturb a run.

    Attributes:
      kind: of file operation; "start-up" and "any time" are moments of the clock.
      count: before the how-manieth operation of that kind.
      seconds: how much later; from the start for moments of the clock.
      how: a signal.
    """

    kind: str
    count: int
    seconds: float
    how: str = "SIGKILL"


def main() -> int:
    """Soaks, and returns 1 where anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many, those in the output included")
    parser.add_argument("--minutes", type=float, default=0, help="stop after these; 0: never")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cnn_jax_soak")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "soak.json")
    arguments = parser.parse_args()
    soak = Soak(arguments.folder, arguments.output, arguments.stages.split(","), arguments.seed)
    end = time.monotonic() + (arguments.minutes * 60 or float("inf"))
    while soak.kills < arguments.kills and time.monotonic() < end:
        soak.run(arguments.kills, end)
    print(json.dumps({key: value for key, value in soak.report.items() if key != "where"}, indent=1))
    return 1 if soak.report["failures"] else 0


class Soak:
    """Runs that are disturbed, and what came of them."""

    def __init__(self, folder: Path, output: Path, stages: list[str], seed: int):
        """Trains the undisturbed runs, unless they are there.

        Args:
          folder: for workdirs and the compilation cache.
          output: the report; what it holds already counts.
          stages: keys of `STAGES`.
          seed: of the random moments.
        """
        from cnn_jax.utils.source import revision

        self._folder, self._output, self._stages = folder, output, stages
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = os.environ | {"CNN_JAX_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        self.report: dict[str, Any] = {
            "command": "python scripts/soak.py --kills=1000",
            "seed": seed,
            "commits": [],
            "kills": 0,
            "other_signals": 0,
            "resumes": 0,
            "runs_compared": 0,
            "leaves_compared": 0,
            "bytes_compared": 0,
            "records_compared": 0,
            "steps_with_manifest": 0,
            "failures": [],
            "where": {},
            "stages": {},
        }
        if output.exists():
            held = json.loads(output.read_text())
            if held["seed"] == seed:
                self.report = held
        here = str(revision(ROOT, ("cnn_jax", "configs"))["commit"])
        if here not in self.report["commits"]:
            self.report["commits"].append(here)
        self._random = random.Random(f"{seed} {self.kills} {self.report['other_signals']}")
        self._references = {stage: self._reference(stage) for stage in stages}

    @property
    def kills(self) -> int:
        """How many processes SIGKILL has ended."""
        return self.report["kills"]

    def run(self, kills: int, end: float) -> None:
        """Trains one run to its end, disturbing it all the time, and compares it."""
        stage = self._random.choice(self._stages)
        workdir = self._folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        seconds, counts = self._references[stage]
        for _ in range(12):
            if self.kills >= kills or time.monotonic() > end:
                break
            moment = self._choose(seconds, counts)
            status, errors = self._train(stage, workdir, moment)
            self._count(stage, moment, status, errors)
            if status == 0:
                break
        else:
            status, errors = self._train(stage, workdir, None)
            self._count(stage, None, status, errors)
        if status:
            status, errors = self._train(stage, workdir, None)
            self._count(stage, None, status, errors)
        if status:
            kept = self._folder / f"failed-{len(self.report['failures'])}"
            workdir.rename(kept)
            self._fail(stage, None, f"status {status}, kept in {kept.name}: {errors[-500:]}")
        else:
            self._compare(stage, workdir)
        self._write()

    def _reference(self, stage: str) -> tuple[float, dict[str, int]]:
        """Returns how long an undisturbed run takes, and how many file operations of each kind it has."""
        workdir, notes = self._folder / f"{stage}-reference", self._folder / f"{stage}.json"
        if not notes.exists():
            for repeated in range(2):  # the second time from the compilation cache
                shutil.rmtree(workdir, ignore_errors=True)
                begin = time.monotonic()
                status, errors = self._train(stage, workdir, None, notes if repeated else None)
                if status:
                    raise SystemExit(f"The undisturbed run of {stage} fails: {errors}")
            counts = json.loads(notes.read_text())
            notes.write_text(json.dumps([time.monotonic() - begin, counts]))
        seconds, counts = json.loads(notes.read_text())
        return seconds, counts

    def _choose(self, seconds: float, counts: dict[str, int]) -> Moment:
        draw = self._random
        if draw.random() < 0.1:
            return Moment("any time", 0, draw.uniform(0, seconds), draw.choice(SIGNALS))
        weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in KINDS or kind in counts}
        (kind,) = draw.choices(list(weights), list(weights.values()))
        if kind in ("start-up", "any time"):
            return Moment(kind, 0, draw.uniform(0, seconds / 4 if kind == "start-up" else seconds))
        later = draw.choice([0.0, 0.0, draw.uniform(0, 0.03)])
        return Moment(kind, draw.randint(1, max(counts[kind] // 3, 1)), later)

    def _train(self, stage: str, workdir: Path, moment: Moment | None, notes: Path | None = None) -> tuple[int, str]:
        """Trains until the end or until `moment`; returns the status of the process and its standard error."""
        plan = {"workdir": str(workdir), "notes": str(notes) if notes else None}
        of_clock = moment is not None and not moment.count
        if moment and not of_clock:
            plan |= dataclasses.asdict(moment)
        command = [sys.executable, __file__, "child", json.dumps(plan), *STAGES[stage], f"--workdir={workdir}"]
        with tempfile.TemporaryFile("w+") as errors:
            broken = moment is not None and moment.how == "broken pipe"
            process = subprocess.Popen(
                [*command, SAVE_ALWAYS],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if broken else errors,
            )
            if moment and of_clock:
                self._disturb(process, moment)
            try:
                status = process.wait(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
                return 1, f"hung after {moment}"
            errors.seek(0)
            return status, errors.read()

    def _disturb(self, process: subprocess.Popen, moment: Moment) -> None:
        try:
            process.wait(timeout=moment.seconds)
            return
        except subprocess.TimeoutExpired:
            pass
        if moment.how == "broken pipe":
            assert process.stderr
            process.stderr.close()
        elif moment.how == "SIGINT twice":
            process.send_signal(signal.SIGINT)
            time.sleep(self._random.uniform(0, 1))
            process.send_signal(signal.SIGINT)
        elif moment.how == "SIGSTOP":
            process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            process.send_signal(signal.SIGCONT)
        else:
            process.send_signal(signal.Signals[moment.how])

    def _count(self, stage: str, moment: Moment | None, status: int, errors: str) -> None:
        report = self.report
        report["resumes"] += "Resuming from step" in errors
        if "Traceback" in errors:
            self._fail(stage, moment, f"traceback: {errors[-1500:]}")
        expected = {0, -signal.SIGKILL}
        if moment and moment.how != "SIGKILL":
            report["other_signals"] += 1
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
                expected |= {128 + number, -number}
        if status not in expected:
            self._fail(stage, moment, f"status {status}: {errors[-500:]}")
        if moment and status == -signal.SIGKILL:
            report["kills"] += 1
        if moment and status:
            name = moment.kind if moment.how == "SIGKILL" else moment.how
            report["where"][name] = report["where"].get(name, 0) + 1
            report["stages"][stage] = report["stages"].get(stage, 0) + 1

    def _compare(self, stage: str, workdir: Path) -> None:
        from cnn_jax.workdir import manifest
        from cnn_jax.workdir.records import read_metrics

        reference = self._folder / f"{stage}-reference"
        steps = manifest.inspect(workdir / "checkpoints")
        if not all(step.sound for step in steps) or (workdir / "checkpoints.damaged").exists():
            self._fail(stage, None, f"damaged or without manifest: {steps}")
        arrays, expected = leaves(workdir), leaves(reference)
        differing = [name for name in expected if arrays.get(name) != expected[name]]
        if differing or arrays.keys() != expected.keys():
            self._fail(stage, None, f"differing arrays: {differing[:3]}")
        held, wanted = (
            [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_metrics(folder)]
            for folder in (workdir, reference)
        )
        if held != wanted:
            self._fail(stage, None, f"records: {len(held)} instead of {len(wanted)}")
        report = self.report
        report["runs_compared"] += 1
        report["leaves_compared"] += len(expected)
        report["bytes_compared"] += sum(len(content) for _, _, content in expected.values())
        report["records_compared"] += len(wanted)
        report["steps_with_manifest"] += len(steps)

    def _fail(self, stage: str, moment: Moment | None, text: str) -> None:
        what = {"stage": stage, "moment": moment and dataclasses.asdict(moment), "text": text}
        self.report["failures"].append(what)
        print(what, file=sys.stderr, flush=True)

    def _write(self) -> None:
        partial = self._output.with_suffix(".partial")
        partial.write_text(json.dumps(self.report, indent=1) + "\n")
        partial.replace(self._output)


def leaves(workdir: Path) -> dict[str, tuple[str, str, bytes]]:
    """Returns type, shape and bytes of every array of the last checkpoint, by the path of the array."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    restore = ocp.args.StandardRestore(fallback_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints", item_names=("model", "train")) as manager:
        step = manager.latest_step()
        items = manager.restore(step, args=ocp.args.Composite(model=restore, train=restore))
    found = {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(dict(items.items()))
    }
    return {name: (str(leaf.dtype), str(leaf.shape), leaf.tobytes()) for name, leaf in found.items()}


def child(plan: dict[str, Any], arguments: list[str]) -> None:
    """Runs the training command in this process, to be killed as the plan says, or counting its file operations."""
    counts: collections.Counter[str] = collections.Counter()

    def reach(kind: str) -> bool:
        counts[kind] += 1
        return kind == plan.get("kind") and counts[kind] == plan["count"]

    def strike(seconds: float) -> None:
        if seconds:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, values: tuple) -> None:
        if event not in _OPERATIONS or (event == "open" and not (values[2] or 0) & _WRITING):
            return
        path = str(values[1] if event == "os.rename" else values[0])
        if not path.startswith(plan["workdir"]):
            return
        reached = [reach(kind) for kind, matches in KINDS.items() if matches and matches(event, path)]
        if any(reached):
            strike(plan["seconds"])

    sys.addaudithook(hook)
    _tear_records(plan["workdir"], lambda: reach("records") and strike(0))
    sys.argv = ["main", *arguments]
    try:
        runpy.run_module("cnn_jax.main", run_name="__main__")
    finally:
        if plan["notes"]:
            Path(plan["notes"]).write_text(json.dumps(counts))


def _tear_records(workdir: str, strike: Callable[[], Any]) -> None:
    """Writes half of each line of metrics.jsonl first, calls `strike`, and takes the half back if that returns."""
    from cnn_jax.workdir.records import Summaries

    record = Summaries.record

    def tearing(self, *arguments):
        with (Path(workdir) / "metrics.jsonl").open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.write(b'{"step": 1, "epo')
            file.flush()
            strike()
            file.truncate(size)
        return record(self, *arguments)

    Summaries.record = tearing


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(json.loads(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
