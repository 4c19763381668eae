"""Collects finished runs into a table: one row per stage, mean and 95 % confidence interval over n seeds.

    python scripts/results.py runs/*/ [--output=reports/NAME.json] [--note="the machine"]

Runs that differ only in their seed form one row. The numbers are the test records in the metrics.jsonl of each run. A
row lists every commit that its runs were trained with.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.evaluation.statistics import interval  # noqa: E402
from cnn_jax.training.metrics import NAMES  # noqa: E402
from cnn_jax.workdir import provenance  # noqa: E402
from cnn_jax.workdir.layout import CONFIG_FILE  # noqa: E402
from cnn_jax.workdir.records import read_metrics  # noqa: E402

STAGES = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment", "quickstart")
STAGES += ("transfer", "transfer_lite", "transfer_finetune")
# Keys in which a run may differ from its stage; they are shown next to the numbers.
SHOWN = ("epochs", "finetune.epochs", "data.train_examples", "data.validation", "model.weights")


def plain(config) -> dict:
    """Returns a flat configuration as in JSON, without the seed and keys that do not affect numbers."""
    flat = config_lib.with_defaults(json.loads(json.dumps(config_lib.flatten(config))))
    return {key: value for key, value in flat.items() if key not in (*config_lib.FREE, "seed", "seeds")}


def stage_of(config: dict) -> str:
    """Returns the name of the stage that a configuration equals, except for `SHOWN`; "other" if there is none."""
    for name in STAGES:
        stage = plain(config_lib.load(ROOT / "configs" / f"{name}.py"))
        if all(config.get(key) == stage[key] for key in stage if key not in SHOWN):
            return name
    return "other"


def origins(workdir: Path) -> list[dict]:
    """Returns the provenance of a run as shown in a row; None values for a run without records of it."""
    found = [segment["provenance"] for segment in provenance.read(workdir)] or [{}]
    return [
        {
            "commit": each.get("commit"),
            "dirty": each.get("dirty"),
            "cnn_jax": each.get("versions", {}).get("cnn_jax"),
            "jax": each.get("versions", {}).get("jax"),
            "processor": each.get("processor"),
        }
        for each in found
    ]


def collect(workdirs: list[Path]) -> list[dict]:
    """Returns one row per group of runs that differ only in their seed; unfinished runs are left out."""
    groups: dict[str, dict] = {}
    for workdir in workdirs:
        path = workdir / CONFIG_FILE
        tests = [record for record in read_metrics(workdir) if record["split"] == "test"]
        if not path.exists() or not tests:
            print(f"{workdir}: not a finished run, left out", file=sys.stderr)
            continue
        held = json.loads(path.read_text())
        config = plain(held)
        new = {"config": config, "seeds": [], "runs": [], "provenance": []}
        row = groups.setdefault(json.dumps(config, sort_keys=True), new)
        seeds = {index: held["seed"] + index for index in range(held.get("seeds", 1))}
        seeds = {index: seed for index, seed in seeds.items() if seed not in row["seeds"]}
        for index, seed in seeds.items():
            values = {name: each[index] for name, each in tests[-1].get("lanes", {}).items()} or tests[-1]
            row["seeds"].append(seed)
            row["runs"].append({name: values[name] for name in NAMES})
        if seeds:
            row["provenance"] += [each for each in origins(workdir) if each not in row["provenance"]]
    for row in groups.values():
        config = row.pop("config")
        row |= {"stage": stage_of(config)} | {key: config[key] for key in SHOWN if key in config}
        columns = {name: [run[name] for run in row["runs"]] for name in NAMES}
        row["n"] = len(row["runs"])
        row["mean"] = {name: statistics.fmean(values) for name, values in columns.items()}
        row["interval"] = {name: interval(values) for name, values in columns.items()}
    order = {name: index for index, name in enumerate((*STAGES, "other"))}
    return sorted(groups.values(), key=lambda row: (row["data.train_examples"], row["epochs"], order[row["stage"]]))


def show_commit(origin: dict) -> str:
    """Returns the commit, marked if files differed from it; the version of the package if there is no commit."""
    if origin["commit"]:
        return origin["commit"][:7] + (" (dirty)" if origin["dirty"] else "")
    return origin["cnn_jax"] or "not recorded"


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| stage | images | epochs | n | accuracy [95 %] | loss | F1 | threshold precision / recall | commit |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        mean = {name: f"{value:.3f}" for name, value in row["mean"].items()}
        bounds = row["interval"]["accuracy"]
        accuracy = mean["accuracy"] + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
        images = f"{row['data.train_examples']:,}" if row["data.train_examples"] else "all"
        weights = row.get("model.weights", "imagenet")
        stage = row["stage"] if weights == "imagenet" else f"{row['stage']} ({weights} weights)"
        epochs = f"{row['epochs']} + {row['finetune.epochs']}" if row["finetune.epochs"] else row["epochs"]
        cells = [stage, images, epochs, row["n"], accuracy, mean["loss"], mean["f1"]]
        cells.append(f"{mean['threshold_precision']} / {mean['threshold_recall']}")
        cells.append(", ".join(dict.fromkeys(map(show_commit, row["provenance"]))))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; with --output also writes the rows with the values of every seed."""
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
