"""Images that are decoded while the steps run: the same numbers as with all in memory, in bounded memory."""

import functools
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from conftest import stage
from whole_runs import assert_same_run, interrupt_at, make_config, records

from cnn_jax import data
from cnn_jax.data import stream
from cnn_jax.data.pipeline import Pipeline, Splits
from cnn_jax.data.stream import AHEAD, Reader, Streamed, ahead, identity
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train

STEPS = 200


@pytest.fixture(scope="module")
def dataset():
    return data.load(make_config().data)


def train_to(dataset, stop, **changes):
    """The state after so many steps, the numbers of each chunk, and the scores on the validation images."""
    run = Experiment(make_config(epochs=16, **changes), dataset)
    now, state, numbers = 0, run.init(), []
    while now < stop:
        now, state, values = run.train_chunk(state, now)
        numbers.append(values)
    return jax.device_get(state), numbers, run.evaluate(state.variables, "validation"), run.splits.streamed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": 3, "data__class_weights": "balanced", "augment__flip": False, "augment__alternate_flip": True},
        {"accumulate": 2, "mesh__data": 2, "diagnostics": True, "sharpness_every": 7},
    ],
)
def test_the_same_bits_as_with_all_images_in_memory(dataset, changes):
    stop = 25 if changes else STEPS
    *resident, held = train_to(dataset, stop, data__stream="never", **changes)
    *streamed, decoded = train_to(dataset, stop, data__stream="always", **changes)
    assert decoded and not held
    jax.tree.map(np.testing.assert_array_equal, resident[0], streamed[0])
    assert resident[1:] == streamed[1:]


@pytest.mark.parametrize("layout", ["vmap", "devices"])
def test_seeds_side_by_side_take_the_same_rows(dataset, layout):
    place = Placement.choose(2, seed_layout=layout, devices=jax.devices()[:2])
    states = []
    for kind in ("never", "always"):
        run = Experiment(make_config(seeds=2, data__stream=kind), dataset, place=place)
        _, state, _ = run.train_chunk(run.init(), 0)
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_stopped_run_resumes_exactly_with_images_in_memory_or_not(tmp_path, monkeypatch, capsys):
    assert train(make_config(), str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        assert train(make_config(data__stream="always"), str(tmp_path / "run")) == 128 + 15
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18)
        assert train(make_config(data__stream="never"), str(tmp_path / "run")) == 128 + 15
    capsys.readouterr()
    assert train(make_config(data__stream="always"), str(tmp_path / "run")) == 0
    assert "bit-identical" not in capsys.readouterr().err
    assert_same_run(tmp_path / "run", tmp_path / "whole", 25)


def test_any_step_is_found_without_those_before(dataset, monkeypatch):
    run = Experiment(make_config(data__stream="always"), dataset)
    pipeline = run.pipeline(run.phases[0], None)
    taken = []
    monkeypatch.setattr(Reader, "__call__", recording(Reader.__call__, taken))
    row = next(iter(pipeline.rows(1_000_000, 1_000_001)))
    expected = run.plan.batch_size
    chosen = pipeline.order.rows(0, 1_000_000, 1_000_001)["index"][0]
    np.testing.assert_array_equal(row["image"], dataset.train.images()[chosen])
    np.testing.assert_array_equal(row["label"], dataset.train.labels[chosen])
    assert len(row["label"]) == expected and len(taken) <= AHEAD + 1


def recording(function, calls):
    @functools.wraps(function)
    def wrapper(self, positions):
        calls.append(positions)
        return function(self, positions)

    return wrapper


def test_decoding_continues_from_chunk_to_chunk(dataset, monkeypatch):
    run = Experiment(make_config(data__stream="always"), dataset)
    pipeline, taken = run.pipeline(run.phases[0], None), []
    monkeypatch.setattr(Reader, "__call__", recording(Reader.__call__, taken))
    for start in range(0, 20, 5):
        assert len(list(pipeline.rows(start, start + 5))) == 5
        pipeline = run.pipeline(run.phases[0], None)  # as a loop in a script may do
    assert len(taken) <= 20 + AHEAD  # none twice


def test_a_process_decodes_its_part_of_each_batch(dataset, monkeypatch):
    place, taken = Placement.choose(), []
    splits = Splits(dataset, place, stream="always")
    monkeypatch.setattr(Placement, "part", lambda self, size: slice(4, 8))
    monkeypatch.setattr(Reader, "__call__", recording(Reader.__call__, taken))
    examples = splits.examples("train")

    def choose(start, stop):
        index = np.arange(16 * start, 16 * stop, dtype=np.int32).reshape(-1, 16)
        return {"index": index, "mask": np.ones(index.shape, bool)}

    rows = examples.rows(choose, 0, 2, train=False)
    assert rows.shapes["image"].shape[0] == 16
    for number, row in enumerate(rows):
        assert row["index"].tolist() == [16 * number + each for each in range(4, 8)]
        assert {name: len(x) for name, x in row.items()} == dict.fromkeys(("index", "mask", "image", "label"), 4)
    assert [len(positions) for positions in taken] == [4, 4]


def test_one_process_has_all_of_a_batch():
    assert Placement.choose().part(16) == slice(0, 16)
    assert Placement.choose(devices=jax.devices()[:4], data=4).part(16) == slice(0, 16)


def test_few_results_are_computed_ahead_and_in_order():
    begun, most, lock = 0, 0, threading.Lock()

    def double(number):
        nonlocal begun
        with lock:
            begun += 1
        time.sleep(0.01 if number % 2 else 0)
        return 2 * number

    results = ahead(double, itertools.count(), 3)
    for taken, result in enumerate(itertools.islice(results, 20), 1):
        assert result == 2 * (taken - 1)
        most = max(most, begun - taken)
        assert begun - taken <= 3
    assert most > 0
    results.close()
    time.sleep(0.1)
    assert begun <= 23


def test_an_error_is_raised_where_its_result_is_due():
    def fail_at_two(number):
        if number == 2:
            raise UserError("two")
        return number

    results = ahead(fail_at_two, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="two"):
        next(results)


def folder_config(root, **changes):
    names = {"data__name": "folder", "data__dir": str(root), "data__train_examples": 0, "data__validation": 0.0}
    return make_config(**names | {"batch_size": 4, "epochs": 2, "data__validation": 6.0} | changes)


@pytest.fixture
def root(photographs):
    return photographs(
        *(f"{split}/{label}/{i:02}.png" for split in ("train", "test") for label in "ab" for i in range(9))
    )


def break_images(root, *names):
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:200])  # the header is intact
    return [str(root / name) for name in names]


def test_more_images_than_the_budget_are_streamed(root):
    dataset = data.load(folder_config(root).data)
    size = 36 * 8 * 8 * 3  # bytes
    for memory, streamed in ((size / 1e9, False), (0.99 * size / 1e9, True), (0.0, False)):
        run = Experiment(folder_config(root, data__memory=memory, data__image_size=8), dataset)
        assert run.splits.streamed is streamed
        assert [f"{memory:.3g} GB" in line for line in run.splits.remarks] == [True] * streamed


def test_the_default_budget_is_a_share_of_the_memory(monkeypatch):
    monkeypatch.setattr(stream, "total_memory", lambda: 8e9)
    assert stream.budget(0.0, Placement.choose()) == 2e9
    assert stream.budget(3.5, Placement.choose()) == 3.5e9


@pytest.mark.parametrize("kind", ["always", "never"])
def test_an_image_that_cannot_be_read_is_named(root, tmp_path, kind):
    (broken,) = break_images(root, "train/b/05.png")
    with pytest.raises(UserError, match=f"{broken}: damaged"):
        train(folder_config(root, data__stream=kind), str(tmp_path / "run"))


def test_files_that_are_no_images_are_named_before_training(root, tmp_path):
    for name in ("train/a/03.png", "test/b/01.png"):
        (root / name).write_bytes(b"text")
    with pytest.raises(UserError, match=r"2 images cannot be read:\n .*a/03.png: .*\n .*b/01.png: "):
        train(folder_config(root, data__stream="always"), str(tmp_path / "run"))
    assert not records(tmp_path / "run")


def test_images_that_cannot_be_read_are_skipped_and_counted(root, tmp_path, capsys, caplog):
    broken = break_images(root, "train/a/00.png", "train/b/05.png", "train/b/06.png", "test/a/08.png")
    for kind in ("always", "never"):
        workdir = tmp_path / kind
        with caplog.at_level("WARNING"):
            assert train(folder_config(root, data__stream=kind, data__on_bad_image="skip"), str(workdir)) == 0
        for path in broken:
            assert sum(f"Skipped: {path}: damaged" in message for message in caplog.messages) == 1
        caplog.clear()
        assert "Test split, 17 images (1 more cannot be read), after 2 epochs:" in capsys.readouterr().out
    assert_same_run_but_counts(tmp_path / "always", tmp_path / "never")
    held = records(tmp_path / "never")
    of_training = data.load(folder_config(root).data)
    in_split = {s: sum(part.name(i) in broken for i in range(len(part))) for s, part in splits_of(of_training).items()}
    assert in_split["test"] == 1 and sum(in_split.values()) == 4
    for record in held:
        assert record.get("unreadable", 0) == in_split[record["split"]]


def splits_of(dataset):
    return {split: getattr(dataset, split) for split in ("train", "validation", "test")}


def assert_same_run_but_counts(workdir, other):
    """A streamed run counts the images that it has met so far; after an epoch, these are all."""
    one, two = records(workdir), records(other)
    assert one[-1].get("unreadable") == two[-1].get("unreadable")
    for each in (*one, *two):
        each.pop("unreadable", None)
    assert one == two


def test_another_image_stands_for_one_that_cannot_be_read(root):
    dataset = data.load(folder_config(root, data__validation=0.0).data)
    names = [dataset.train.name(i) for i in range(len(dataset.train))]
    whole = dataset.train.images()
    break_images(root, "train/a/00.png", "train/b/07.png", "train/b/08.png")  # positions 0, 16 and 17, the last
    assert names[0].endswith("a/00.png") and names[16].endswith("b/07.png") and len(names) == 18
    read = Reader(dataset.train, skip=True)
    images = read(np.arange(18))
    assert read.unreadable == [0, 16, 17]
    expected = [1, *range(1, 16), 1, 1]
    np.testing.assert_array_equal(images, whole[expected])
    np.testing.assert_array_equal(read.labels(np.arange(18)), dataset.train.labels[expected])


def test_a_split_without_any_image_is_an_error(root):
    dataset = data.load(folder_config(root, data__validation=0.0).data)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="None of the 18 images"):
        Reader(dataset.train, skip=True)(np.arange(2))
    with pytest.raises(UserError, match="18 images cannot be read"):
        Splits(dataset, Placement.choose(), stream="always")


def test_a_run_does_not_resume_on_other_files(root, tmp_path, monkeypatch):
    config = folder_config(root, data__stream="always", steps_per_call=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert train(config, str(tmp_path / "run")) == 128 + 15
    path = root / "train/a/03.png"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"are not those that the run in .* began with"):
        train(config, str(tmp_path / "run"))


def test_what_identifies_images_that_are_not_decoded(root):
    def of(times, **changes):
        return identity(data.load(folder_config(root, **changes).data).train, times=times)

    before = of(False), of(True)
    assert before == (of(False), of(True)) and before[0] != of(False, data__image_size=16)
    path = root / "train/a/03.png"
    path.write_bytes(path.read_bytes())
    path.touch()
    assert of(False) == before[0] and of(True) != before[1]
    path.rename(path.with_name("other.png"))
    assert of(False) != before[0]


def test_features_of_streamed_images(dataset, tmp_path):
    """The features are those of images in memory, and so is all that is trained on them."""
    runs = []
    for kind in ("never", "always"):
        config = make_config("transfer_config", data__stream=kind, seeds=1)
        run = Experiment(config, dataset, tmp_path / kind)
        now, state, values = run.train_chunk(run.init(), 0)
        features = run.splits.features("train", lambda *_: pytest.fail("computed again"))
        runs.append((jax.device_get((state, features.shared)), values, run.evaluate(state.variables, "test", now)))
        assert run.phases[0].on_features and run.splits.streamed == (kind == "always")
    jax.tree.map(np.testing.assert_array_equal, runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_features_remember_which_images_cannot_be_read(root, tmp_path, monkeypatch):
    break_images(root, "train/a/00.png")
    changes = {"data__name": "folder", "data__dir": str(root), "data__train_examples": 0, "data__validation": 0}
    config = make_config("transfer_config", data__stream="always", data__on_bad_image="skip", **changes)
    found = []
    for _ in range(2):
        run = Experiment(config, data.load(config.data), tmp_path)
        examples = run.examples(run.phases[0], run.init().variables, "train")
        found.append(jax.device_get(examples.shared))
        assert examples.unreadable == [0] and run.splits.count_unreadable("train") == {"unreadable": 1}
        monkeypatch.setattr(Streamed, "batches", None)  # the second time they come from the disk
    jax.tree.map(np.testing.assert_array_equal, *found)
    np.testing.assert_array_equal(found[0]["features"][0], found[0]["features"][1])


def test_a_pipeline_is_what_the_loop_needs(dataset):
    run = Experiment(make_config(data__stream="always"), dataset)
    pipeline = run.pipeline(run.phases[0], None)
    assert isinstance(pipeline, Pipeline) and not jax.tree.leaves(pipeline.shared)
    assert stage("base").data.stream == "auto"
