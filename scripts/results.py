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

from cnn_jax.errors import UserError  # noqa: E402
from cnn_jax.evaluation.statistics import t_interval  # noqa: E402
from cnn_jax.report import runs  # noqa: E402
from cnn_jax.report.runs import LADDER, SIZES, Row  # noqa: E402
from cnn_jax.training.metrics import NAMES  # noqa: E402
from cnn_jax.workdir import provenance  # noqa: E402
from cnn_jax.workdir.records import scores_on_test  # noqa: E402


def origins_of(workdir: Path) -> list[dict]:
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


def summarise(group: Row) -> dict:
    """Returns a row of the table: the scores of every seed, their means and intervals, and where they come from."""
    tests = [scores_on_test(records) for records in group.records.values()]
    found = [{name: test[name] for name in NAMES} for test in tests if test]
    columns = {name: [run[name] for run in found] for name in NAMES}
    origins = [each for workdir in group.workdirs for each in origins_of(workdir)]
    return {
        "seeds": list(group.records),
        "runs": found,
        "provenance": [each for index, each in enumerate(origins) if each not in origins[:index]],
        "stage": group.stage or "other",
        **{key: group.config[key] for key in SIZES if key in group.config},
        "n": len(found),
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "interval": {name: t_interval(values) for name, values in columns.items()},
    }


def collect(workdirs: list[Path]) -> list[dict]:
    """Returns one row per group of runs that differ only in their seed; unfinished runs are left out.

    Raises:
      UserError: a workdir does not exist, a file in it is damaged, or none is finished.
    """
    groups, left_out = runs.collect(workdirs, "given")
    for workdir in left_out:
        print(f"{workdir}: not a finished run, left out", file=sys.stderr)
    order = {name: index for index, name in enumerate((*LADDER, "other"))}
    rows = map(summarise, groups)
    return sorted(rows, key=lambda row: (row["data.train_examples"], row["epochs"], order[row["stage"]]))


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
    try:
        rows = collect(arguments.workdirs)
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(table(rows))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"note": arguments.note, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
