"""What tests of whole runs share: a small configuration, all that a run leaves, stopping one and killing one."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from conftest import ROOT

from cnn_jax import config as config_lib
from cnn_jax.training.recorder import Recorder
from cnn_jax.workdir.records import read_metrics

TIMES = {"images_per_second"}


def make_config(base="small_config", **changes):
    """The configuration of tests/BASE.py with changed keys, which have __ for the dots."""
    config = config_lib.load(ROOT / "tests" / f"{base}.py")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    config_lib.validate(config)
    return config


def final_arrays(workdir, step):
    """All that a run ends with, as numpy arrays: (model, train); `step` must be its last."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("model", "train", "metadata")) as manager:
        assert manager.latest_step() == step
        restore = ocp.args.StandardRestore(fallback_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        items = manager.restore(step, args=ocp.args.Composite(model=restore, train=restore))
    return jax.tree.map(np.asarray, (items["model"], items["train"]))


def records(workdir):
    """The records of a run without what differs each time."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(workdir)]


def assert_same_run(workdir, reference, step):
    """Two runs end with the same arrays, bit for bit, and recorded the same numbers on the way."""
    jax.tree.map(np.testing.assert_array_equal, final_arrays(workdir, step), final_arrays(reference, step))
    assert records(workdir) == records(reference)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal when the chunk that ends at `step` has been trained."""
    record = Recorder.train

    def interrupting(self, chunk, *arguments):
        if chunk.stop == step:
            os.kill(os.getpid(), number)
        return record(self, chunk, *arguments)

    monkeypatch.setattr(Recorder, "train", interrupting)


def kill_and_repeat(config, workdir, step):
    """Trains with a checkpoint after every chunk, kills the process with SIGKILL once `step` is saved, trains again.

    The first process compiles, the second one reads the compiled programs from a cache.

    Returns:
      The last step that the killed process saved, and the second process when it has ended.
    """
    command = [sys.executable, "-m", "cnn_jax.main", f"--config={config}", f"--workdir={workdir}"]
    command.append("--config.checkpoint.minutes=0.00001")
    cache = workdir.with_name(f"{workdir.name}-cache")
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (workdir / "checkpoints" / str(step)).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    latest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert list(cache.glob("jit_*"))
    return latest, subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
