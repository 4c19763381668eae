"""What many seeds at once cost: 8 seeds against 1, by each of the ways there are to run them.

    python scripts/benchmark_seeds.py [--seeds=8] [--batch_size=32] [--rounds=5] [--ways=one,vmap] [--devices=2]
        [--output=FILE.json]

The train step of stage `augment` on random images of 32x32 pixels, as training runs it. The ways take turns (one, loop,
vmap, patches, devices, one, loop, ...), so that what else the machine does falls on all of them; a number is a median
over the rounds. `loop` is one seed after the other, `vmap` one program with a leading seed axis (its convolutions are
grouped ones), `patches` the same with convolutions as patches and a batched matrix product, `devices` the seeds spread
over the devices (on a CPU --devices makes so many of one, which shows that it works and says nothing about time).
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from pathlib import Path
from unittest import mock

WAYS = ("one", "loop", "vmap", "patches", "devices")


def as_patches(images, kernel, window_strides, padding, **_):
    """`lax.conv_general_dilated` for stride 1 and "SAME": nine shifted copies side by side, then one matrix product."""
    import jax.numpy as jnp

    assert tuple(window_strides) == (1, 1) and padding == "SAME"
    rows, columns, inputs, outputs = kernel.shape
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    shifted = [padded[:, r : r + height, c : c + width] for r in range(rows) for c in range(columns)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(rows * columns * inputs, outputs)


def make(way: str, seeds: int, batch_size: int, steps: int, scan: bool):
    """Returns a function that trains `steps` steps and waits for them."""
    import measuring  # isort: skip  before JAX, for which it sets up the compiler
    import jax

    convolution = (
        mock.patch("jax.lax.conv_general_dilated", as_patches) if way == "patches" else contextlib.nullcontext()
    )
    layout = {"patches": "vmap", "one": None}.get(way, way)
    sizes = {"seeds": 1 if way == "one" else seeds, "batch_size": batch_size, "steps_per_call": steps}
    # So many images that no chunk is cut short by the end of an epoch.
    images, steps_as = max(1024, batch_size * steps), "scan" if scan else "auto"
    experiment = measuring.experiment("augment", images, layout, mesh__steps=steps_as, **sizes)
    state, now = experiment.init(), 0

    def run():
        nonlocal state, now
        stop = now + steps
        with convolution:
            while now < stop:
                now, state, _ = experiment.train_chunk(state, now)
        jax.block_until_ready(state)

    return run


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="steps in a round; 0: 4 on a CPU, 200 on a GPU")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of %(default)s; the first must be `one`")
    parser.add_argument("--scan", action="store_true", help="steps in a compiled loop, as on a GPU")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices to make of one")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.devices > 1:
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    import measuring  # isort: skip  before JAX, for which it sets up the compiler
    import jax

    # A GPU takes a millisecond for a step of a small network: a few steps would measure Python.
    arguments.steps = arguments.steps or (4 if jax.default_backend() == "cpu" else 200)
    asked = arguments.ways.split(",")
    if asked[0] != "one" or not set(asked) <= set(WAYS):
        parser.error(f"--ways must be `one` and some of {', '.join(WAYS)}")
    ways = [way for way in asked if way != "devices" or jax.local_device_count() > 1]
    if arguments.scan or jax.default_backend() != "cpu":
        ways = [way for way in ways if way != "loop"]  # in a scan, all seeds are one program
    sizes = arguments.seeds, arguments.batch_size, arguments.steps, arguments.scan
    runs = {way: make(way, *sizes) for way in ways}
    for run in runs.values():
        run()  # compiles
    times = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, run in runs.items():
            start = time.perf_counter()
            run()
            times[way].append((time.perf_counter() - start) / arguments.steps)
    rows = []
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(times[way], times["one"], strict=True))
        rows.append({"way": way, "seconds_a_step": statistics.median(times[way]), "times_one_seed": ratio})
    print(
        f"{arguments.seeds} seeds, batch {arguments.batch_size}, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    print("| way | seconds a step | times one seed |\n|---|---|---|")
    for row in rows:
        print(f"| {row['way']} | {row['seconds_a_step']:.3f} | {row['times_one_seed']:.2f} |")
    if arguments.output:
        options = {key: value for key, value in vars(arguments).items() if key != "output"}
        arguments.output.write_text(
            json.dumps({"machine": measuring.machine(), "options": options, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
