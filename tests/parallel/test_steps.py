"""Chunks: a scan or a loop, one seed or many, padded or not, give the same."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import rng
from cnn_jax.parallel.placement import Placement
from cnn_jax.parallel.steps import Chunk

LAYOUTS = ("loop", "vmap", "devices")


@flax.struct.dataclass
class Total:
    """A sum of numbers."""

    value: jax.Array

    def merge(self, other):
        return Total(self.value + other.value)


def step(state, row, scale, key):
    noise = jax.random.normal(key, state["sum"].shape)
    return {"sum": state["sum"] * 0.5 + scale * row["x"] + noise}, Total(row["x"].sum())


def one_by_one(start, rows, key):
    state, total = {"sum": start}, 0.0
    for x in rows:
        state, output = step(state, {"x": x}, 2.0, key)
        total += float(output.value)
    return state["sum"], total


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("length", [0, 5, 7])
def test_a_chunk_is_its_steps(scan, length):
    rows = np.random.RandomState(0).rand(5, 3).astype(np.float32)
    place = Placement.choose(scan=scan)
    state, start = (place.put({"sum": jnp.arange(3.0)}, place.state) for _ in range(2))
    state, total = Chunk(step, place)(state, {"x": rows}, jnp.float32(2), rng.root(0), length)
    expected, expected_total = one_by_one(start["sum"], rows, rng.root(0))
    np.testing.assert_allclose(state["sum"], expected, rtol=1e-6)
    np.testing.assert_allclose(total.value, expected_total, rtol=1e-6)


def test_padded_chunks_share_one_program():
    place = Placement.choose(scan=True)
    chunk = Chunk(step, place)
    for count in (4, 5, 3):
        rows = {"x": np.ones((count, 3), np.float32)}
        with jax.log_compiles(False), jax.no_tracing() if count != 4 else jax.log_compiles(False):
            chunk(place.put({"sum": jnp.zeros(3)}, place.state), rows, jnp.float32(2), rng.root(0), 5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scan", [True, False])
def test_many_seeds_are_single_chunks(layout, scan):
    rows = np.random.RandomState(0).rand(5, 4, 3).astype(np.float32)
    keys = [rng.root(seed) for seed in range(4)]
    place = Placement.choose(4, seed_layout=layout, scan=scan)
    start = place.put({"sum": jnp.arange(12.0).reshape(4, 3)}, place.state)
    state, total = Chunk(step, place)(start, {"x": rows}, jnp.float32(2), place.stack(keys))
    for seed in range(4):
        expected, expected_total = one_by_one(jnp.arange(12.0).reshape(4, 3)[seed], rows[:, seed], keys[seed])
        np.testing.assert_allclose(state["sum"][seed], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(total.value[seed], expected_total, rtol=1e-6)


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("seeds", [1, 4])
def test_a_scan_is_compiled_from_shapes_before_there_are_arrays(seeds, length):
    place = Placement.choose(seeds, seed_layout="vmap" if seeds > 1 else None, scan=True)
    chunk, lead = Chunk(step, place), (seeds,) if seeds > 1 else ()
    start = {"sum": jax.ShapeDtypeStruct((*lead, 3), jnp.float32, sharding=place.state)}
    rows = {"x": np.ones((5, *lead, 3), np.float32)}
    keys = place.abstract(lambda: rng.root(0))
    arguments = chunk.abstract(start, rows, jax.ShapeDtypeStruct((), jnp.float32), keys, length)
    assert arguments[1]["x"].shape == (length or 5, *lead, 3)
    chunk.program.trace(*arguments).lower().compile()
    state, total = jax.eval_shape(chunk.program, *arguments)
    key, begin = place.stack([rng.root(seed) for seed in range(seeds)]), jnp.zeros((*lead, 3))
    results = chunk(place.put({"sum": begin}, place.state), rows, jnp.float32(2), key, length)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), results)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (state, total)) == expected


@pytest.mark.parametrize("platform, options", [("gpu", {"xla_gpu_deterministic_ops": True}), ("cpu", None)])
def test_deterministic_kernels_are_an_option_of_the_programs_for_gpus(platform, options):
    mesh = mock.Mock(spec=jax.sharding.Mesh, devices=np.array([SimpleNamespace(platform=platform)]))
    place = Placement(mesh, deterministic=True)
    assert place.compiler_options == options
    assert dataclasses.replace(place, deterministic=False).compiler_options is None


def test_a_cpu_loops_over_steps_and_seeds():
    place = Placement.choose(8)
    assert not place.scan and place.seed_layout == "loop"
