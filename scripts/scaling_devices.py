"""How a training step changes with the number of devices and processes: what is sent, memory and time.

    python scripts/scaling_devices.py [--batch_size=128] [--rounds=0] [--output=reports/scaling_devices.json]
        [--figure=reports/figures/scaling_devices.png]

Stage `augment` on random images of 32x32 pixels. Forced CPU devices share the cores of one machine: they show what is
sent and what memory a device needs, but not how fast several devices are. What is sent per step is read from the
compiled program: the operations between devices and the size of their results. Each setting has processes of its own.
Steps are timed with --rounds=5; without, machine code is not optimised, which changes neither of the other two.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measuring

# Devices in total, processes.
SETTINGS = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2))
TIMEOUT = 500  # seconds

_SENDS = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def sent(program: str) -> dict[str, dict[str, int]]:
    """Returns the number and the bytes of the results of each kind of operation between devices in a program."""
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for shapes, kind in _SENDS.findall(program):
        found[kind]["count"] += 1
        for name, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = _BYTES[name]
            for side in filter(None, sides.split(",")):
                size *= int(side)
            found[kind]["bytes"] += size
    return dict(found)


def work(devices: int, batch_size: int, rounds: int, process: list[str]) -> None:
    """Measures one setting, as one of its processes, and prints the result as JSON."""
    from cnn_jax.parallel import distributed

    joined = contextlib.nullcontext()
    if process:
        address, count, index = process
        joined = distributed.joined(address, int(count), int(index), 60)
    with joined:
        result = measure(devices, batch_size, rounds)
        if distributed.is_primary():
            print(json.dumps(result), flush=True)


def measure(devices: int, batch_size: int, rounds: int) -> dict:
    """Returns what a step sends, the bytes that a device needs, and the median of the seconds."""
    import jax

    run = measuring.experiment("augment", mesh__data=devices, batch_size=batch_size, steps_per_call=2)
    state = run.init()
    pipeline, place = run.pipeline(run.phases[0], state.variables), run.place
    row = place.put(jax.tree.map(lambda x: x[0], pipeline.rows(0, 1)), place.rows(steps=False, seeds=False))

    def one_step(state, row, shared, key):
        return run.phases[0].step(state, pipeline.batch(row, shared), key)

    compiled = jax.jit(one_step, donate_argnums=0).lower(state, row, pipeline.shared, run.keys).compile()
    seconds, now = [], 0
    for turn in range(rounds + 1 if rounds else 0):  # the first one compiles
        begin, first = time.perf_counter(), now
        now, state, _ = run.train_chunk(state, now)
        jax.block_until_ready(state)
        if turn:
            seconds.append((time.perf_counter() - begin) / (now - first))
    return {
        "sent": sent(compiled.as_text()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "seconds": statistics.median(seconds) if seconds else None,
    }


def run_setting(devices: int, processes: int, batch_size: int, rounds: int) -> dict:
    """Returns the result of a setting, measured in processes of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices // processes}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    environment |= {} if rounds else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, __file__, f"--worker={devices}", f"--batch_size={batch_size}", f"--rounds={rounds}"]
    places = [[address, str(processes), str(index)] if processes > 1 else [] for index in range(processes)]
    running = [
        subprocess.Popen([*command, *place], env=environment, stdout=subprocess.PIPE, text=True) for place in places
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return {"devices": devices, "processes": processes, **json.loads(outputs[0].splitlines()[-1])}


def draw(rows: list[dict], path: Path) -> None:
    """Draws what is sent and the memory of a device over the number of devices, in one process and in two."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    values = [
        ("sent per step, MB", lambda row: sum(kind["bytes"] for kind in row["sent"].values()) / 1e6),
        ("memory of a step per device, MiB", lambda row: row["temporary"] / 2**20),
        ("seconds per step, all on the same cores", lambda row: row["seconds"]),
    ]
    values = values if rows[0]["seconds"] else values[:2]
    figure, axes = plt.subplots(1, len(values), figsize=(3.2 * len(values), 3), layout="constrained")
    for axis, (title, value) in zip(axes, values, strict=True):
        for processes, colour, marker in ((1, "#0969da", "o"), (2, "#bc4c00", "s")):
            own = [row for row in rows if row["processes"] == processes]
            label = f"{processes} process{'es' if processes > 1 else ''}"
            xs = [row["devices"] for row in own]
            axis.plot(xs, [value(row) for row in own], color=colour, marker=marker, label=label, linestyle="--")
        axis.set_xticks([1, 2, 4])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("devices")
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, prints a table, writes the numbers and the figure; or measures one setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("process", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments.batch_size, arguments.rounds, arguments.process)
    rows = [run_setting(*setting, arguments.batch_size, arguments.rounds) for setting in SETTINGS]
    print("| devices | processes | sent per step | memory per device, MiB | seconds per step |\n|---|---|---|---|---|")
    for row in rows:
        kinds = ", ".join(f"{each['count']} {kind}, {each['bytes']:,} B" for kind, each in row["sent"].items())
        memory = f"{row['temporary'] / 2**20:,.0f}"
        seconds = f"{row['seconds']:.3f}" if row["seconds"] else ""
        print(f"| {row['devices']} | {row['processes']} | {kinds or 'nothing'} | {memory} | {seconds} |")
    if arguments.output:
        report = {"machine": measuring.machine(), "batch_size": arguments.batch_size, "rows": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)
    return None


if __name__ == "__main__":
    main()
