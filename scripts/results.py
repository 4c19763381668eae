"""Collects finished runs into a table: a row a stage, mean and standard deviation over seeds.

    python scripts/results.py runs/*/ [--output=reports/NAME.json] [--note="what it was measured on"]

Runs count as one row if they differ in their seed alone. Nothing is measured here: the numbers are the test records of
each run's metrics.jsonl.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.metrics import NAMES  # noqa: E402
from cnn_jax.summaries import read_metrics  # noqa: E402

STAGES = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment", "quickstart")
STAGES += ("transfer", "transfer_lite", "transfer_finetune")
# What may differ between a stage as it is written and as it was run, and is told beside the number.
TOLD = ("epochs", "finetune.epochs", "data.train_examples", "data.validation", "model.weights")


def plain(config) -> dict:
    """Flat, as JSON would hold it, without what changes no number."""
    flat = config_lib.with_defaults(json.loads(json.dumps(config_lib.flatten(config))))
    return {key: value for key, value in flat.items() if key not in (*config_lib.FREE, "seed", "seeds")}


def stage_of(config: dict) -> str:
    """The name of the stage that a configuration is, but for `TOLD`."""
    for name in STAGES:
        stage = plain(config_lib.load(ROOT / "configs" / f"{name}.py"))
        if all(config.get(key) == stage[key] for key in stage if key not in TOLD):
            return name
    return "other"


def collect(workdirs: list[Path]) -> list[dict]:
    """Returns a row for each group of runs that differ in their seed alone; unfinished runs are left out."""
    groups: dict[str, dict] = {}
    for workdir in workdirs:
        path = workdir / "config.json"
        tests = [record for record in read_metrics(workdir) if record["split"] == "test"]
        if not path.exists() or not tests:
            print(f"{workdir}: not a finished run, left out", file=sys.stderr)
            continue
        held = json.loads(path.read_text())
        config = plain(held)
        row = groups.setdefault(json.dumps(config, sort_keys=True), {"config": config, "seeds": [], "runs": []})
        for lane in range(held.get("seeds", 1)):
            seed = held["seed"] + lane
            if seed not in row["seeds"]:
                values = {name: each[lane] for name, each in tests[-1].get("lanes", {}).items()} or tests[-1]
                row["seeds"].append(seed)
                row["runs"].append({name: values[name] for name in NAMES})
    for row in groups.values():
        config = row.pop("config")
        row |= {"stage": stage_of(config)} | {key: config[key] for key in TOLD if key in config}
        row["mean"] = {name: statistics.fmean(run[name] for run in row["runs"]) for name in NAMES}
        several = len(row["runs"]) > 1
        row["std"] = {name: statistics.stdev(run[name] for run in row["runs"]) for name in NAMES} if several else None
    order = {name: index for index, name in enumerate((*STAGES, "other"))}
    return sorted(groups.values(), key=lambda row: (row["data.train_examples"], row["epochs"], order[row["stage"]]))


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| stage | images | epochs | seeds | accuracy | loss | F1 | threshold precision / recall |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:

        def show(name, row=row):
            spread = f" ± {row['std'][name]:.3f}" if row["std"] else ""
            return f"{row['mean'][name]:.3f}{spread}"

        images = f"{row['data.train_examples']:,}" if row["data.train_examples"] else "all"
        weights = row.get("model.weights", "imagenet")
        stage = row["stage"] if weights == "imagenet" else f"{row['stage']} ({weights} weights)"
        epochs = f"{row['epochs']} + {row['finetune.epochs']}" if row["finetune.epochs"] else row["epochs"]
        cells = [stage, images, epochs, len(row["seeds"]), show("accuracy"), show("loss"), show("f1")]
        cells.append(f"{show('threshold_precision')} / {show('threshold_recall')}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and writes the rows with every run where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    rows = collect(arguments.workdirs)
    print(table(rows))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"note": arguments.note, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
