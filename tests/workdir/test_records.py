import json

from cnn_jax.workdir.layout import METRICS_FILE
from cnn_jax.workdir.records import Summaries, last_record, read_metrics, scores_on_test


def test_records_are_json_lines_in_order(tmp_path):
    with Summaries(tmp_path) as summaries:
        summaries.record(5, 0.5, "train", {"loss": 1.5})
        summaries.record(5, 1, "validation", {"loss": float("nan"), "accuracy": 0.5})
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines == [
        {"step": 5, "epoch": 0.5, "split": "train", "loss": 1.5},
        {"step": 5, "epoch": 1, "split": "validation", "loss": None, "accuracy": 0.5},
    ]
    assert read_metrics(tmp_path) == lines


def test_a_torn_line_costs_only_itself(tmp_path):
    with Summaries(tmp_path) as summaries:
        summaries.record(1, 1, "train", {"loss": 1.0})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 2, "epo')
    with Summaries(tmp_path) as summaries:
        summaries.record(2, 2, "train", {"loss": 2.0})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 2.0]


def test_repeated_steps_count_once(tmp_path):
    for loss in (1.0, 3.0):
        with Summaries(tmp_path) as summaries:
            summaries.record(1, 1, "train", {"loss": loss})
            summaries.record(1, 1, "validation", {"loss": loss})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [3.0, 3.0]
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 4


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_last_record_is_read_from_the_end_of_the_file(tmp_path):
    assert last_record(tmp_path) is None
    path = tmp_path / METRICS_FILE
    path.write_text("".join(f'{{"step": {step}, "epoch": 1, "split": "train"}}\n' for step in range(5000)))
    assert path.stat().st_size > 2**17
    assert last_record(tmp_path)["step"] == 4999
    with path.open("a") as file:
        file.write('{"step": 5000, "spl')  # torn: the process was killed
    assert last_record(tmp_path)["step"] == 4999
    path.write_text("no record\n")
    assert last_record(tmp_path) is None


def test_a_run_that_goes_on_after_its_test_is_not_finished():
    def record(step, split):
        return {"step": step, "split": split}

    first = [record(5, "train"), record(5, "validation"), record(5, "test")]
    assert scores_on_test(first) == record(5, "test")
    second = [*first, record(10, "train")]
    assert scores_on_test(second) is None
    assert scores_on_test([*second, record(10, "test")]) == record(10, "test")
    assert scores_on_test([]) is None
