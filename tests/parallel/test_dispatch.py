import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.parallel.dispatch import make_chunk, scans_well


def body(carry, row, scale):
    return {"sum": carry["sum"] + scale * row["x"] * row["y"], "last": row["x"]}


def test_scan_and_loop_agree():
    generator = np.random.RandomState(0)
    rows = {"x": generator.rand(5, 3).astype(np.float32), "y": generator.rand(5, 3).astype(np.float32)}
    results = []
    for scan in (True, False):
        carry = {"sum": jnp.zeros(3), "last": jnp.zeros(3)}
        results.append(make_chunk(body, scan=scan)(carry, rows, jnp.float32(2)))
    np.testing.assert_allclose(results[0]["sum"], 2 * (rows["x"] * rows["y"]).sum(0), rtol=1e-6)
    np.testing.assert_allclose(results[0]["sum"], results[1]["sum"], rtol=1e-6)
    np.testing.assert_array_equal(results[1]["last"], rows["x"][-1])


def test_a_cpu_loops():
    assert not scans_well(jax.devices("cpu")[0])
