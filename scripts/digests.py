"""Detects changes in the numbers that training computes: compares hashes of what short runs leave with recorded ones.

    python scripts/digests.py [--only=NAME,...]     trains the runs again and compares; exit status 1 if any differs
    python scripts/digests.py --write               trains them and records their hashes in reports/digests.json

Use it around a refactoring, which must change no number. Every run is trained on the CPU by the ordinary command, in a
process of its own, on scikit-learn's digits. Orbax alone reads its last checkpoint, and SHA-256 is taken of the paths,
shapes, types and bytes of

- params and batch_stats, which inference uses: the average, where weights are averaged;
- opt_state;
- current: {params, batch_stats} from which training continues, where weights are averaged;
- metrics: the records of metrics.jsonl without those of speed.

Equal hashes can be expected only under equal conditions: versions, processor, number of cores. They are recorded too,
and what differs is reported.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported, here and in the runs

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "reports" / "digests.json"
COMMAND = (sys.executable, "-m", "cnn_jax.main")
COLUMNS = ("params", "batch_stats", "opt_state", "current", "metrics")
SPEED = "images_per_second"  # the key of the records that differs each time

SHORT = {
    "data.name": "digits",
    "data.train_examples": 200,
    "data.validation": 100,
    "data.image_size": 16,
    "batch_size": 16,
    "epochs": 2,
    "steps_per_call": 5,
    "tensorboard": "off",
}
BACKBONE = SHORT | {"model.weights": "random", "data.image_size": 32}
SPEEDRUN = {
    "data.name": "digits",
    "batch_size": 250,
    "dtype": "float32",
    "model.widths": "(16, 32, 32)",
    "epochs": 2,
    "tensorboard": "off",
}
# The stage of each run, and the keys of its configuration that are changed.
RUNS = {
    "augment": ("augment", SHORT),
    "seeds": ("augment", SHORT | {"seeds": 3}),
    "resumed": ("augment", SHORT),
    "diagnostics": ("batchnorm", SHORT | {"diagnostics": True}),
    "average": ("batchnorm", SHORT | {"average.decay": 0.9}),
    "features": ("transfer_lite", BACKBONE),
    "finetune": ("transfer_finetune", BACKBONE | {"finetune.epochs": 1}),
    "speedrun": ("speedrun", SPEEDRUN),
}
STOPPED = {"resumed": "augment"}  # stopped, continued, and then equal to the other run

Digests = dict[str, str]


class Failed(Exception):
    """A run did not do what it should; the text says which and how."""


def train(name: str, workdir: Path) -> None:
    """Trains a run of `RUNS` in the folder `workdir`.

    Raises:
      Failed: the command failed, or had ended before it could be stopped.
    """
    stage, changes = RUNS[name]
    command = [*COMMAND, f"--config=configs/{stage}.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    unset = ("XLA_", "JAX_", "NVIDIA_TF32_OVERRIDE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
    options = {"cwd": ROOT, "env": environment | {"JAX_PLATFORMS": "cpu"}, "text": True}
    if name in STOPPED:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as process:
            metrics = workdir / "metrics.jsonl"  # which gets its first record after the first chunk of steps
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(0.01)
            process.terminate()
        saved = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
        if process.returncode != 128 + signal.SIGTERM or not saved:
            raise Failed(f"{name} was not stopped in the middle, but ended with exit status {process.returncode}")
    done = subprocess.run(command, capture_output=True, **options)
    if done.returncode:
        raise Failed(f"{name}: exit status {done.returncode} of {' '.join(command)}\n{done.stderr[-3000:]}")


def digests(workdir: Path) -> Digests:
    """Returns the hash of each of `COLUMNS` that a run has left."""
    restore = ocp.args.StandardRestore(fallback_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("model", "train")) as manager:
        items = manager.restore(manager.latest_step(), args=ocp.args.Composite(model=restore, train=restore))
    model, training = items["model"], items["train"]
    trees = {"params": model["params"], "batch_stats": model["batch_stats"], "opt_state": training["opt_state"]}
    if "params" in training:
        trees["current"] = {"params": training["params"], "batch_stats": training["batch_stats"]}
    return {column: digest(tree) for column, tree in trees.items()} | {"metrics": digest_of_metrics(workdir)}


def digest(tree: Any) -> str:
    """Returns the SHA-256 of all leaves of a tree, in the order of their paths."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    result = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        result.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        result.update(leaf.tobytes())
    return result.hexdigest()


def digest_of_metrics(workdir: Path) -> str:
    """Returns the SHA-256 of the records in metrics.jsonl without their speed."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in record.items() if key != SPEED} for record in records]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def conditions(workdir: Path) -> dict[str, Any]:
    """Returns the provenance that a run has recorded, without what belongs to this run alone."""
    recorded = json.loads((workdir / "provenance.json").read_text())[-1]["provenance"]
    return {key: value for key, value in recorded.items() if key not in ("layout", "data")}


def run(names: Iterable[str]) -> tuple[dict[str, Digests], dict[str, Any]]:
    """Trains these runs and says how long each takes; returns the digests by run, and the conditions.

    Raises:
      Failed: a run failed, or one that was stopped and continued differs from the one that was not.
    """
    found, known = {}, {}
    for name in names:
        print(f"{name:<12}", end="", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / name
            train(name, workdir)
            found[name] = digests(workdir)
            known = known or conditions(workdir)
        print(f"{time.monotonic() - start:6.1f} s", flush=True)
    for stopped, other in STOPPED.items():
        if {stopped, other} <= found.keys() and found[stopped] != found[other]:
            raise Failed(f"{stopped} does not equal {other}, although it is the same run, stopped and continued")
    return found, known


def table(found: dict[str, Digests], recorded: dict[str, Digests]) -> tuple[str, bool]:
    """Returns the comparison of digests by run, and whether all are equal."""

    def cell(name: str, column: str) -> str:
        here, there = (each.get(name, {}).get(column) for each in (found, recorded))
        if here == there:
            return "equal" if here else "-"
        return "DIFFERENT" if here and there else "NEW" if here else "MISSING"

    cells = {name: [cell(name, column) for column in COLUMNS] for name in found}
    lines = ["".join(f"{text:<13}" for text in (name, *row)) for name, row in {"run": COLUMNS, **cells}.items()]
    return "\n".join(map(str.rstrip, lines)), all(text in ("equal", "-") for row in cells.values() for text in row)


def differences(recorded: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each condition that differs, the source's commit aside."""
    old, new = _flatten(recorded), _flatten(here)
    names = [name for name in {**old, **new} if name not in ("commit", "dirty") and old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name)} recorded, {new.get(name)} here" for name in names]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def main() -> int:
    """Records or compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", action="store_true", help=f"record the hashes in {RECORDED.relative_to(ROOT)}")
    choice.add_argument("--only", default=",".join(RUNS), help="names of runs, separated by commas", metavar="NAMES")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        parser.error(f"There is no run {unknown[0]!r}; the runs are {', '.join(RUNS)}.")
    if not (arguments.write or RECORDED.exists()):
        parser.error("No hashes are recorded yet: do it with --write.")
    try:
        found, here = run(names)
    except Failed as error:
        sys.exit(f"\nError: {error}.")
    if arguments.write:
        RECORDED.write_text(json.dumps({"conditions": here, "runs": found}, indent=1) + "\n")
        print(f"Written: {RECORDED.relative_to(ROOT)}")
        return 0
    recorded = json.loads(RECORDED.read_text())
    text, equal = table(found, recorded["runs"])
    print(f"\n{text}\n\nRecorded at commit {recorded['conditions']['commit']}.")
    differing = differences(recorded["conditions"], here)
    if differing:
        print("\n  ".join(["Conditions that differ, so that hashes may differ too:", *differing]))
    else:
        print("The conditions are those recorded.")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
