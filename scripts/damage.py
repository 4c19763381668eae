"""Damages every file of a workdir in every way, and tries what inference and training make of it.

python scripts/damage.py [--places=200] [--workdir=DIR] [--output=FILE]

The workdir is that of a finished run of tests/small_config.py, which is trained if none is given. Of each damage the
output counts tries, how many were noticed, and how many ended with the right parameters; "wrong" counts those that gave
other parameters, or let the other file of a run pass with another content, without a word.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cnn_jax import runtime  # noqa: E402

runtime.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.errors import UserError  # noqa: E402
from cnn_jax.inference import load_classifier  # noqa: E402
from cnn_jax.utils.source import revision  # noqa: E402
from cnn_jax.workdir import manifest, provenance  # noqa: E402
from cnn_jax.workdir.checkpoint import Checkpoints, restore_model  # noqa: E402

OTHER_JSON = [b"null", b"5", b"[]", b"[1]", b"{}", b'"text"', b"[" * 100_000]
KINDS = ("flipped bit", "truncated", "empty", "missing", "another JSON", "swapped")


def change(path: Path, kind: str, draw: random.Random, others: list[Path]) -> bool:
    """Damages a file; returns False where that leaves it as it is."""
    content = path.read_bytes()
    new: bytes | None = content
    if kind == "flipped bit" and content:
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        new = bytes(changed)
    elif kind == "truncated" and content:
        new = content[: draw.randrange(len(content))]
    elif kind == "empty":
        new = b""
    elif kind == "missing":
        new = None
    elif kind == "another JSON":
        new = draw.choice(OTHER_JSON)
    elif kind == "swapped":
        new = draw.choice(others).read_bytes()
    if new is None:
        path.unlink()
    else:
        path.write_bytes(new)
    return new != content


def same(tree: Any, expected: Any) -> bool:
    """Whether two trees have the same leaves, bit for bit."""
    a, b = (jax.tree.leaves_with_path(jax.tree.map(np.asarray, each)) for each in (tree, expected))
    return [(str(path), leaf.tobytes()) for path, leaf in a] == [(str(path), leaf.tobytes()) for path, leaf in b]


class Trial:
    """A finished run and what its checkpoints hold."""

    def __init__(self, workdir: Path):
        """Reads the intact workdir."""
        from whole_runs import final_arrays

        self.workdir = workdir
        directory = workdir / "checkpoints"
        self.steps = [step.number for step in manifest.inspect(directory)]
        self.models = {step: restore_model(directory, step)[1] for step in self.steps}
        self.metadata = json.loads((directory / str(self.steps[-1]) / "metadata" / "metadata").read_text())
        final_arrays(workdir, self.steps[-1])
        config = config_lib.load(ROOT / "tests" / "small_config.py")
        from cnn_jax import data
        from cnn_jax.training.experiment import Experiment

        self.config, self.experiment = config, Experiment(config, data.load(config.data))

    def infer(self, copy: Path) -> tuple[bool, bool, bool]:
        """Returns whether inference noticed something, got right parameters, and got wrong ones."""
        try:
            classifier = load_classifier(copy)
        except UserError:
            return True, False, False
        right = same(classifier.model[1], self.models.get(classifier.step))
        return bool(classifier.notice), right, not right

    def train(self, copy: Path) -> tuple[bool, bool, bool]:
        """Returns the same of what training does when it opens the workdir."""
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger("absl").addHandler(handler)
        try:
            if not (copy / "config.json").exists():
                return True, False, False  # refused by `training.loop`, see tests/workdir/test_damage.py
            config_lib.check_same(self.config, copy / "config.json")
            provenance.read(copy)
            difference = lambda metadata: config_lib.difference(self.config.to_dict(), metadata["config"])  # noqa: E731
            with Checkpoints(copy / "checkpoints", self.metadata, difference) as checkpoints:
                restored = self.experiment.restore(checkpoints)
        except UserError:
            return True, False, False
        finally:
            logging.getLogger("absl").removeHandler(handler)
        assert restored
        step, state = restored
        right = same(state.items["model"], self.models.get(step))
        return bool(said.getvalue()) or step != self.steps[-1], right, not right


def main() -> int:
    """Writes the table, and returns 1 where damage was served."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--places", type=int, default=200, help="random places at which a bit is flipped, per group of files"
    )
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "damage.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = arguments.workdir or Path(folder) / "run"
        if not arguments.workdir:
            command = [sys.executable, "-m", "cnn_jax.main", "--config=tests/small_config.py", f"--workdir={workdir}"]
            subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        table, failures = measure(Trial(workdir), Path(folder) / "copy", arguments.places)
    commit = revision(ROOT, ("cnn_jax",))["commit"]
    report = {"command": "python scripts/damage.py", "commit": commit, "table": table, "failures": failures}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in table)
    text = json.dumps(report | {"table": []}, indent=1).replace('"table": []', f'"table": [\n{lines}\n ]')
    arguments.output.write_text(text + "\n")
    for row in table:
        print(*row.values(), sep="\t")
    print(*failures, sep="\n")
    return 1 if failures else 0


def measure(trial: Trial, copy: Path, places: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of the table and the damages that were served or raised something other than a user error."""
    draw, rows, failures = random.Random(0), [], []
    files = sorted(p.relative_to(trial.workdir) for p in trial.workdir.rglob("*") if p.is_file())
    groups = collections.defaultdict(list)
    for path in files:
        groups["checkpoints" if path.parts[0] == "checkpoints" else path.parts[0]].append(path)
    for group, members in groups.items():
        for kind in KINDS:
            counts = {use: collections.Counter() for use in (trial.infer, trial.train)}
            has_bytes = [path for path in members if (trial.workdir / path).stat().st_size]
            able = has_bytes if kind in ("flipped bit", "truncated") else members
            flips = kind == "flipped bit" and able
            chosen = draw.choices(able, k=places) if flips else draw.sample(able, min(len(able), places))
            for path in chosen:
                for use, count in counts.items():
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(trial.workdir, copy)
                    others = [copy / other for other in files if other != path]
                    if not change(copy / path, kind, draw, others):
                        continue
                    count["tries"] += 1
                    try:
                        with contextlib.redirect_stderr(io.StringIO()):
                            noticed, right, wrong = use(copy)
                    except Exception:
                        failures.append(f"{kind} {path} {use.__name__}: {traceback.format_exc()[-600:]}")
                        count["tracebacks"] += 1
                        continue
                    count["noticed"] += noticed
                    count["right parameters"] += right
                    count["wrong"] += wrong
                    if wrong:
                        failures.append(f"{kind} {path} {use.__name__}: other parameters")
            names = ("tries", "noticed", "right parameters", "wrong", "tracebacks")
            for use, count in counts.items():
                what = {"files": group, "damage": kind, "in": "inference" if use == trial.infer else "training"}
                rows.append(what | {name: count[name] for name in names})
    return rows, failures


if __name__ == "__main__":
    sys.exit(main())
