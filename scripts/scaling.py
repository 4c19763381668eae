"""How the cost of a training step grows: with batch size, images, width, seeds; in time and in memory.

    python scripts/scaling.py [--rounds=5] [--output=reports/scaling.json] [--figure=reports/figures/scaling.png]

Stage `augment` on random images of 32x32 pixels. A time is the median over the rounds, in which all settings take
turns; memory is what a compiled step needs beside its arguments (XLA's own figure), plus what is held all the time: the
images and the state of all seeds. Both are also given relative to the first row of their group.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import measuring

GROUPS = {
    "batch size": [{"batch_size": size} for size in (8, 16, 32, 64, 128, 256)],
    "training images": [{"examples": count} for count in (1000, 5000, 20000, 50000)],
    "width": [{"model__widths": tuple(int(factor * w) for w in (32, 64, 128))} for factor in (0.5, 1, 2)],
    "seeds": [{"seeds": count} for count in (1, 2, 4, 8)],
}
LABELS = {"model__widths": lambda widths: f"{widths[0] / 32:g}x"}
STEPS = 4


class Setting:
    """An experiment that is trained step by step."""

    def __init__(self, changes: dict):
        """Compiles."""
        self.experiment = measuring.experiment("augment", **({"steps_per_call": STEPS} | changes))
        self.state, self.now, self.times = self.experiment.init(), 0, []
        self.memory = self._measure_memory()
        self.run()
        self.times.clear()

    def run(self) -> None:
        """Trains a few steps and notes the time of one."""
        import jax

        start, first = time.perf_counter(), self.now
        while self.now < first + STEPS:
            self.now, self.state, _ = self.experiment.train_chunk(self.state, self.now)
        jax.block_until_ready(self.state)
        self.times.append((time.perf_counter() - start) / (self.now - first))

    def _measure_memory(self) -> dict[str, int]:
        import jax

        from cnn_jax import rng

        run = self.experiment
        pipeline = run.pipeline(run.phases[0], self.state.variables)
        arrays, row = pipeline.shared, jax.tree.map(lambda x: x[0], pipeline.order.rows(0, 0, 1))

        def one_step(state, row, arrays, key):
            return run.phases[0].step(state, pipeline.batch(row, arrays), key)

        step = jax.jit(one_step, donate_argnums=0)
        analysis = step.lower(run.place.seed(self.state), row, arrays, rng.root(0)).compile().memory_analysis()
        held = sum(leaf.nbytes for leaf in jax.tree.leaves((self.state, arrays)))
        return {"temporary": analysis.temp_size_in_bytes, "held": held}


def label(changes: dict) -> str:
    """What a row is called."""
    ((key, value),) = changes.items()
    return LABELS.get(key, lambda v: f"{v:,}")(value)


def draw(rows: list[dict], path: Path) -> None:
    """Draws time and memory over each setting, both axes logarithmic, with a line for "in proportion"."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(GROUPS), figsize=(3.1 * len(GROUPS), 3), sharey=True, layout="constrained")
    for axis, group in zip(axes, GROUPS, strict=True):
        own = [row for row in rows if row["group"] == group]
        xs = [row["factor"] for row in own]
        axis.plot(xs, xs, color="#c4c9cf", linestyle="--", label="in proportion")
        axis.plot(xs, [row["time"] for row in own], marker="o", color="#0969da", label="time a step")
        axis.plot(xs, [row["memory"] for row in own], marker="s", color="#bc4c00", label="memory of a step")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(xs, [row["setting"] for row in own], fontsize=8)
        axis.minorticks_off()
        axis.set_title(group, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("times the first")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures, prints a table, writes the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    rows = []
    for group, settings in GROUPS.items():
        running = [Setting(changes) for changes in settings]
        for _ in range(arguments.rounds):
            for each in running:
                each.run()
        seconds = [statistics.median(each.times) for each in running]
        for changes, each, own in zip(settings, running, seconds, strict=True):
            (value,), (base,) = changes.values(), settings[0].values()
            ratio = value[0] / base[0] if isinstance(value, tuple) else value / base
            total = sum(each.memory.values())
            rows.append({"group": group, "setting": label(changes), "factor": ratio, "seconds": own, **each.memory})
            rows[-1] |= {"time": own / seconds[0], "memory": total / sum(running[0].memory.values())}
    print("| | | seconds a step | relative | memory, MiB | relative |\n|---|---|---|---|---|---|")
    for row in rows:
        mebibytes = (row["temporary"] + row["held"]) / 2**20
        cells = (row["group"], row["setting"], f"{row['seconds']:.3f}", f"{row['time']:.2f}", f"{mebibytes:,.0f}")
        print("| " + " | ".join((*cells, f"{row['memory']:.2f}")) + " |")
    if arguments.output:
        report = {"machine": measuring.machine(), "command": "python scripts/scaling.py", "rows": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
