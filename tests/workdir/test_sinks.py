"""Loggers of metrics; Weights & Biases and MLflow offline, where they are installed."""

import csv
import importlib.util
import sys

import pytest
from tensorboard_events import read_scalars

from cnn_jax.errors import UserError
from cnn_jax.workdir.records import Summaries, read_metrics
from cnn_jax.workdir.sinks import CsvWriter, MetricWriter, Sinks, make_sinks


def needs(package):
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is not installed")


def record(workdir, loggers, steps, first_step=0):
    """Records a loss per step, and an accuracy on the validation split, and returns the step of the last record."""
    with Summaries(workdir, "off", loggers, first_step) as summaries:
        if not first_step:
            summaries.describe({"batch_size": 32, "model.name": "cnn"}, {"model": "a table"})
        for step in steps:
            summaries.record(step, step / 2, "train", {"loss": 1 / step, "images_per_second": 10.0} if step > 1 else {})
            summaries.record(step, step / 2, "validation", {"accuracy": 0.5, "lanes": [1, 2]})
    return step


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def offline_records(file):
    """The records in a file of Weights & Biases: seven bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        if left < 7 or not kind:
            position += left
            continue
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


class Failing:
    """A writer that fails when it writes numbers."""

    def __init__(self):
        self.calls = 0

    def write_scalars(self, step, scalars):
        self.calls += 1
        raise OSError("no space left\non device")

    def write_hparams(self, hparams):
        pass

    def write_texts(self, step, texts):
        pass

    def flush(self):
        pass

    def close(self):
        raise AssertionError("was left out")


def test_tensorboard_events_hold_the_same_numbers(tmp_path):
    with Summaries(tmp_path, "tensorboardX") as summaries:
        summaries.describe({"batch_size": 32}, {"model": "a table"})
        summaries.record(7, 1, "train", {"loss": 0.5, "accuracy": 0.25})
    assert read_scalars(tmp_path / "tensorboard") == {(7, "train/loss"): 0.5, (7, "train/accuracy"): 0.25}


def test_a_table_has_a_column_per_number(tmp_path):
    record(tmp_path, ["csv"], [1, 2])
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines()[0] == "step,validation/accuracy,train/loss,train/images_per_second"
    assert [row["train/loss"] for row in rows(tmp_path)] == ["", "", "0.5", ""]
    assert [row["validation/accuracy"] for row in rows(tmp_path)] == ["", "0.5", "", "0.5"]


def test_a_resumed_run_repeats_no_row(tmp_path):
    record(tmp_path, ["csv"], [1, 2, 3])
    whole = (tmp_path / "metrics.csv").read_text()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,0.")  # the process was killed
    record(tmp_path, ["csv"], [2, 3], first_step=1)
    assert (tmp_path / "metrics.csv").read_text() == whole
    record(tmp_path, ["csv"], [2])  # from the beginning
    assert [row["step"] for row in rows(tmp_path)] == ["2", "2"]


def test_a_logger_that_fails_is_left_out_with_a_line(tmp_path, capsys):
    failing, others = Failing(), CsvWriter(tmp_path / "metrics.csv", 0)
    sinks = Sinks({"one": lambda: failing, "two": lambda: others, "three": lambda: 1 / 0})
    for step in (1, 2):
        sinks.write_scalars(step, {"loss": 0.5})
    sinks.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and failing.calls == 1
    assert lines[0].startswith("Warning: three receives no more metrics (division by zero)")
    assert lines[1].startswith("Warning: one receives no more metrics (no space left on device)")
    assert len(rows(tmp_path)) == 2


def test_a_run_goes_on_where_tensorboards_folder_cannot_be_written(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    with Summaries(tmp_path, "tensorboardX") as summaries:
        summaries.record(1, 1, "train", {"loss": 0.5})
    assert capsys.readouterr().err.startswith("Warning: tensorboardX receives no more metrics (")
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    "tensorboard, loggers, module, extra",
    [
        ("clu", [], "clu.metric_writers", "tensorflow"),
        ("off", ["wandb"], "wandb", "wandb"),
        ("off", ["mlflow"], "mlflow", "mlflow"),
    ],
)
def test_a_missing_package_is_asked_for(tmp_path, monkeypatch, tensorboard, loggers, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"cnn_jax\[{extra}\]"):
        make_sinks(tmp_path, tensorboard, loggers, 0)


def test_all_have_clus_interface(tmp_path):
    assert isinstance(Sinks({}), MetricWriter)
    assert isinstance(CsvWriter(tmp_path / "metrics.csv", 0), MetricWriter)


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")  # of its many dependencies
def test_mlflow_without_a_server(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workdir = tmp_path / "run"
    workdir.mkdir()
    record(workdir, ["mlflow"], [1, 2, 3])
    record(workdir, ["mlflow"], [3, 4], first_step=2)
    client = mlflow.MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'cnn_jax'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"batch_size": "32", "model.name": "cnn"}
    assert run.data.tags["mlflow.note.content"] == "## model\na table"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {(metric.step, metric.value) for metric in history} == {(2, 1 / 2), (3, 1 / 3), (4, 1 / 4)}


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(tmp_path, monkeypatch, capsys):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    workdir.mkdir()
    record(workdir, ["wandb"], [1, 2, 3])
    record(workdir, ["wandb"], [3, 4], first_step=2)
    assert "Warning" not in capsys.readouterr().err
    losses, runs = set(), set()
    for file in workdir.glob("wandb/offline-run-*/*.wandb"):
        for entry in map(Record.FromString, offline_records(file)):
            if entry.WhichOneof("record_type") == "run":
                runs.add((entry.run.run_id, entry.run.project, entry.run.display_name))
            items = {item.key or ".".join(item.nested_key): item.value_json for item in entry.history.item}
            if "train/loss" in items:
                losses.add((int(items["step"]), float(items["train/loss"])))
    assert len(runs) == 1 and next(iter(runs))[1:] == ("cnn_jax", "run")
    assert losses == {(2, 1 / 2), (3, 1 / 3), (4, 1 / 4)}
