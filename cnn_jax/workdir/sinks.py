"""Where metrics go besides metrics.jsonl: TensorBoard, CSV, Weights & Biases, MLflow, behind clu's interface."""

import contextlib
import csv
import importlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cnn_jax.errors import UserError
from cnn_jax.utils import files
from cnn_jax.workdir.layout import CSV_FILE, LOGGERS_FILE, TENSORBOARD_FOLDER

_LONGEST_MLFLOW_VALUE = 6000  # characters of a parameter
_MLFLOW_BATCH = 100  # parameters per request
_LONGEST_MLFLOW_NOTE = 5000  # characters


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


class CsvWriter:
    """`MetricWriter` of metrics.csv: one row per record, one column per number, empty where a record lacks it."""

    def __init__(self, path: Path, first_step: int):
        """Reads the rows up to `first_step`; a resumed run writes the later ones again."""
        self._path, self._columns, self._rows = path, ["step"], []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or self._columns)
                self._rows = [row for row in reader if not _is_after(row, first_step)]
        self._file = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a row; the whole file is written again if it needs another column."""
        new = [name for name in scalars if name not in self._columns]
        self._columns += new
        self._rows.append({"step": step, **scalars})
        if self._file is None or new:
            self.close()
            with files.replacing(self._path) as file:
                writer = csv.DictWriter(file, self._columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self._rows)
            self._file = self._path.open("a", newline="", encoding="utf-8")
        else:
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(self._rows[-1])
            self._file.flush()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Does nothing: config.json has the configuration."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Does nothing: a table of numbers has no place for texts."""

    def flush(self) -> None:
        """Does nothing: every row is flushed."""

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()


class WandbWriter:
    """`MetricWriter` on Weights & Biases, which reads its own environment variables (WANDB_MODE=offline, ...)."""

    def __init__(self, wandb: Any, workdir: Path, first_step: int):
        """Starts a run, named like the workdir, or resumes that of the workdir."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cnn_jax"),
            name=os.environ.get("WANDB_NAME", workdir.name),
            dir=os.environ.get("WANDB_DIR", str(workdir)),
            id=_run_of(workdir, "wandb", first_step, lambda: secrets.token_hex(4)),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        # A step of its own, because Weights & Biases drops numbers of a step that lies behind the last one.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""
        self._run.log({**scalars, "step": step})

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts."""
        self._run.summary.update(texts)

    def flush(self) -> None:
        """Does nothing: a process of Weights & Biases writes in the background."""

    def close(self) -> None:
        """Waits until all is on disk or, online, uploaded."""
        self._run.finish()


class MlflowWriter:
    """`MetricWriter` on MLflow: to $MLFLOW_TRACKING_URI, or without it to mlflow.db in the workdir."""

    def __init__(self, mlflow: Any, workdir: Path, first_step: int):
        """Starts a run, named like the workdir, or resumes that of the workdir."""
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # not that it creates its tables
        local = f"sqlite:///{workdir.absolute().as_posix()}/mlflow.db"
        self._entities = mlflow.entities
        self._client = client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cnn_jax")

        def start() -> str:
            experiment = client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else client.create_experiment(name)
            return client.create_run(number, run_name=workdir.name).info.run_id

        self._run = _run_of(workdir, "mlflow", first_step, start)
        client.update_run(self._run, status="RUNNING")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration."""
        params = [self._entities.Param(key, str(value)[:_LONGEST_MLFLOW_VALUE]) for key, value in hparams.items()]
        for first in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self._run, params=params[first : first + _MLFLOW_BATCH])

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts, as the run's description."""
        note = "\n\n".join(f"## {name}\n{text}" for name, text in texts.items())
        self._client.set_tag(self._run, "mlflow.note.content", note[:_LONGEST_MLFLOW_NOTE])

    def flush(self) -> None:
        """Does nothing: every call waits until its numbers are stored."""

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run)


class Sinks:
    """`MetricWriter` that passes everything on to several others.

    A writer that fails is dropped, with one line on standard error: a full disk or a lost connection there must not end
    the run.
    """

    def __init__(self, makers: Mapping[str, Callable[[], MetricWriter]]):
        """Opens the writers, which are given by name."""
        self._writers: dict[str, MetricWriter] = {}
        for name, make in makers.items():
            with self._failing(name):
                self._writers[name] = make()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers."""
        self._each("write_scalars", step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration."""
        self._each("write_hparams", hparams)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes named texts."""
        self._each("write_texts", step, texts)

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._each("flush")

    def close(self) -> None:
        """Flushes and ends."""
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, writer in list(self._writers.items()):
            with self._failing(name):
                getattr(writer, method)(*arguments)

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self._writers.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            line = f"Warning: {name} receives no more metrics ({reason}); training continues, metrics.jsonl has all."
            with contextlib.suppress(OSError):  # nobody may be reading
                print(line, file=sys.stderr)


def make_sinks(workdir: Path, tensorboard: str, loggers: Sequence[str], first_step: int) -> Sinks:
    """Returns the writers of a run.

    Args:
      workdir: the run's folder.
      tensorboard: the writer of TensorBoard events: "tensorboardX", "clu" or "off".
      loggers: further ones: "csv", "wandb", "mlflow".
      first_step: the step from which the run resumes.

    Raises:
      UserError: the package that one of them needs is not installed.
    """
    events = workdir / TENSORBOARD_FOLDER
    kinds: dict[str, Callable[[], MetricWriter]] = {
        "tensorboardX": lambda: TensorBoardWriter(events, first_step),
        "clu": lambda: _import("clu.metric_writers", "config.tensorboard=clu", "tensorflow").SummaryWriter(str(events)),
        "csv": lambda: CsvWriter(workdir / CSV_FILE, first_step),
        "wandb": lambda: WandbWriter(_import("wandb", "config.loggers=wandb", "wandb"), workdir, first_step),
        "mlflow": lambda: MlflowWriter(_import("mlflow", "config.loggers=mlflow", "mlflow"), workdir, first_step),
    }
    names = [*([] if tensorboard == "off" else [tensorboard]), *dict.fromkeys(loggers)]
    return Sinks({name: kinds[name] for name in names})


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


def _import(module: str, key: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{key} needs a package that is not installed: pip install 'cnn_jax[{extra}]', or choose another."
        ) from None


def _is_after(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row of metrics.csv is of a later step; of a torn row, which a killed process leaves, True."""
    try:
        return None in row.values() or int(row["step"]) > step
    except ValueError:
        return True


def _run_of(workdir: Path, logger: str, first_step: int, start: Callable[[], str]) -> str:
    """Returns a logger's identifier of the run in a workdir; a resumed run keeps it."""
    path = workdir / LOGGERS_FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if not first_step or logger not in known:
        known[logger] = start()
        with files.replacing(path) as file:
            file.write(json.dumps(known) + "\n")
    return known[logger]
