"""Checkpoints: the latest and the best of a run, by Orbax, with checksums of our own.

A step holds three items: `model` = {params, batch_stats}, which is all that inference reads; `train` = {step,
opt_state}; `metadata`, JSON with the config, the class names and the preprocessing. Where weights are averaged, `model`
is the average, and `train` also has the {params, batch_stats} from which training continues.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import on_one_device

Items = dict[str, PyTree]  # by name: "model" and "train"

_CHECKSUMS = "sha256.json"
_SCORE = "score"
FINGERPRINT = "data_fingerprint"  # a key of the metadata: a run must resume on the same images


class Checkpoints:
    """The checkpoints of one run. Use it in a `with` statement.

    The last two are kept, so that one is left should the other be damaged on disk, and the best.
    """

    def __init__(self, directory: Path, metadata: dict[str, Any]):
        """Opens the directory, which need not exist.

        Damaged steps are moved to a folder beside it, if an intact one is left to resume from.

        Args:
          directory: where the steps are.
          metadata: JSON, saved with every step.

        Raises:
          UserError: what is there is too damaged to be opened.
        """
        self.directory = directory.absolute()  # Orbax takes no other
        self._metadata = metadata
        self._damaged = self._find_damaged()  # before Orbax reads the scores of all steps

        def score(metrics):
            return metrics[_SCORE]

        # Orbax' own `max_to_keep` would delete the latest step in favour of the best.
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=score,
            best_mode="max",
            preservation_policy=keep,
            # A save in the background is lost when the process ends first, and these are small.
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_names=("model", "train", "metadata")
            )
        except ValueError as error:  # a score that is no JSON
            reason = next(iter(self._damaged.values()), _reason(error))
            raise UserError(
                f"The checkpoints in {self.directory} are damaged ({reason}). Move them away to start again, or take "
                "another --workdir."
            ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The last step that was saved."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The saved step with the highest score; the latest where none was scored."""
        steps = self._manager.all_steps()
        return _best(self.directory, steps) if steps else None

    def save(self, step: int, items: Items, score: float | None = None) -> None:
        """Saves a step, unless it is there already; returns when it is on disk.

        Args:
          step: its number.
          items: "model" and "train", trees of arrays.
          score: the higher, the better; None where it was not measured. NaN counts as the worst.
        """
        if step in self._manager.all_steps():
            return
        # A NaN sorts as neither better nor worse, and would make Orbax delete the best.
        metrics = None if score is None else {_SCORE: float(score) if math.isfinite(score) else -math.inf}
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        saved["metadata"] = ocp.args.JsonSave(self._metadata)
        try:
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics, force=True)
            self._manager.wait_until_finished()
            self._write_checksums(step)
        except OSError as error:
            raise UserError(
                f"Cannot save step {step} in {self.directory}: {error}. Free space or rights there, then repeat the "
                "command: it resumes from the last checkpoint."
            ) from error

    def restore(self, target: Callable[[int], Items]) -> tuple[int, Items] | None:
        """Returns the latest intact step and its items; None where nothing was saved.

        Damaged steps after it are moved to a folder beside this one, so that the run can save them again.

        Args:
          target: takes the step; returns its items as shapes, types and shardings (or arrays that have them).

        Raises:
          UserError: every step is damaged, or they belong to another network or to other data.
        """
        failed = dict(self._damaged)
        for step in sorted(set(self._manager.all_steps()) - set(failed), reverse=True):
            try:
                restored = self._restore(step, target(step))
            except Exception as error:  # what damage raises depends on the byte it hit
                with contextlib.suppress(OSError, ValueError):
                    self._check_data(step)  # of other classes, the network has other shapes
                failed[step] = _reason(error)
                continue
            self._set_aside(failed)
            if failed:
                self._manager.reload()
            self._check_data(step)
            return step, restored
        if failed:
            raise UserError(
                f"None of the {len(failed)} checkpoints in {self.directory} can be restored "
                f"({failed[max(failed)]}). Move them away to start again, or take another --workdir."
            )
        return None

    def _find_damaged(self) -> dict[int, str]:
        """Returns which steps are damaged and how, where all are; otherwise they are set aside."""
        steps, damaged = _steps(self.directory), {}
        for step in steps:
            try:
                _verify(self.directory / str(step))
            except (UserError, OSError, ValueError) as error:
                damaged[step] = _reason(error)
        if len(damaged) == len(steps):
            return damaged
        self._set_aside(damaged)
        return {}

    def _check_data(self, step: int) -> None:
        saved = _read_metadata(self.directory / str(step)).get(FINGERPRINT)
        if saved != self._metadata.get(FINGERPRINT):
            raise UserError(
                f"The training images are not those that the run in {self.directory.parent} began with: bring them "
                "back, or take another --workdir."
            )

    def _set_aside(self, failed: dict[int, str]) -> None:
        for step, reason in failed.items():
            target = self.directory.with_name(self.directory.name + ".damaged") / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
            logging.error("Step %d is damaged (%s): moved to %s; another one is used.", step, reason, target)

    def _restore(self, step: int, target: Items) -> Items:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))

    def _write_checksums(self, step: int) -> None:
        folder = self.directory / str(step)
        (folder / _CHECKSUMS).write_text(json.dumps(_hash_files(folder), indent=1))


def restore_model(directory: Path, step: int | str) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
    """Reads what inference needs, onto one device, whatever the devices that it was saved from.

    Args:
      directory: where the steps are; nothing is written there.
      step: its number, "latest", or "best" by validation accuracy.

    Returns:
      The step, the variables {params, batch_stats} and the metadata.

    Raises:
      UserError: no such step, or it is damaged.
    """
    directory = directory.absolute()
    steps = _steps(directory)
    if not steps:
        raise UserError(f"There is no checkpoint in {directory}: train first, or take another --workdir.")
    number = steps[-1] if step == "latest" else _best(directory, steps) if step == "best" else step
    if number not in steps:
        raise UserError(
            f"There is no step {step} in {directory}; it has {', '.join(map(str, steps))}, best and latest."
        )
    folder = directory / str(number)
    try:
        _verify(folder)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            model = checkpointer.restore(
                folder / "model", args=ocp.args.StandardRestore(fallback_sharding=on_one_device())
            )
        metadata = _read_metadata(folder)
    except Exception as error:  # what damage raises depends on the byte it hit
        raise UserError(
            f"The checkpoint of step {number} in {directory} cannot be read ({_reason(error)}). Take another step of "
            f"{', '.join(map(str, steps))}."
        ) from None
    return number, model, metadata


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.is_dir() else []


def _best(directory: Path, steps: list[int]) -> int:
    """The step with the highest score; the latest where none was scored, and of equals.

    Raises:
      UserError: a score cannot be read.
    """
    scores = {}
    for step in steps:
        path = directory / str(step) / "metrics" / "metrics"
        try:
            scores[step] = json.loads(path.read_text())[_SCORE] if path.exists() else -math.inf
        except (OSError, ValueError, TypeError, LookupError):
            raise UserError(f"{path} is damaged, so the best step is not known: take --step=latest.") from None
    return max(steps, key=lambda step: (scores[step], step))


def _read_metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata" / "metadata").read_text())


def _verify(folder: Path) -> None:
    """Raises a `UserError` where a file is not what was written: Orbax notices few flipped bits."""
    if not (folder / _CHECKSUMS).exists():
        return  # the process was killed between the commit and the checksums; Orbax' own checks remain
    expected, actual = json.loads((folder / _CHECKSUMS).read_text()), _hash_files(folder)
    damaged = sorted(name for name in expected if actual.get(name) != expected[name])
    if damaged:
        raise UserError(f"{damaged[0]} is damaged or missing")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
