"""Trains the baseline until it dies, with one change at a time, and draws what happened.

    python scripts/autopsy.py --runs=DIR --data=DIR [--plan=rates,remedies,reference] [--dry_run]
    python scripts/autopsy.py --runs=DIR --report     writes reports/autopsy.json and reports/figures/autopsy.svg

The runs are ordinary ones, as those of scripts/long_runs.py: finished ones are skipped, interrupted ones resume. The
plan "reference" has the reference's own settings: all 50,000 images, 50 epochs. A core takes hours for each of its
runs, so that it is meant for several sessions. The report is made of the runs that are finished.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from long_runs import ROOT, Run, command, is_finished, train

from cnn_jax import config as config_lib
from cnn_jax.workdir.layout import CONFIG_FILE, PROVENANCE_FILE
from cnn_jax.workdir.records import read_metrics, scores_on_test

SEEDS = range(6)
SHORT = {"data.train_examples": 5000, "data.validation": 0, "epochs": 3, "steps_per_call": 25}
# Measuring the sharpness takes longer than the steps between: seed 0 alone has it.
MEASURED = {"diagnostics": True, "sharpness_every": 100}
RATE = "optimizer.learning_rate"
FATAL = 0.05  # a learning rate, five times that of the reference
PIXELS = "(0.00392156862745098, 0.00392156862745098, 0.00392156862745098)"  # 1/255: images in 0-255

# Stage and changed settings of each group of runs, which has one run per seed.
RATES = {
    f"rate_{rate}": ("baseline", SHORT | MEASURED | {RATE: rate}) for rate in (0.05, 0.01, 0.1, 0.02, 0.03, 0.04)
} | {"pixels_255": ("baseline", SHORT | MEASURED | {"data.std": PIXELS, "on_nan": "continue"})}
REMEDIES = {
    name: (stage, SHORT | MEASURED | {RATE: FATAL} | change)
    for name, (stage, change) in {
        "warmup": ("baseline", {"optimizer.warmup_epochs": 1.0}),
        "clipping": ("baseline", {"optimizer.clip_norm": 0.5}),
        "he": ("baseline", {"model.kernel_init": "he"}),
        "batchnorm": ("batchnorm", {}),
    }.items()
}
REFERENCE = {"reference": ("baseline", MEASURED | {"data.validation": 0, "sharpness_every": 2500})}
PLANS = {"rates": RATES, "remedies": REMEDIES, "reference": REFERENCE}
CHANCE = 0.15  # an accuracy that a network of ten classes exceeds once it learns

REPORT = ROOT / "reports" / "autopsy.json"
FIGURE = ROOT / "reports" / "figures" / "autopsy.svg"


def runs(plans: list[str]) -> list[Run]:
    """Returns the runs of some plans, a whole seed at a time."""
    groups = {name: group for plan in plans for name, group in PLANS[plan].items()}
    return [
        Run(f"{name}-{seed}", stage, settings | {"seed": seed} | ({"sharpness_every": 0} if seed else {}))
        for seed in SEEDS
        for name, (stage, settings) in groups.items()
    ]


def findings(records: list[dict[str, Any]], learning_rate: float, momentum: float) -> dict[str, Any]:
    """Returns what became of a run. Steps are those of the first record in which something holds; None for never.

    - collapsed: whether, in the last quarter of the records, the mean training accuracy is at chance, or the loss is
      not finite;
    - not_finite: the step at which the loss is not finite;
    - gradient_zero: the step from which on the gradients of all kernels are zero in every record;
    - dead_layer, dead: the first layer whose ReLUs are all zero, and the step;
    - unstable: the step at which the sharpness exceeds 2 (1 + momentum) / rate, beyond which steps overshoot;
    - sharpness: the largest one.
    """
    records = [record for record in records if record["split"] == "train"]
    last = records[-max(len(records) // 4, 1) :]
    accuracy = sum(record["accuracy"] for record in last) / len(last)
    finite = [record for record in records if record["loss"] is not None]
    not_finite = next((record["step"] for record in records if record["loss"] is None), None)

    def norms(record):
        return [value for name, value in record.items() if name.startswith("grad_norm/")]

    gradient_zero = None
    for record in reversed(finite):
        if any(value != 0 for value in norms(record)):
            break
        gradient_zero = record["step"]
    dead = next(
        (
            (name.removeprefix("dead_relu/"), record["step"])
            for record in finite
            for name, value in record.items()
            if name.startswith("dead_relu/") and value == 1
        ),
        (None, None),
    )
    sharpness = {record["step"]: record["sharpness"] for record in finite if record.get("sharpness") is not None}
    limit = 2 * (1 + momentum) / learning_rate
    return {
        "steps": records[-1]["step"],
        "accuracy": accuracy,
        "best_accuracy": max(record["accuracy"] for record in records),
        "collapsed": accuracy < CHANCE or not_finite is not None,
        "not_finite": not_finite,
        "gradient_zero": gradient_zero,
        "dead_layer": dead[0],
        "dead": dead[1],
        "stability_limit": limit,
        "unstable": next((step for step, value in sharpness.items() if value > limit), None),
        "sharpness": max(sharpness.values(), default=None),
    }


def collect(folder: Path) -> dict[str, Any]:
    """Returns the findings of all finished runs in a folder, GROUP-SEED, by group and seed, with their counts."""
    found: dict[str, Any] = {}
    usual = config_lib.flatten(config_lib.load("baseline").to_dict())
    for workdir in sorted(path.parent for path in folder.glob(f"*-*/{CONFIG_FILE}")):
        records = read_metrics(workdir)
        test = scores_on_test(records)
        if test is None:
            continue
        name, seed = workdir.name.rsplit("-", 1)
        config = config_lib.with_defaults(config_lib.flatten(json.loads((workdir / CONFIG_FILE).read_text())))
        origin = json.loads((workdir / PROVENANCE_FILE).read_text())
        own = findings(records, config[RATE], config["optimizer.momentum"])
        own |= {"test_accuracy": test["accuracy"], "commits": sorted({each["provenance"]["commit"] for each in origin})}
        # As JSON, where a tuple is a list.
        differ = {key: value for key, value in config.items() if json.dumps(value) != json.dumps(usual[key])}
        changed = {key: value for key, value in differ.items() if key not in (*config_lib.FREE, "seed")}
        group = found.setdefault(name, {"changed": changed, "n": 0, "collapsed": 0, "seeds": {}})
        group["seeds"][seed] = own
        group["n"], group["collapsed"] = group["n"] + 1, group["collapsed"] + own["collapsed"]
    return found


def draw(folder: Path, names: list[str], path: Path) -> None:
    """Draws loss, sharpness, gradient and dead ReLUs of some runs, the last three where they were recorded."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    curves = {
        "loss": ("loss", "linear"),
        "dead_relu/dense1": ("share of dead ReLUs, dense layer", "linear"),
        "grad_norm/dense1": ("gradient norm, dense layer", "log"),
        "sharpness": ("sharpness / stability limit", "log"),
    }
    with plt.rc_context({"svg.hashsalt": "autopsy", "font.size": 9}):
        figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
        for name in names:
            records = [record for record in read_metrics(folder / name) if record["split"] == "train"]
            config = config_lib.flatten(json.loads((folder / name / CONFIG_FILE).read_text()))
            limit = 2 * (1 + config["optimizer.momentum"]) / config[RATE]
            for ax, key in zip(axes.flat, curves, strict=True):
                points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
                scale = limit if key == "sharpness" else 1
                ax.plot([x for x, _ in points], [y / scale for _, y in points], label=name)
        for ax, (title, scale) in zip(axes.flat, curves.values(), strict=True):
            ax.set(title=title, yscale=scale)
        axes.flat[0].axhline(math.log(10), color="grey", linestyle=":")  # the loss at chance
        axes.flat[3].axhline(1, color="grey", linestyle=":")
        axes.flat[0].legend(fontsize=7)
        for ax in axes[1]:
            ax.set_xlabel("step")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> int:
    """Trains what is missing, or writes the report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the workdirs")
    parser.add_argument("--data", type=Path, help="where tfds keeps CIFAR-10")
    parser.add_argument("--plan", default="rates,remedies", help="parts of the plan; default: %(default)s")
    parser.add_argument("--dry_run", action="store_true", help="only print what is missing")
    parser.add_argument("--report", action="store_true", help="train nothing; write the report of the finished runs")
    options = parser.parse_args()
    folder = options.runs.resolve()
    if options.report:
        found = collect(folder)
        if not found:
            parser.error(f"no run in {folder} is finished: train some without --report first")
        earlier = json.loads(REPORT.read_text()) if REPORT.exists() else {}  # of runs in other folders
        REPORT.write_text(json.dumps(earlier | found, indent=1) + "\n")
        names = {name: f"{name}-{min(group['seeds'], key=int)}" for name, group in found.items()}
        draw(folder, [names[name] for name in found if found[name]["changed"].get("on_nan") != "continue"], FIGURE)
        for name, group in found.items():
            print(f"{name:<12} collapsed: {group['collapsed']} of {group['n']}")
        return 0
    if options.data is None:
        parser.error("--data is missing: the folder where tfds keeps CIFAR-10")
    plans = options.plan.split(",")
    unknown = [name for name in plans if name not in PLANS]
    if unknown:
        parser.error(f"there is no plan {unknown[0]}; the plans are {', '.join(PLANS)}")
    planned, data = runs(plans), options.data.resolve()
    missing = [run for run in planned if not is_finished(folder / run.name)]
    print(f"{len(planned) - len(missing)} of {len(planned)} runs are finished.", flush=True)
    if options.dry_run:
        print("\n".join(" ".join(command(run, folder, data)) for run in missing))
        return 0
    return train(missing, folder, data)


if __name__ == "__main__":
    sys.exit(main())
