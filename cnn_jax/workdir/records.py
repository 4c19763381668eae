"""What a run leaves to read: metrics.jsonl, TensorBoard events, a table of the network."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import flax.traverse_util
import jax
import jax.numpy as jnp
from clu import parameter_overview
from jaxtyping import PyTree

from cnn_jax.errors import UserError
from cnn_jax.models.trainable import FROZEN, TRAINED

METRICS_FILE = "metrics.jsonl"


@runtime_checkable
class MetricWriter(Protocol):
    """The part of `clu.metric_writers.MetricWriter` that training needs; clu's own need TensorFlow."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts."""

    def flush(self) -> None:
        """Waits until all is on disk."""

    def close(self) -> None:
        """Flushes and ends."""


class TensorBoardWriter:
    """`MetricWriter` on tensorboardX, which needs no TensorFlow."""

    def __init__(self, directory: Path, first_step: int):
        """Opens an event file; TensorBoard then hides what an earlier one holds after `first_step`."""
        self._writer = _summary_writer()(str(directory), purge_step=first_step + 1 if first_step else None)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration as a text."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in hparams.items())
        self._writer.add_text("configuration", f"| key | value |\n|---|---|\n{rows}", 0)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and ends."""
        self._writer.close()


def _summary_writer() -> type:
    """Imports tensorboardX, but not PyTorch, which it would import where it is installed: two seconds for nothing."""
    unused = "torch" not in sys.modules
    if unused:
        sys.modules["torch"] = None  # an import now fails as if it were not installed, and tensorboardX does without
    try:
        from tensorboardX import SummaryWriter
    finally:
        if unused:
            del sys.modules["torch"]
    return SummaryWriter


def make_writer(kind: str, directory: Path, first_step: int) -> MetricWriter | None:
    """Returns the writer of TensorBoard events: "tensorboardX", "clu" or "off".

    Raises:
      UserError: "clu" without TensorFlow.
    """
    if kind == "tensorboardX":
        return TensorBoardWriter(directory, first_step)
    if kind == "off":
        return None
    try:
        from clu import metric_writers
    except ImportError:
        raise UserError(
            "config.tensorboard is 'clu', whose writers need TensorFlow: pip install 'cnn_jax[tensorflow]', or take "
            "'tensorboardX'."
        ) from None
    return metric_writers.SummaryWriter(str(directory))


class Summaries:
    """Appends records to `metrics.jsonl` and sends the same numbers to TensorBoard. Use it in a `with` statement."""

    def __init__(self, workdir: Path, tensorboard: str = "off", first_step: int = 0):
        """Opens the files.

        Args:
          workdir: the run's folder.
          tensorboard: see `make_writer`.
          first_step: the step that the run goes on from.
        """
        path = workdir / METRICS_FILE
        # A process that was killed may have left half a line: the next record must not be glued to it.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        self._file = path.open("a")
        if torn:
            self._file.write("\n")
        self._writer = make_writer(tensorboard, workdir / "tensorboard", first_step)

    def __enter__(self) -> "Summaries":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        if self._writer:
            self._writer.close()

    def describe(self, hparams: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Tells TensorBoard what is being trained."""
        if self._writer:
            self._writer.write_hparams(hparams)
            self._writer.write_texts(0, texts)

    def record(self, step: int, epoch: float, split: str, values: Mapping[str, Any]) -> None:
        """Writes one record of numbers, and of lists of numbers a seed; what is not finite is null in JSON."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split} | _finite(values)) + "\n")
        self._file.flush()
        if self._writer:
            scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
            self._writer.write_scalars(step, {f"{split}/{name}": value for name, value in scalars.items()})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their steps; empty where there are none.

    A run that was killed repeats the steps since its last checkpoint, with the same numbers, and appends them again:
    of records of the same step and split the last one counts. A torn line is left out.
    """
    path = workdir / METRICS_FILE
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            records[record["step"], record["split"]] = record
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(records.values(), key=lambda record: record["step"])


@dataclasses.dataclass(frozen=True)
class _Row:
    """A line of `model_table`; the names are its headings."""

    parameters: str
    shape: str
    size: int
    trained: str


def model_table(
    model: Any, variables: PyTree, image_size: tuple[int, int], labels: PyTree | None = None, most_rows: int = 60
) -> str:
    """Returns a table of the parameters, with the floating-point operations of one image's forward pass.

    Args:
      model: the network.
      variables: {params, batch_stats}.
      image_size: height and width of what it sees.
      labels: of a `cnn_jax.models.trainable.Partition`: which parameters are trained; None for all.
      most_rows: a network of more parameter arrays is shown by modules.
    """
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False))
    cost = forward.lower(variables, images).cost_analysis() or {}
    flops = f"{cost['flops'] / 1e6:,.3g} million FLOPs an image" if "flops" in cost else "FLOPs unknown"
    params = flax.traverse_util.flatten_dict(variables["params"])
    names = flax.traverse_util.flatten_dict(labels) if labels else dict.fromkeys(params, TRAINED)
    depth = max(map(len, params)) if len(params) <= most_rows else 2
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in sorted(params, key=_natural):
        groups.setdefault(path[:depth], []).append(path)
    rows = [
        _row("/".join(group), [params[p] for p in paths], {names[p] for p in paths}) for group, paths in groups.items()
    ]
    total = sum(row.size for row in rows)
    trained = sum(int(params[path].size) for path in params if names[path] != FROZEN)
    count = f"Total: {total:,}" + (f", of which trained: {trained:,}" if trained != total else "")
    return f"{parameter_overview.make_table(rows)}\n{count}\n{type(model).__name__}: {flops} (forward)"


def _natural(path: tuple[str, ...]) -> list[Any]:
    """A key that sorts block2 before block10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", "/".join(path))]


def _row(name: str, leaves: list[Any], labels: set[str]) -> _Row:
    shape = str(tuple(leaves[0].shape)) if len(leaves) == 1 else f"{len(leaves)} arrays"
    return _Row(name, shape, sum(int(leaf.size) for leaf in leaves), " and ".join(sorted(labels)))
