"""Checkpoints: the latest and the best of a run, by Orbax, with manifests of our own.

A step holds three items: `model` = {params, batch_stats}, which is all that inference reads; `train` = {step,
opt_state}; `metadata`, JSON with the config, the class names and the preprocessing. Where weights are averaged, `model`
is the average, and `train` also has the {params, batch_stats} from which training continues.
"""

import concurrent.futures
import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from cnn_jax.errors import UserError
from cnn_jax.parallel.distributed import check_same, is_alone, is_primary, wait_for_all
from cnn_jax.parallel.placement import on_one_device
from cnn_jax.utils import files
from cnn_jax.workdir import manifest
from cnn_jax.workdir.disk import check_room, errors_in_one_line
from cnn_jax.workdir.layout import CONFIG_FILE, METRICS_FILE
from cnn_jax.workdir.manifest import Step
from cnn_jax.workdir.provenance import other_images

Items = dict[str, PyTree]  # by name: "model" and "train"

FINGERPRINT = "data_fingerprint"  # a key of the metadata: a run must resume on the same images

# Folders that are no steps yet, or none any more; the third is Orbax's own.
_PARTIAL, _DELETED = ".partial", ".deleted"
_LEFTOVERS = (_PARTIAL, _DELETED, ".orbax-checkpoint-tmp")


class Checkpoints:
    """The checkpoints of one run. Use it in a `with` statement.

    The last two are kept, so that one is left should the other be damaged on disk, and the best. A step is written
    under another name and renamed when it is complete, manifest included; a step that is deleted is renamed first. So
    a process that is killed at any moment leaves whole steps, and readers see no others.

    A thread can write a step while training continues. At most one step is being written, and everything else waits for
    it; the end of the `with` statement does too.

    Several processes of a run save and restore together, in a folder that all of them see; Orbax decides which writes
    what. The first one alone writes manifests, renames and deletes, and chooses the step to restore.
    """

    def __init__(
        self, directory: Path, metadata: dict[str, Any], difference: Callable[[dict[str, Any]], str] = lambda _: ""
    ):
        """Opens the directory, which need not exist.

        Damaged steps are moved to a folder beside it, if an intact one is left to resume from.

        Args:
          directory: where the steps are.
          metadata: JSON, saved with every step.
          difference: takes the metadata of a step; returns what shows that it belongs to another run, or "".
        """
        self.directory = directory.absolute()  # Orbax takes no other
        self.directory.mkdir(parents=True, exist_ok=True)
        self._opened = os.open(self.directory, os.O_RDONLY)  # so that no other directory gets the same inode
        self._metadata, self._difference = metadata, difference
        self._records = self.directory.parent / METRICS_FILE
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                "model", "train", "metadata", metrics=ocp.JsonCheckpointHandler(filename="metrics")
            )
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._saving: concurrent.futures.Future[None] | None = None
        self._failed = 0  # saves
        self._primary = is_primary()
        with self._primary_first():
            self._remove_leftovers()
            self._steps = {step.number: step for step in manifest.inspect(self.directory)}
            damaged = {step.number: step.damage for step in self._steps.values() if step.damage}
            if len(damaged) < len(self._steps):
                self._set_aside(damaged)
        check_same("set of checkpoints", lambda: sorted(self._steps))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._checkpointer.close()
            os.close(self._opened)

    def wait(self) -> None:
        """Returns when the step that is being written, if there is one, is on disk; raises what `save` would."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    @property
    def latest_step(self) -> int | None:
        """The last step that was saved and is intact."""
        self.wait()
        return max((step.number for step in self._sound), default=None)

    @property
    def best_step(self) -> int | None:
        """The intact step with the highest score; the latest where none was scored."""
        self.wait()
        return self._best

    @property
    def _best(self) -> int | None:
        return manifest.best(self._sound).number if self._sound else None

    @property
    def _sound(self) -> list[Step]:
        return [step for step in self._steps.values() if step.sound]

    def save(self, step: int, items: Items, score: float | None = None, *, wait: bool = True) -> None:
        """Saves a step, unless it is there already.

        Args:
          step: its number.
          items: "model" and "train", trees of arrays.
          score: the higher, the better; None where it was not measured. NaN counts as the worst.
          wait: whether to return when it is on disk. Otherwise the arrays are copied on the device, to be written while
            it computes; what goes wrong is raised by the next use of this object. Several processes always wait, so
            that they save in step with each other.

        Raises:
          UserError: the disk is full, read-only or gone; no half-written step is left.
        """
        self.wait()
        if step in self._steps and self._steps[step].sound:
            return
        score = score if score is not None and math.isfinite(score) else None
        records = manifest.describe_records(self._records)  # they grow while the step is written
        if wait or not is_alone():
            self._save(step, items, score, records)
        else:
            self._saving = self._thread.submit(self._save, step, _copy(items), score, records)

    def _save(self, step: int, items: Items, score: float | None, records: dict[str, Any]) -> None:
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args["metadata"] = ocp.args.JsonSave(self._metadata)
        if score is not None:
            args["metrics"] = ocp.args.JsonSave({"score": float(score)})
        # After a save that failed, under a name to which none of its threads writes any more.
        folder = self.directory / f"{step}{f'-{self._failed}' * bool(self._failed)}{_PARTIAL}"
        try:
            with errors_in_one_line(self.directory):
                self._check_directory()
                self._remove_leftovers()
                check_room(self.directory, _size(items))
                self._checkpointer.save(folder, args=ocp.args.Composite(**args), force=True)
                if self._primary:
                    manifest.write(folder, step, score, self._metadata["config"], records)
                    _sync(folder, self._records)
                    self._check_directory()
                    self._delete(step)  # an unfinished one
                    folder.rename(self.directory / str(step))
                    files.sync(self.directory)  # before older steps are deleted
        except BaseException:
            self._failed += 1
            with contextlib.suppress(OSError):
                self._remove_leftovers()
            self._check_directory()  # whose loss Orbax reports in many ways
            raise
        self._steps[step] = Step(step, -math.inf if score is None else float(score))
        kept = {*sorted(each.number for each in self._sound)[-2:], self._best}
        for number in [number for number in self._steps if number < step and number not in kept]:
            self._delete(number)
        wait_for_all("saved")

    def restore(self, target: Callable[[int], Items]) -> tuple[int, Items] | None:
        """Returns the latest intact step and its items; None where nothing was saved.

        A step without a manifest, whose damage nobody would notice, is taken only where there is no other, and gets its
        manifest then. Damaged steps are moved to a folder beside this one, so that the run can save them again.

        Args:
          target: takes the step; returns its items as shapes, types and shardings (or arrays that have them).

        Raises:
          UserError: every step is damaged, or they belong to another run, to another network or to other data.
        """
        self.wait()
        failed = {step.number: step.damage for step in self._steps.values() if step.damage}
        for step in _in_order_of_trust(self._steps.values()):
            metadata = None
            try:
                metadata = _read_metadata(self.directory / str(step.number))
                difference = self._difference(metadata)
                restored = None if difference else self._restore(step.number, target(step.number))
            except Exception as error:  # what damage raises depends on the byte it hit
                if isinstance(error, jax.errors.JaxRuntimeError) and not is_alone():
                    raise  # another process is gone
                if metadata is not None:
                    self._check_data(metadata)  # of other classes, the network has other shapes
                difference, restored = _reason(error), None
            if restored is None:
                failed[step.number] = difference
                continue
            self._set_aside(failed)
            for other in self._steps.values():
                if not other.finished and other.number != step.number:
                    logging.error("Step %d has no valid manifest: step %d is used.", other.number, step.number)
            self._check_data(metadata or {})
            if manifest.records_changed(self.directory / str(step.number), self._records):
                logging.error(
                    "%s is damaged: records up to step %d are not those of the run.", self._records, step.number
                )
            if not step.finished:
                self._finish(step.number)
            return step.number, restored
        if failed:
            raise UserError(
                f"None of the {len(failed)} checkpoints in {self.directory} can be restored "
                f"({failed[max(failed)]}). Move them away to start again, or take another --workdir."
            )
        return None

    def _restore(self, step: int, target: Items) -> Items:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        return dict(self._checkpointer.restore(self.directory / str(step), args=ocp.args.Composite(**items)))

    def _finish(self, step: int) -> None:
        logging.error(
            "Step %d has no manifest, because the process that saved it was killed, and no other step is intact: it is "
            "used, but damage to it would not have been noticed.",
            step,
        )
        if self._primary:
            with errors_in_one_line(self.directory):
                records = manifest.describe_records(self._records)
                manifest.write(self.directory / str(step), step, None, self._metadata["config"], records)
        self._steps[step] = Step(step)

    @contextlib.contextmanager
    def _primary_first(self) -> Iterator[None]:
        """The first process does what is in the block, and then the others do."""
        if not self._primary:
            wait_for_all("first")
        yield
        if self._primary:
            wait_for_all("first")

    def _remove_leftovers(self) -> None:
        for path in self.directory.iterdir() if self._primary else ():
            if path.name.endswith(_LEFTOVERS):
                shutil.rmtree(path, ignore_errors=True)

    def _check_directory(self) -> None:
        if not self.directory.is_dir() or not os.path.samestat(self.directory.stat(), os.fstat(self._opened)):
            with contextlib.suppress(OSError):  # they are empty if Orbax has created them again
                self.directory.rmdir()
                self.directory.parent.rmdir()
            raise UserError(
                f"{self.directory} was deleted or replaced during training. Bring it back, or repeat the command to "
                "start again."
            )

    def _check_data(self, metadata: dict[str, Any]) -> None:
        if other_images(metadata.get(FINGERPRINT), self._metadata.get(FINGERPRINT)):
            raise UserError(
                f"The training images are not those that the run in {self.directory.parent} began with: bring them "
                "back, or take another --workdir."
            )

    def _set_aside(self, failed: dict[int, str]) -> None:
        for step, reason in failed.items():
            del self._steps[step]
            if not self._primary:
                continue
            target = self.directory.with_name(self.directory.name + ".damaged") / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
            logging.error("Step %d is damaged (%s): moved to %s; another one is used.", step, reason, target)

    def _delete(self, step: int) -> None:
        if self._steps.pop(step, None) and self._primary:
            deleted = (self.directory / str(step)).rename(self.directory / f"{step}{_DELETED}")
            shutil.rmtree(deleted, ignore_errors=True)


@jax.jit
def _copy(items: Items) -> Items:
    """Returns arrays that no later step overwrites."""
    return jax.tree.map(jnp.copy, items)


def restore_model(
    directory: Path, step: int | str, difference: Callable[[dict[str, Any]], str] = lambda _: ""
) -> tuple[int, dict[str, PyTree], dict[str, Any], str]:
    """Reads what inference needs, onto one device, whatever the devices that it was saved from.

    Args:
      directory: where the steps are; nothing is written there.
      step: its number, "latest", or "best" by validation accuracy. Where the latest or the best is damaged, the newest
        intact one is read.
      difference: see `Checkpoints`.

    Returns:
      The step, the variables {params, batch_stats}, the metadata, and why it is another step than the one asked for; ""
      where it is not.

    Raises:
      UserError: no such step, or it is damaged.
    """
    directory = directory.absolute()
    for _ in range(3):  # training may delete a step that is being read; there is a newer one then
        steps = manifest.inspect(directory)
        flaws, foreign = {each.number: each.damage for each in steps if each.damage}, ""
        for candidate in _choose(directory, steps, step):
            folder = directory / str(candidate.number)
            try:
                metadata = _read_metadata(folder)
                flaw = foreign = difference(metadata)
                model = None if foreign else _read_model(folder)
            except Exception as error:  # what damage raises depends on the byte it hit
                flaw, model = _reason(error), None
            if model is not None:
                return candidate.number, model, metadata, _notice(candidate, steps, step, flaws)
            flaws[candidate.number] = flaw
            if not folder.exists():
                break
        else:
            break
    if foreign:  # all of them are, so the configuration is the odd one
        number, model, metadata, notice = restore_model(directory, step)
        return number, model, metadata, f"{CONFIG_FILE} is not that of the checkpoints ({foreign}). {notice}".strip()
    intact = [str(each.number) for each in steps if each.number not in flaws]
    asked = step if isinstance(step, int) else max(flaws)
    raise UserError(
        f"The checkpoint of step {asked} in {directory} cannot be read ({flaws[asked]}). "
        + (f"Take another step of {', '.join(intact)}." if intact else "Train again in another --workdir.")
    )


def _choose(directory: Path, steps: list[Step], asked: int | str) -> list[Step]:
    """Returns the steps to try, in this order; a step that is asked for by number has no substitute."""
    if not steps:
        raise UserError(f"There is no checkpoint in {directory}: train first, or take another --workdir.")
    if isinstance(asked, int):
        chosen = [step for step in steps if step.number == asked]
        if not chosen:
            numbers = ", ".join(str(step.number) for step in steps if not step.damage)
            raise UserError(f"There is no step {asked} in {directory}; it has {numbers}, best and latest.")
        return [step for step in chosen if not step.damage]
    trusted = _in_order_of_trust(steps)
    sound = [step for step in trusted if step.sound]
    if asked == "best" and sound and manifest.best(sound).score > -math.inf:
        trusted.insert(0, manifest.best(sound))
    return trusted


def _in_order_of_trust(steps: Any) -> list[Step]:
    """Returns the steps that may be read: those with a manifest first, and of these the newest."""
    return sorted((step for step in steps if not step.damage), key=lambda s: (s.finished, s.number), reverse=True)


def _notice(taken: Step, steps: list[Step], asked: int | str, flaws: dict[int, str]) -> str:
    """Returns one line on the steps that could not be used, and on one that cannot be checked; "" in order."""
    reasons = [f"step {number} is damaged ({reason})" for number, reason in flaws.items()]
    reasons += [f"step {step.number} has no manifest" for step in steps if not step.finished and not step.damage]
    if isinstance(asked, int):  # what concerns other steps is of no interest
        reasons = [] if taken.finished else [f"step {taken.number} has no manifest"]
    if not reasons:
        return ""
    text = "; ".join(reasons)
    return f"{text[0].upper()}{text[1:]}: step {taken.number} is used" + ("." if taken.finished else ", unchecked.")


def _sync(folder: Path, records: Path) -> None:
    """Waits until a step is on the disk, before it gets its name: disks may store the new name first."""
    files.sync(*(path for path in (records, *folder.rglob("*"), folder) if path.exists()))


def _size(items: Items) -> int:
    """Returns about how many bytes a step takes, with what Orbax notes about each array."""
    return sum(leaf.nbytes + 4096 for leaf in jax.tree.leaves(items)) + 2**16


def _read_model(folder: Path) -> dict[str, PyTree]:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder / "model", args=ocp.args.StandardRestore(fallback_sharding=on_one_device()))


def _read_metadata(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / "metadata" / "metadata")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
