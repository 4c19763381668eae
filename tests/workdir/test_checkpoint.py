"""What is kept, what is restored, and what happens when a disk lies."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_jax.errors import UserError
from cnn_jax.training.state import TrainState
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
        number, model, metadata = restore_model(tmp_path, asked)
        assert number == step and metadata == METADATA
        assert_equal(model, make_items(step)["model"])
    with pytest.raises(UserError, match=r"no step 4.*5, 6, best and latest"):
        restore_model(tmp_path, 4)
    with pytest.raises(UserError, match="no checkpoint in"):
        restore_model(tmp_path / "nothing", "best")
    (tmp_path / "6" / "metrics" / "metrics").write_text("{")
    with pytest.raises(UserError, match=r"metrics is damaged, so the best step is not known: take --step=latest"):
        restore_model(tmp_path, "best")
    damage(tmp_path, 6)
    with pytest.raises(UserError, match=r"step 6 .* cannot be read .*damaged or missing"):
        restore_model(tmp_path, "latest")


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
    (tmp_path / "2" / "metrics" / "metrics").write_text("{")
    with pytest.raises(UserError, match=r"are damaged \(metrics/metrics is damaged or missing\)"):
        Checkpoints(tmp_path, METADATA)
    assert steps_of(tmp_path) == [2]


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


def test_a_save_that_was_killed_is_ignored(tmp_path):
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        checkpoints.save(1, make_items(1))
    (tmp_path / "2.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    with Checkpoints(tmp_path, METADATA) as checkpoints:
        assert checkpoints.restore(target)[0] == 1
        checkpoints.save(2, make_items(2))
    assert json.loads((tmp_path / "2" / "sha256.json").read_text())
