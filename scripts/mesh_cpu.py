"""One CPU device for all cores against one per core: seconds per step, in training and in evaluation.

    python scripts/mesh_cpu.py [--rounds=7] [--output=reports/mesh_cpu.json]

Stage `augment` on random images of 32x32 pixels. Each number of devices has a process of its own, in which JAX starts
with as many CPU devices; the two take turns, measurement by measurement. On several devices a batch is spread over them
(`mesh.data`), and two seeds are trained on one device each (`mesh.seed`); on one device they follow one another.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measuring

FLAG = "--xla_force_host_platform_device_count"
# Of each measurement: the batch size, the number of seeds, and how many steps are timed together.
TRAINING = {"train, batch 32": (32, 1, 8), "train, batch 128": (128, 1, 3), "train, batch 512": (512, 1, 1)}
SEEDS = {"train, two seeds, batch 32": (32, 2, 4)}
EVALUATION = {"evaluate, batch 32": 32, "evaluate, batch 128": 128, "evaluate, batch 512": 512}
MEASUREMENTS = (*TRAINING, *SEEDS, *EVALUATION)
IMAGES = 1024  # in an evaluation


def main() -> None:
    """Measures and writes the report, or is one of the two processes that measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=measuring.ROOT / "reports" / "mesh_cpu.json")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work(arguments.worker) if arguments.worker else compare(arguments.rounds, arguments.output)


def compare(rounds: int, output: Path) -> None:
    """Times both processes in turn and writes the medians and ratios, after each round from the second on."""
    cores = len(os.sched_getaffinity(0))
    workers = {devices: start(devices) for devices in (1, cores)}
    times: dict[str, dict[int, list[float]]] = {name: {devices: [] for devices in workers} for name in MEASUREMENTS}
    for turn in range(rounds + 1):  # the first one compiles
        order = list(workers) if turn % 2 else list(reversed(workers))
        for name in MEASUREMENTS:
            for devices in order:
                seconds = ask(workers[devices], name)
                if turn:
                    times[name][devices].append(seconds)
        if turn > 1:
            write(times, output)
    for worker in workers.values():
        worker.communicate()


def write(times: dict[str, dict[int, list[float]]], output: Path) -> None:
    """Prints and writes the medians and ratios of the rounds so far."""
    rows, cores = [], len(os.sched_getaffinity(0))
    for name, of_devices in times.items():
        ratios = [one / many for one, many in zip(of_devices[1], of_devices[cores], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        medians = {str(devices): statistics.median(values) for devices, values in of_devices.items()}
        rows.append({"name": name, "seconds": medians, "speed_ratio": middle, "quartiles": [low, high]})
        print(
            f"{name:28} {medians['1']:.4f} s, {medians[str(cores)]:.4f} s: {middle:.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )
    rounds = len(times[MEASUREMENTS[0]][1])
    report = {"machine": measuring.machine(), "cores": cores, "rounds": rounds, "rows": rows}
    output.write_text(json.dumps(report, indent=1) + "\n")


def start(devices: int) -> subprocess.Popen:
    """Returns a process that measures on so many CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={devices}".strip()
    return subprocess.Popen(
        [sys.executable, __file__, f"--worker={devices}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(worker: subprocess.Popen, name: str) -> float:
    """Returns the seconds that a process needs for a measurement."""
    assert worker.stdin and worker.stdout
    worker.stdin.write(name + "\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(devices: int) -> None:
    """Answers each name of a measurement on stdin with its seconds."""
    for line in sys.stdin:
        name = line.strip()
        seconds = evaluation(EVALUATION[name], devices) if name in EVALUATION else training(name, devices)
        print(seconds, flush=True)


def training(name: str, devices: int) -> float:
    """Returns the seconds of a step, of all seeds together."""
    import jax

    batch_size, seeds, steps = (TRAINING | SEEDS)[name]
    run, held = make(batch_size, seeds, steps, devices)
    begin = time.perf_counter()
    _, held["state"], _ = run.train_chunk(held["state"], 0)
    jax.block_until_ready(held["state"])
    return (time.perf_counter() - begin) / steps


def evaluation(batch_size: int, devices: int) -> float:
    """Returns the seconds in which `IMAGES` images are scored."""
    run, held = make(batch_size, 1, 1, devices)
    begin = time.perf_counter()
    run.evaluate(held["state"].variables, "validation")
    return time.perf_counter() - begin


@functools.cache
def make(batch_size: int, seeds: int, steps: int, devices: int):
    """Returns the experiment of a measurement, and a dictionary that holds its state."""
    changes = {"batch_size": batch_size, "eval_batch_size": batch_size, "seeds": seeds, "steps_per_call": steps}
    changes["mesh__seed" if seeds > 1 else "mesh__data"] = devices
    run = measuring.experiment("augment", IMAGES, None, **changes)
    return run, {"state": run.init()}


if __name__ == "__main__":
    main()
