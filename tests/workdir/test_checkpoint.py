"""What is kept, what is restored, and what happens when a disk lies."""

import errno
import json
import math
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_jax.errors import UserError
from cnn_jax.training.state import TrainState
from cnn_jax.workdir import manifest
from cnn_jax.workdir.checkpoint import Checkpoints, restore_model

METADATA = {"class_names": ["cat", "dog"], "config": {"seed": 0}, "preprocessing": {"image_size": 32}}


def make_items(value: float, size: int = 300) -> dict:
    """The items of a state that the value determines."""
    params = {"dense": {"kernel": jnp.asarray(np.random.RandomState(int(value)).rand(size, 4), jnp.float32)}}
    opt_state = optax.sgd(0.1, 0.9).init(params)
    return TrainState(jnp.int32(value), params, {"bn": {"mean": jnp.full(3, value)}}, opt_state).items


def target(step):
    """What to restore to."""
    return make_items(0)


def without_statistics(items):
    return items | {"model": items["model"] | {"batch_stats": {}}}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def steps_of(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_round_trip(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        assert checkpoints.restore(target) is None
        checkpoints.save(7, make_items(7))
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        step, items = checkpoints.restore(target)
    assert step == 7
    assert_equal(items, make_items(7))


def test_without_statistics(tmp_path):
    """The baseline has no BatchNorm, so its batch_stats are empty."""
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, without_statistics(make_items(1)))
        _, items = checkpoints.restore(lambda _: without_statistics(make_items(0)))
        assert items["model"]["batch_stats"] == {}


def test_the_latest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step, score in enumerate([0.3, 0.9, 0.5, math.nan, 0.4, None, 0.6], 1):
            checkpoints.save(step, make_items(step), score)
            assert checkpoints.latest_step == step
        assert checkpoints.best_step == 2
        assert steps_of(tmp_path) == [2, 6, 7]


def test_a_step_is_written_while_its_buffers_are_used_again(tmp_path, monkeypatch):
    """A thread writes it; until then readers see the step before, and what comes next waits."""
    step = jax.jit(lambda items: jax.tree.map(lambda x: x + 1, items), donate_argnums=0)
    go, write = threading.Event(), manifest.write

    def late(*arguments):
        assert go.wait(60)
        write(*arguments)

    records = tmp_path / "metrics.jsonl"
    records.write_text("1\n")
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1), wait=False)
        assert checkpoints.latest_step == 1
        monkeypatch.setattr(manifest, "write", late)
        items = make_items(2)
        checkpoints.save(2, items, 0.5, wait=False)
        assert steps_of(directory) == [1]
        step(items)
        records.write_text("1\n2\n")
        go.set()
        assert checkpoints.latest_step == 2
        assert_equal(checkpoints.restore(target)[1], make_items(2))
        checkpoints.save(3, make_items(3), wait=False)
    assert steps_of(directory) == [2, 3]
    assert json.loads((directory / "2" / "manifest.json").read_text())["records"]["size"] == 2
    assert not manifest.records_changed(directory / "2", records)


@pytest.mark.parametrize("then", ["wait", "save", "restore", "latest_step", "leave"])
def test_an_error_in_the_thread_is_raised_by_what_follows(tmp_path, monkeypatch, then):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    def fail():
        with Checkpoints(tmp_path, METADATA) as checkpoints:
            checkpoints.save(1, make_items(1))
            monkeypatch.setattr(manifest, "write", full)
            checkpoints.save(2, make_items(2), wait=False)
            match then:
                case "wait":
                    checkpoints.wait()
                case "save":
                    checkpoints.save(3, make_items(3), wait=False)
                case "restore":
                    checkpoints.restore(target)
                case "latest_step":
                    assert checkpoints.latest_step

    with pytest.raises(UserError, match=r"^disk: No space left on device\."):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds out there which files are synced")
def test_a_step_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A disk that loses power has what was synced; of the rest it may have any part."""
    directory, events = tmp_path / "checkpoints", []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor):
        events.append(("synced", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renamed(path, target):
        events.append(("renamed", Path(target), {path, *path.rglob("*")}))
        return rename(path, target)

    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with Checkpoints(directory, METADATA) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_items(step))
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)
        checkpoints.save(3, make_items(3))
    kinds = [(event[0], event[1].name) for event in events]
    commit, deletion = kinds.index(("renamed", "3")), kinds.index(("renamed", "1.deleted"))
    before = {event[1] for event in events[:commit]}
    assert before == {*events[commit][2], tmp_path / "metrics.jsonl"}
    assert commit < kinds.index(("synced", "checkpoints")) < deletion


def test_nan_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step, score in enumerate([0.1, math.nan, math.nan, math.nan], 1):
            checkpoints.save(step, make_items(step), score)
        assert checkpoints.best_step == 1
        assert steps_of(tmp_path) == [1, 3, 4]


def test_without_scores_the_best_is_the_latest(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_items(step))
        assert checkpoints.best_step == 3
        assert steps_of(tmp_path) == [2, 3]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1), 0.5)
        checkpoints.save(1, make_items(2))
        assert_equal(checkpoints.restore(target)[1], make_items(1))


def test_inference_reads_model_and_metadata_alone(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step, score in [(3, 0.9), (4, 0.1), (5, 0.9), (6, math.nan)]:
            checkpoints.save(step, make_items(step), score)
    for asked, step in [("best", 5), ("latest", 6), (6, 6)]:
        number, model, metadata, notice = restore_model(tmp_path, asked)
        assert (number, notice) == (step, "") and metadata == METADATA
        assert_equal(model, make_items(step)["model"])
    with pytest.raises(UserError, match=r"no step 4.*5, 6, best and latest"):
        restore_model(tmp_path, 4)
    with pytest.raises(UserError, match="no checkpoint in"):
        restore_model(tmp_path / "nothing", "best")


def test_inference_falls_back_to_the_newest_intact_step_and_says_so(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step, score in [(3, 0.9), (4, 0.1), (5, 0.2)]:
            checkpoints.save(step, make_items(step), score)
    before = steps_of(tmp_path)
    damage(tmp_path, 3)
    number, model, _, notice = restore_model(tmp_path, "best")
    assert number == 5 and notice.startswith("Step 3 is damaged (") and notice.endswith("): step 5 is used.")
    assert_equal(model, make_items(5)["model"])
    with pytest.raises(UserError, match=r"step 3 .* cannot be read .*damaged or missing.*Take another step of 4, 5\."):
        restore_model(tmp_path, 3)
    damage(tmp_path, 5)
    assert restore_model(tmp_path, "latest")[0] == 4
    assert restore_model(tmp_path, 4)[3] == ""  # what was asked for
    damage(tmp_path, 4)
    with pytest.raises(UserError, match=r"step 5 .* cannot be read .*Train again"):
        restore_model(tmp_path, "best")
    assert steps_of(tmp_path) == before  # readers move nothing


def test_saved_on_four_devices_restored_on_one(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(make_items(5), NamedSharding(mesh, PartitionSpec()))
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(5, spread)
        _, items = checkpoints.restore(target)
    assert_equal(items, make_items(5))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(items)} == {1}


def damage(directory, step):
    """Flips one bit in the middle of the largest file of a step, which Orbax alone restores in silence."""
    victim = max(
        (path for path in (directory / str(step)).rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))


def test_a_flipped_bit_is_noticed_and_the_step_before_is_taken(tmp_path, caplog):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
        checkpoints.save(2, make_items(2))
    damage(tmp_path, 2)
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        step, items = checkpoints.restore(target)
    assert step == 1
    assert_equal(items, make_items(1))
    assert "Step 2 is damaged" in caplog.text
    assert steps_of(tmp_path) == [1]
    assert (tmp_path.with_name(tmp_path.name + ".damaged") / "2").is_dir()


def test_a_damaged_score_is_set_aside_as_well(tmp_path):
    """Orbax reads the scores of all steps when it starts."""
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1), 0.5)
        checkpoints.save(2, make_items(2), 0.6)
    (tmp_path / "1" / "metrics" / "metrics").write_text("{")
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        assert checkpoints.restore(target)[0] == 2
        assert checkpoints.best_step == 2
    assert (tmp_path.with_name(tmp_path.name + ".damaged") / "1").is_dir()


def test_a_changed_score_is_damage(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1), 0.5)
        checkpoints.save(2, make_items(2), 0.6)
    path = tmp_path / "2" / "manifest.json"
    path.write_text(path.read_text().replace("0.6", "0.1"))
    (tmp_path / "1" / "metrics" / "metrics").write_text('{"score": 0.9}')
    number, _, _, notice = restore_model(tmp_path, "best")
    assert number == 2
    assert notice == (
        "Step 1 is damaged (metrics/metrics is damaged or missing); step 2 has no manifest: step 2 is used, unchecked."
    )


def test_swapped_and_foreign_steps_are_not_used(tmp_path, caplog):
    for name, seed in [("run", 0), ("other", 1)]:
        with Checkpoints(tmp_path / name, METADATA | {"config": {"seed": seed}}) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, make_items(step))
    run, other = tmp_path / "run", tmp_path / "other"

    def difference(metadata):
        return "" if metadata["config"]["seed"] == 0 else "config.seed is 1 there"

    (run / "2").rename(tmp_path / "2")
    (other / "2").rename(run / "2")
    assert restore_model(run, "latest", difference)[0] == 1
    number, *_, notice = restore_model(other, "latest", difference)
    assert (number, notice) == (1, "config.json is not that of the checkpoints (config.seed is 1 there).")
    with Checkpoints(run, METADATA, difference) as checkpoints:
        assert checkpoints.restore(target)[0] == 1
    assert "Step 2 is damaged (config.seed is 1 there)" in caplog.text and steps_of(run) == [1]
    (run / "1").rename(run / "3")
    (tmp_path / "2").rename(run / "2")
    assert restore_model(run, "latest")[3] == "Step 3 is damaged (it is step 1, renamed): step 2 is used."


def test_all_damaged_is_an_error_and_nothing_is_deleted(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
    damage(tmp_path, 1)
    with Checkpoints(tmp_path, METADATA) as checkpoints, pytest.raises(UserError, match="damaged or missing"):
        checkpoints.restore(target)


def test_another_network_is_an_error(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
        with pytest.raises(UserError, match="None of the 1 checkpoints"):
            checkpoints.restore(lambda _: make_items(0, size=301))


def test_what_kills_leave_is_ignored_and_removed(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
    for name in ("2.partial", "2.partial.orbax-checkpoint-tmp", "2.orbax-checkpoint-tmp", "0.deleted"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    (tmp_path / "²").mkdir()  # a digit, but no number
    assert restore_model(tmp_path, "latest")[0] == 1
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "²"]
        assert checkpoints.restore(target)[0] == 1
        checkpoints.save(2, make_items(2))
    assert manifest.inspect(tmp_path) == [manifest.Step(1), manifest.Step(2)]


@pytest.mark.parametrize("content", [None, "", "{", "null", "5", "[1]", "{}"])
@pytest.mark.parametrize("name", ["manifest.json", "sha256.json"])
def test_a_step_without_manifest_is_neither_trusted_nor_lost(tmp_path, caplog, name, content):
    """As the earlier versions left it if they were killed between Orbax's commit and their checksums."""
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
        checkpoints.save(2, make_items(2))
    (tmp_path / "2" / "manifest.json").unlink()
    if content is not None:
        (tmp_path / "2" / name).write_text(content)
    assert restore_model(tmp_path, "latest")[3] == "Step 2 has no manifest: step 1 is used."
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        assert checkpoints.restore(target)[0] == checkpoints.latest_step == 1
        checkpoints.save(2, make_items(2))  # in place of the other
        assert checkpoints.latest_step == 2
    assert "Step 2 has no valid manifest: step 1 is used." in caplog.text and "damaged" not in caplog.text
    assert not tmp_path.with_name(tmp_path.name + ".damaged").exists()


def test_the_only_step_without_manifest_is_used_and_finished(tmp_path, caplog):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(2, make_items(2))
    (tmp_path / "2" / "manifest.json").unlink()
    assert restore_model(tmp_path, "latest")[3] == "Step 2 has no manifest: step 2 is used, unchecked."
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        step, items = checkpoints.restore(target)
    assert step == 2 and "Step 2 has no manifest" in caplog.text
    assert_equal(items, make_items(2))
    assert restore_model(tmp_path, "latest")[3] == ""


def test_checksums_of_earlier_versions_are_checked(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        for step, score in [(1, 0.9), (2, 0.1)]:
            checkpoints.save(step, make_items(step), score)
    for step in ("1", "2"):
        path = tmp_path / step / "manifest.json"
        files = json.loads(path.read_text())["files"]
        (tmp_path / step / "sha256.json").write_text(json.dumps({name: file["sha256"] for name, file in files.items()}))
        path.unlink()
    assert restore_model(tmp_path, "best")[::3] == (1, "")
    damage(tmp_path, 1)
    assert restore_model(tmp_path, "best")[0] == 2


def test_a_directory_that_vanishes_is_an_error_and_not_made_anew(tmp_path):
    with Checkpoints(tmp_path / "run", METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
        (tmp_path / "run").rename(tmp_path / "gone")
        with pytest.raises(UserError, match=r"run was deleted or replaced during training"):
            checkpoints.save(2, make_items(2))
    assert not (tmp_path / "run").exists()


def test_a_directory_that_vanishes_during_a_save_is_the_same_error(tmp_path, monkeypatch):
    write = manifest.write

    def vanish(folder, *arguments):
        shutil.rmtree(tmp_path / "run")
        folder.mkdir(parents=True)  # as Orbax does
        write(folder, *arguments)

    monkeypatch.setattr(manifest, "write", vanish)
    lost = pytest.raises(UserError, match=r"checkpoints was deleted or replaced during training")
    with Checkpoints(tmp_path / "run" / "checkpoints", METADATA) as checkpoints, lost:
        checkpoints.save(2, make_items(2))
    assert not (tmp_path / "run").exists()
