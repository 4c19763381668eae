"""One of several processes, or the only one: takes steps from the initial state, and writes what they leave as JSON.

python tests/parallel/one_step.py OUTPUT.json DEVICES [HOST:PORT PROCESSES INDEX]
"""

import contextlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEPS = (0, 1, 7)


def main(output, devices, *process):
    from cnn_jax.parallel import distributed

    coordinator, count, index = process or ("", "1", "0")
    joined = distributed.joined(coordinator, int(count), int(index), 20) if process else contextlib.nullcontext()
    with joined:
        result = take_steps(int(devices))
        Path(output).write_text(json.dumps(result))


def take_steps(devices):
    import jax
    import numpy as np

    from cnn_jax import config as config_lib
    from cnn_jax import data
    from cnn_jax.training.experiment import Experiment

    config = config_lib.load(ROOT / "tests" / "small_config.py")
    config.steps_per_call, config.mesh.data = 1, devices
    run = Experiment(config, data.load(config.data))
    result = {"devices": run.place.mesh.size, "own": len(run.place.mesh.local_devices), "steps": []}
    for step in STEPS:
        _, state, metrics = run.train_chunk(run.init(), step)
        leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.variables)]
        result["steps"].append({"metrics": metrics, "leaves": leaves})
    result["scores"] = run.evaluate(run.init().variables, "validation")
    rows = run.place.put(np.arange(16, dtype=np.int32), run.place.rows(steps=False, seeds=False))
    result["rows"] = sorted(int(x) for shard in rows.addressable_shards for x in np.asarray(shard.data))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
