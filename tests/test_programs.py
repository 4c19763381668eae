"""The compiled programs of a run against XLA alone in double precision: no kernel, flag or fusion makes them wrong."""

import subprocess
import sys

import numpy as np
import pytest
from programs import PROGRAMS, ROOT, STAGES

# The stage `augment` has all that these have.
SLOW = ("dropout", "dropout_scheduled")

# Largest relative error of a leaf, as a norm. A float32 operation rounds by 6e-8; sums of both signs amplify that.
ROUNDING = 3e-5
# Where rounding moves an activation past zero, or past its neighbour in max-pooling, the gradient goes elsewhere. One
# such activation changes a leaf by about 1e-3; without BatchNorm there are one or two.
STEP = {"optimizer": 5e-3, "params": 1e-4}
# BatchNorm enlarges that: 1e-2 was measured. A single value left out of the sum of a channel changes statistics by 7e-4
# and gradients by 7e-2.
STEP_WITH_BATCH_NORM = {"optimizer": 3e-2, "params": 3e-3}
TOLERANCES = {
    **dict.fromkeys(STAGES, STEP_WITH_BATCH_NORM),
    "basic": STEP,
    "baseline": STEP,
    "features": {"params": 1e-4},  # Adam divides gradients near zero by themselves
}


@pytest.fixture(scope="module")
def compute(user_environment, tmp_path_factory):
    """Computes programs both ways, side by side; returns our arrays and those in double precision."""

    def run(names):
        folder = tmp_path_factory.mktemp("programs")
        files = {kind: str(folder / f"{kind}.npz") for kind in ("ours", "float64")}
        processes = [
            subprocess.Popen(
                [sys.executable, ROOT / "tests" / "programs.py", kind, file, *names],
                env=user_environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            for kind, file in files.items()
        ]
        messages = [process.communicate()[1] for process in processes]
        assert all(process.returncode == 0 for process in processes), messages
        return [dict(np.load(file)) for file in files.values()]

    return run


@pytest.fixture(scope="module")
def fast(compute):
    return compute([name for name in PROGRAMS if name not in SLOW])


@pytest.fixture(scope="module")
def slow(compute):
    return compute(SLOW)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in PROGRAMS])
def test_is_right(request, name):
    found, exact = (
        {path: array for path, array in arrays.items() if path.startswith(f"{name}:")}
        for arrays in request.getfixturevalue("slow" if name in SLOW else "fast")
    )
    assert found and found.keys() == exact.keys()
    errors = {}
    for path, array in found.items():
        difference, norm = np.linalg.norm(array.astype(np.float64) - exact[path]), np.linalg.norm(exact[path])
        part = path.removeprefix(f"{name}:").split("/")[0]
        if not difference <= TOLERANCES.get(name, {}).get(part, ROUNDING) * norm:
            errors[path] = difference / norm
    assert not errors
