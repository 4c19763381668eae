"""Records of a run: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cnn_jax.errors import UserError
from cnn_jax.workdir.layout import METRICS_FILE, TENSORBOARD_FOLDER

_TAIL = 2**16  # bytes at the end of metrics.jsonl that hold at least one record


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
    """`MetricWriter` on the protocol buffers of tensorboardX, which needs no TensorFlow.

    Its own `SummaryWriter` writes in a thread, where the error of a full disk ends in a traceback and then a deadlock.
    """

    def __init__(self, directory: Path, first_step: int):
        """Opens an event file; TensorBoard then hides what an earlier one holds after `first_step`."""
        with _without_torch():
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2.Event, summary
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(first_step + 1, session_log=start)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""
        for name, value in scalars.items():
            self._write(step, summary=self._summary.scalar(name, value))
        self.flush()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration as a text."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in hparams.items())
        self.write_texts(0, {"configuration": f"| key | value |\n|---|---|\n{rows}"})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts."""
        for name, text in texts.items():
            self._write(step, summary=self._summary.text(name, text))
        self.flush()

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and ends."""
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Stops tensorboardX from importing PyTorch, which it does where it is installed: two seconds for nothing."""
    unused = "torch" not in sys.modules
    if unused:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # an import now fails as if it were not installed, and tensorboardX does without
    try:
        yield
    finally:
        if unused:
            del sys.modules["torch"]


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
          first_step: the step from which the run resumes.
        """
        path = workdir / METRICS_FILE
        # A process that was killed may have left half a line: the next record must not be glued to it.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        self._file = path.open("a")
        if torn:
            self._file.write("\n")
        self._writer = make_writer(tensorboard, workdir / TENSORBOARD_FOLDER, first_step)

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
        """Writes a record of numbers, and of lists with one number per seed; in JSON, what is not finite is null."""
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


def last_record(workdir: Path) -> dict[str, Any] | None:
    """Returns the record of a run that was written last, reading only the end of the file; None without records."""
    try:
        with (workdir / METRICS_FILE).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # torn, or cut off at the beginning of what was read
            continue
        if isinstance(record, dict) and "epoch" in record:
            return record
    return None


def scores_on_test(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of the test split, which a finished run has; None of an unfinished one."""
    return next((record for record in reversed(records) if record["split"] == "test"), None)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their steps; empty where there are none.

    A run that was killed repeats the steps since its last checkpoint, with the same numbers, and appends them again:
    of records of the same step and split the last one counts. A torn line is left out.
    """
    path = workdir / METRICS_FILE
    records = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            step, split = record["step"], record["split"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(step, int) and isinstance(split, str):
            records[step, split] = record
    return sorted(records.values(), key=lambda record: record["step"])
