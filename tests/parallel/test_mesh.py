"""Runs over several devices: what `config.mesh` allows, where arrays are, and what devices send each other."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_runs import interrupt_at, make_config

from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.parallel.placement import Placement
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train

COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


@pytest.fixture(scope="module")
def dataset():
    return data.load(make_config().data)


def first_chunk(dataset, **changes):
    run = Experiment(make_config(steps_per_call=1, **changes), dataset)
    return run, *run.train_chunk(run.init(), 0)[1:]


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


def test_a_cpu_is_one_device_unless_the_configuration_says_otherwise():
    place = Placement.from_config(make_config(seeds=4))
    assert len(jax.devices()) == 4
    assert place == Placement.choose(4, devices=jax.devices()[:1], seed_layout="loop")
    assert place.layout == {"steps": "loop", "seeds": "loop"}  # as in the records of earlier versions
    spread = Placement.from_config(make_config(seeds=4, mesh__seed=2, mesh__data=2))
    assert dict(spread.mesh.shape) == {"seed": 2, "data": 2}
    assert spread.layout == {"steps": "loop", "seeds": "devices", "mesh": "data 2"}
    as_on_a_gpu = Placement.from_config(make_config(seeds=4, mesh__steps="scan"))
    assert as_on_a_gpu.layout == {"steps": "scan", "seeds": "vmap"}
    assert Placement.from_config(make_config(mesh__steps="loop")) == Placement.from_config(make_config())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh__data": 3}, r"batch_size is 16, which 3 devices cannot share evenly: set it to 15 or 18\.$"),
        ({"mesh__data": 4, "batch_size": 3}, r"set it to 4\.$"),
        ({"accumulate": 3}, r"which 3 parts \(config\.accumulate\) cannot share evenly: set it to 15 or 18\.$"),
        ({"mesh__data": 2, "accumulate": 16}, r"2 devices and 16 parts \(config\.accumulate\) .* set it to 32\.$"),
        ({"mesh__data": 8}, r"8 devices \(seed 1 x data 8\), but JAX has 4: .*device_count=8 makes so many\.$"),
        ({"mesh__seed": 4, "seeds": 6}, r"mesh\.seed is 4, but 6 seeds .*: set it to 3, or change config\.seeds\.$"),
    ],
)
def test_what_devices_cannot_share_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Placement.from_config(make_config(**changes))


@pytest.mark.parametrize("devices", [3, 4])
def test_images_spread_by_rows_are_the_same_images(dataset, devices):
    """200 images over three devices are padded; neither steps nor scores see the padding."""
    size = 12 if devices == 3 else 16
    everywhere, one, values = first_chunk(dataset, mesh__data=devices, batch_size=size)
    spread, many, others = first_chunk(dataset, mesh__data=devices, batch_size=size, mesh__images="shard")
    images = spread.splits.examples("train").shared["image"]
    assert images.addressable_shards[0].data.shape[0] == -(-200 // devices)
    np.testing.assert_array_equal(np.asarray(images)[:200], everywhere.splits.host("train")["image"])
    assert_close(one.variables, many.variables)
    assert others["loss"] == pytest.approx(values["loss"], rel=1e-5)
    scores, expected = (run.evaluate(one.variables, "validation") for run in (spread, everywhere))
    assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_in_parts_is_the_same_step_without_batch_norm(dataset, devices):
    plain = {"model__batch_norm": False, "model__dropout": ()}
    (_, one, values), (_, parts, others) = (
        first_chunk(dataset, **plain, **changes) for changes in ({}, {"accumulate": 4, "mesh__data": devices})
    )
    assert_close(one.params, parts.params)
    assert others == pytest.approx(values, rel=1e-5)


def test_batch_norm_sees_one_part_at_a_time(dataset):
    """Its running mean after a step of two parts is that of two batches of half the size."""
    run, state, _ = first_chunk(dataset, accumulate=2, model__dropout=(), batch_size=16)
    pipeline = run.pipeline(run.phases[0], state.variables)
    batch = pipeline.batch(jax.tree.map(lambda x: jnp.asarray(x[0]), pipeline.rows(0, 1)), pipeline.shared)
    begin, step = run.init(), run.phases[0].step
    inputs, _ = step.inputs.train(batch, jnp.zeros((16, 10)), run.keys, begin.step, 0)
    statistics = begin.batch_stats
    for part in range(2):
        variables = {"params": begin.params, "batch_stats": statistics}
        statistics = run.model.apply(variables, inputs[part::2], train=True, mutable=["batch_stats"])[1]["batch_stats"]
    assert_close(state.batch_stats, statistics)


def test_a_run_resumes_on_other_devices_and_says_so(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        assert train(make_config(mesh__data=2, mesh__images="shard"), str(tmp_path)) == 128 + 15
    capsys.readouterr()
    assert train(make_config(), str(tmp_path)) == 0
    assert "layout.mesh None (was data 2): the remaining steps may not be bit-identical" in capsys.readouterr().err
    segments = json.loads((tmp_path / "provenance.json").read_text())
    assert [each["provenance"]["layout"].get("mesh") for each in segments] == ["data 2", None]


def collectives(program: str) -> list[tuple[str, int]]:
    """Returns what the devices of a compiled program send each other: the operations and their numbers of elements."""
    found = []
    for shapes, kind in COLLECTIVE.findall(program):
        sizes = (dims for dims in re.findall(r"\w\[([\d,]*)\]", shapes))
        found.append((kind, sum(int(np.prod([int(side) for side in dims.split(",") if side])) for dims in sizes)))
    return found


def compiled_step(dataset, planted=None):
    """Returns (program, state) of a train step whose batch four devices share."""
    run = Experiment(make_config(mesh__data=4), dataset)
    state = run.init()
    pipeline = run.pipeline(run.phases[0], state.variables)
    row = run.place.put(jax.tree.map(lambda x: x[0], pipeline.rows(0, 1)), run.place.rows(steps=False, seeds=False))

    def step(state, row, shared, key):
        batch = pipeline.batch(row, shared)
        new, metrics = run.phases[0].step(state, batch, key)
        return new, metrics, planted(run, batch) if planted else None

    program = jax.jit(step).lower(state, row, pipeline.shared, run.keys).compile().as_text()
    assert program
    return program, state


def test_devices_send_each_other_only_sums(dataset):
    """Gradients, BatchNorm's sums and their gradients, and the sums of metrics; nothing that grows with the batch."""
    program, state = compiled_step(dataset)
    found = collectives(program)
    assert {kind for kind, _ in found} == {"all-reduce"}
    parameters, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.batch_stats)
    )
    total = sum(elements for _, elements in found)
    assert parameters <= total <= parameters + 4 * statistics + 100


def test_an_all_gather_of_activations_is_seen(dataset):
    def gather(run, batch):
        return jax.lax.with_sharding_constraint(run.preprocess(batch["image"]) + 1, run.place.replicated)

    program, _ = compiled_step(dataset, gather)
    assert "all-gather" in {kind for kind, _ in collectives(program)}
