"""Records of a run: metrics.jsonl, and the same numbers for TensorBoard and other loggers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.utils import files
from cnn_jax.workdir.layout import METRICS_FILE
from cnn_jax.workdir.sinks import make_sinks

_TAIL = 2**16  # bytes at the end of metrics.jsonl that hold at least one record


class Summaries:
    """Appends records to `metrics.jsonl` and sends the same numbers to loggers. Use it in a `with` statement."""

    def __init__(self, workdir: Path, tensorboard: str = "off", loggers: Sequence[str] = (), first_step: int = 0):
        """Opens the files.

        Args:
          workdir: the run's folder.
          tensorboard: see `cnn_jax.workdir.sinks.make_sinks`.
          loggers: likewise.
          first_step: the step from which the run resumes.
        """
        path = workdir / METRICS_FILE
        # A process that was killed may have left half a line: the next record must not be glued to it.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        self._file = path.open("a")
        if torn:
            self._file.write("\n")
        self._sinks = make_sinks(workdir, tensorboard, loggers, first_step)

    def __enter__(self) -> "Summaries":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._sinks.close()

    def describe(self, hparams: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Tells the loggers what is being trained."""
        self._sinks.write_hparams(hparams)
        self._sinks.write_texts(0, texts)

    def record(self, step: int, epoch: float, split: str, values: Mapping[str, Any]) -> None:
        """Writes a record of numbers, and of lists with one number per seed; in JSON, what is not finite is null."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split} | _finite(values)) + "\n")
        self._file.flush()
        scalars = {f"{split}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        self._sinks.write_scalars(step, scalars)


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
            record = files.parse_json(line)
        except ValueError:  # torn, or cut off at the beginning of what was read
            continue
        if isinstance(record, dict) and "epoch" in record:
            return record
    return None


def scores_on_test(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the record of the test split, which a finished run has; None if the run is unfinished or continues."""
    last = max((record["step"] for record in records), default=0)
    return next((record for record in records if (record["split"], record["step"]) == ("test", last)), None)


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their steps; empty where there are none.

    A run that was killed repeats the steps since its last checkpoint, with the same numbers, and appends them again:
    of records of the same step and split the last one counts. A torn line is left out.
    """
    path = Path(workdir).expanduser() / METRICS_FILE
    records = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = files.parse_json(line)
            step, split = record["step"], record["split"]
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(step, int) and isinstance(split, str):
            records[step, split] = record
    return sorted(records.values(), key=lambda record: record["step"])
