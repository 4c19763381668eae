"""Small programs that XLA:CPU computes wrong with its default flags are right in a process set up by `runtime.prepare`.

`python tests/test_reductions.py` prints their errors; with YNNPACK's reductions, as for the comments below, where
XLA_FLAGS is set to --xla_cpu_experimental_ynn_fusion_type=-individual_convolution.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


MATRIX = random(3, 3, seed=1)

# Functions of `numpy` or `jax.numpy` and of arrays, and the arrays. The comments are relative errors in float32 with
# YNNPACK's reductions, on x86-64 with AVX-512: with jax 0.10.2, then with jax 0.12.0.1. Most vary from run to run.
PROGRAMS = {
    # .98 to nan; .98 to 1e33.
    "a product with a constant, times a matrix, summed": (
        lambda xp, a: (a @ xp.full_like(a, 0.3) * a).sum(-1),
        [random(6, 48, 48)],
    ),
    # 1.2e-3; right. Source: github.com/jax-ml/jax/issues/39103.
    "a matrix times each of many vectors, squared and summed": (
        lambda xp, x: xp.vectorize(lambda row: ((MATRIX @ row) ** 2).sum(), signature="(n)->()")(x),
        [random(32_769, 3)],
    ),
    # .91 to inf; .92 to 1e29.
    "the maximum of a product with a constant": (
        lambda xp, a: (a @ xp.full_like(a, 0.3) * a).max(-1),
        [random(6, 48, 48)],
    ),
    # 1e26 to nan; 1e33 to nan.
    "a product with ones, times a matrix, summed over the rows": (
        lambda xp, a, b: (a @ xp.ones_like(b, shape=(128, 64)) * b).sum(0),
        [random(256, 128), random(256, 64, seed=1)],
    ),
    # 1.2 to nan; 1e27 to nan.
    "the mean of a product with one vector in all columns": (
        lambda xp, a, b: (a @ xp.broadcast_to(b[:, None], a.shape) * a).mean(-1),
        [random(6, 48, 48), random(48, seed=1)],
    ),
}


def errors():
    """The norm of each program's error, divided by that of its result in float64."""
    from cnn_jax import runtime

    runtime.prepare()
    import jax
    import jax.numpy as jnp

    found = {}
    for name, (program, arrays) in PROGRAMS.items():
        exact = program(np, *(array.astype(np.float64) for array in arrays))
        result = np.asarray(jax.jit(lambda *x, program=program: program(jnp, *x))(*arrays), np.float64)
        found[name] = float(np.linalg.norm(result - exact) / np.linalg.norm(exact))
    return found


@pytest.fixture(scope="module")
def found(user_environment):
    environment = user_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PROGRAMS)
def test_is_right(found, name):
    assert found[name] < 1e-6  # rounding is 1e-7


if __name__ == "__main__":
    print(json.dumps(errors(), indent=1))
