"""Writes every table and number that documents take from results, so that no document is older than its results.

    python scripts/tables.py            # updates reports/ladder_*.json, README.md, docs/, configs/ and three figures
    python scripts/tables.py --check    # changes nothing; exits with status 1 and names what is stale

`reports/ladder_SIZE.json` come from the published runs in reports/runs. A table in a document stands between the lines
`<!-- table NAME -->` and `<!-- end -->`; `stale` lists the functions that make them. The "Expect ..." phrase in the
docstring of a stage has the mean and interval of its quick runs.
"""

import argparse
import difflib
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import results  # noqa: E402
from long_runs import LADDER  # noqa: E402

from cnn_jax import config as config_lib  # noqa: E402
from cnn_jax.evaluation.statistics import t_interval  # noqa: E402
from cnn_jax.report import ladder_figures, reference, runs  # noqa: E402

REPORTS, DOCS = ROOT / "reports", ROOT / "docs"
BEGIN, END = re.compile(r"<!-- table (\S+) -->"), "<!-- end -->"
EXPECT = re.compile(r"Expect \.\d{3} \[\.\d{3}, \.\d{3}\] \(mean and 95 % interval of n = \d+ seeds, commit \w{7}\)")
TO_MEASURE = "to be measured"


class Size(NamedTuple):
    """A size at which the ladder is trained: the prefix of its published runs, and how they are described."""

    runs: str
    images: int
    note: str

    @property
    def path(self) -> Path:
        """The file of its results."""
        return REPORTS / f"ladder_{self.images}.json"


QUICK = Size("glance", 5000, "python scripts/long_runs.py --plan=glance")
SIZES = (QUICK, Size("small", 10_000, "--plan=small0,small"), Size("full", 50_000, "--plan=full,rest"))
# Why a cell of the table of stages is empty; "to be measured" elsewhere.
REMARKS = {
    ("transfer", 50_000): "to be measured with the published weights",
    ("speedrun", 50_000): "to be measured on a GPU",
}


def load(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file of results."""
    return json.loads(path.read_text())


def accuracy(row: dict[str, Any] | None) -> str:
    """Returns the test accuracy of a row of `scripts/results.py`: mean, 95 % t interval and n."""
    return f"{mean(row)}, n = {len(row['runs'])}" if row else ""


def mean(row: dict[str, Any]) -> str:
    """Returns the mean test accuracy of a row with its interval."""
    values = [run["accuracy"] for run in row["runs"]]
    return interval(sum(values) / len(values), t_interval(values))


def interval(mean: float, bounds: tuple[float, float] | None) -> str:
    """Returns ".514 [.488, .540]"; without bounds, the mean alone."""
    shown = [f"{value:.3f}".lstrip("0") for value in (mean, *(bounds or ()))]
    return shown[0] + (f" [{shown[1]}, {shown[2]}]" if bounds else "")


def table(header: str, rows: list[list[str]]) -> list[str]:
    """Returns a Markdown table; the header as its cells with | between them."""
    lines = [f"| {header} |" if header else "", "|" + "---|" * len(rows[0])]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


class Results:
    """All results, by stage and size."""

    def __init__(self, ladders: dict[Size, list[dict[str, Any]]]):
        """Takes the rows of `reports/ladder_SIZE.json`, and reads those of transfer learning."""
        self.ladders = ladders
        self.transfer = load(REPORTS / "transfer_lite.json")["rows"]

    def row(self, stage: str, size: Size, weights: str = "imagenet") -> dict[str, Any] | None:
        """Returns the row of a stage, or None if it has not been measured."""
        images = 0 if size.images == 50_000 else size.images
        for row in (*self.ladders.get(size, ()), *self.transfer):
            same = row["stage"] == stage and row["data.train_examples"] == images
            if same and row.get("model.weights", "imagenet") == weights:
                return row
        return None

    # The tables.

    def ladder(self) -> list[str]:
        """The stages, the reference and ours at every size."""
        lines = []
        for name in (*LADDER, "modern", "transfer", "transfer_lite", "transfer_finetune", "speedrun"):
            if not (ROOT / "configs" / f"{name}.py").exists():
                continue
            config, of = config_lib.load(name), reference.STAGES.get(name)
            epochs = str(config.epochs) + (f" + {config.finetune.epochs}" if config.finetune.epochs else "")
            cells = [f"[{name}](configs/{name}.py)", summary(name), epochs, published(of)]
            for size in reversed(SIZES):
                missing = REMARKS.get((name, size.images), TO_MEASURE if size in (SIZES[0], SIZES[-1]) else "")
                cells.append(accuracy(self.row(name, size)) or missing)
            lines.append(cells)
        return table(
            "stage | what changes | epochs | reference, 50,000 images | ours, 50,000 images | ours, 10,000 images | "
            "ours, 5,000 images, 10 epochs",
            lines,
        )

    def quick(self) -> list[str]:
        """The stages on 5,000 images."""
        rows = [(name, self.row(name, QUICK)) for name in LADDER]
        return table(
            "stage | test accuracy", [[f"[{name}](../configs/{name}.py)", accuracy(row)] for name, row in rows]
        )

    def transfer_table(self) -> list[str]:
        """What a pretrained backbone is worth."""
        full, quick = SIZES[-1], QUICK
        lines = [
            ["[transfer_lite](../configs/transfer_lite.py)", "50,000", "10", accuracy(self.row("transfer_lite", full))],
            ["transfer_lite", "5,000", "10", accuracy(self.row("transfer_lite", quick))],
            [
                "transfer_lite, backbone with random weights",
                "5,000",
                "10",
                accuracy(self.row("transfer_lite", quick, "random")),
            ],
            [
                "[transfer_finetune](../configs/transfer_finetune.py)",
                "5,000",
                "10 + 3",
                accuracy(self.row("transfer_finetune", quick)),
            ],
            [
                "[transfer](../configs/transfer.py)",
                "",
                "10",
                "to be measured with the published weights; the reference has .9181",
            ],
        ]
        return table("run | training images | epochs | test accuracy", lines)

    def highlights(self) -> list[str]:
        """The head of the README."""
        quickstart, speed = load(REPORTS / "quickstart.json"), load(REPORTS / "benchmark_cpu.json")
        step = speed["work"]["train 32"]
        rounds, commit = len(step["ours"]["seconds"]), speed["machine"]["checkout"]["commit"][:7]
        peers = [f"{step[name]['ratio'][0]:.2f}" for name in ("PyTorch channels-last", "Keras fit")]
        lines = [
            [
                "quickstart: handwritten digits",
                f"test accuracy {interval(quickstart['accuracy'], None)} on {quickstart['test_images']} images, n = 1; "
                f"{quickstart['seconds']} s, installation included; `{quickstart['command']}`, commit "
                f"{quickstart['commit'][:7]}",
            ],
            [
                "CIFAR-10 (JPEG), 50,000 images: new head on a frozen EfficientNet-Lite0",
                f"test accuracy {accuracy(self.row('transfer_lite', SIZES[-1]))} seeds; 95 % interval in brackets",
            ],
            [
                "training, batch 32, compared with PyTorch (channels last) and Keras",
                f"{step['ours']['images_per_second']:.0f} images/s: {peers[0]} and {peers[1]} times their speed; "
                f"commit {commit}, {rounds} rounds ([all figures](docs/benchmarks.md))",
            ],
            [
                "a run that was killed and started again",
                "the same parameters, bit for bit ([how](docs/reproducibility.md))",
            ],
            [
                "training and prediction on a GPU",
                "to be measured ([commands](docs/gpu.md#measuring-on-a-gpu))",
            ],
        ]
        return table(" | measured on two CPU cores", lines)

    def speed(self, name: str) -> list[str]:
        """Images per second beside the peers; in parentheses our speed divided by theirs."""
        work = load(REPORTS / name)["work"]
        lines = []
        for peer in work["train 32"]:
            shown = peer_name(peer)
            if not shown:
                continue
            cells = [f"{work[kind][peer]['images_per_second']:,.0f}" for kind in work]
            if not peer.startswith("ours"):
                ratios = [work[kind][peer]["ratio"] for kind in work]
                cells = [f"{cell} ({m:.2f}; {low:.2f} to {high:.2f})" for cell, (m, low, high) in zip(cells, ratios)]
            lines.append([shown, *cells])
        return table(" | train, batch 32 | batch 128 | batch 512 | predict, batch 256", lines)

    def first_step(self) -> list[str]:
        """Seconds from the command to the first step."""
        found = load(REPORTS / "benchmark_cpu.json")["first_step"]
        lines = []
        for peer, shown in PEERS.items():
            cold = found.get(f"{peer}, cold", found.get(peer))
            cached = found.get(f"{peer}, cached")
            if cold:
                lines.append([shown, *(f"{each['median']:.1f}" if each else "" for each in (cold, cached))])
        return table("from the command to the first step | seconds | with a filled cache", lines)

    def seeds(self) -> list[str]:
        """Eight seeds relative to one."""
        names = {"loop": "one after the other", "vmap": "`vmap`", "patches": "patches and batched matrix products"}
        ways = {row["way"]: row["times_one_seed"] for row in load(REPORTS / "seeds_cpu.json")["rows"]}
        lines = [[shown, f"{ways[way]:.1f}"] for way, shown in names.items()]
        lines.append(["`vmap` on one GPU, or spread over several", TO_MEASURE])
        return table(" | relative time", lines)

    def gpu_programs(self, target: str) -> list[str]:
        """The programs that were compiled for a GPU."""
        lines = []
        for row in load(REPORTS / "gpu_programs.json")["rows"]:
            if row["target"] != target:
                continue
            trip, launches, memory = row["trip"], row["launches"]["trip"], row["memory"]
            sent = sum(trip["collectives"].values())
            least = row["least_ms_estimated"]
            by = "memory" if least["memory"] >= least["arithmetic"] else "arithmetic"
            lines.append(
                [
                    row["program"],
                    f"{row['compile_s']:.0f}",
                    f"{memory['argument'] / 1e6:,.0f} / {memory['temp'] / 1e6:,.0f}",
                    f"{launches['kernels']} ({trip['cudnn']})",
                    f"{launches['graphs']} + {launches['loose']}",
                    f"{trip['nbytes'] / 1e9:.3f}",
                    f"{trip['flops'] / 1e9:,.1f}",
                    f"{sent / 1e6:.1f}" if sent else "",
                    f"{least['larger']:.3f} ({by})",
                ]
            )
        return table(
            "program | seconds to compile | arguments / temporaries, MB | kernels (of cuDNN) | CUDA graphs + single "
            "launches | GB | GFLOP | sent, MB | least ms, estimated",
            lines,
        )

    def gpu_before(self) -> list[str]:
        """What compiled programs were before they were mended, and are."""
        now = {(row["target"], row["program"]): row for row in load(REPORTS / "gpu_programs.json")["rows"]}
        lines = []
        for before in load(REPORTS / "gpu_programs_before.json")["rows"]:
            pair = before, now[before["target"], before["program"]]
            cells = [[str(each["launches"]["trip"]["kernels"]) for each in pair]]
            cells.append([f"{each['launches']['trip'][k]}" for each in pair for k in ("graphs", "loose")])
            cells[1] = [f"{cells[1][0]} + {cells[1][1]}", f"{cells[1][2]} + {cells[1][3]}"]
            cells.append([f"{each['trip']['nbytes'] / 1e9:.3f}" for each in pair])
            cells.append([str(sum("transposed" in problem for problem in each["problems"])) for each in pair])
            lines.append([before["program"], *(old if old == new else f"{old} → {new}" for old, new in cells)])
        return table("a step of | kernels | CUDA graphs + single launches | GB | transposed for a convolution", lines)

    def modern_trials(self) -> list[str]:
        """The trials from which the recipe of stage modern was chosen, and by what each differs from the first."""
        trials = load(REPORTS / "modern_trials.json")["trials"]
        start = next(trial for trial in trials if trial["trial"] == "start")
        lines = []
        for trial in sorted(trials, key=lambda trial: -(trial["validation_accuracy"] or 0)):
            changed = {key: value for key, value in trial["settings"].items() if start["settings"][key] != value}
            shown = ", ".join(
                f"`{key}={tuple(value) if type(value) is list else value}`" for key, value in changed.items()
            )
            accuracy = trial["validation_accuracy"]
            lines.append(
                [
                    shown or ("`start`" if trial is start else "stage `augment`"),
                    "failed" if accuracy is None else interval(accuracy, None),
                    trial["commit"][:7],
                ]
            )
        return table("what differs from `start` | validation accuracy, n = 1 | commit", lines)

    def modern_ablation(self) -> list[str]:
        """What the ingredients of stage modern contribute."""
        path = REPORTS / "modern_ablation.json"
        if not path.exists():
            return [TO_MEASURE[0].upper() + TO_MEASURE[1:] + "."]
        lines = []
        for row in load(path)["rows"]:
            gain = row["cost"]
            shown = ladder_figures.points(gain["mean"], True) if gain else ""
            if gain and gain["interval"]:
                shown += f" {ladder_figures.bounds(gain['interval'], True)}"
            name = row["name"].replace("no_", "without ").replace("_", " ")
            lines.append([name, f"{interval(row['mean'], row['interval'])}, n = {row['n']}", shown])
        return table("run | test accuracy | gain of `modern` over it, points", lines)

    def diff(self, stage: str) -> list[str]:
        """The keys in which a stage differs from the one before it."""
        before, after = (config_lib.flatten(config_lib.load(name)) for name in (previous(stage), stage))
        lines = []
        for key, (old, new) in runs.changes(before, after).items():
            lines += [f"-config.{key} = {old!r}", f"+config.{key} = {new!r}"]
        return ["```diff", *lines, "```"]

    def happened(self, stage: str) -> list[str]:
        """What became of a stage, at every size that has been measured."""
        lines = []
        for size in SIZES:
            rows = {row["name"]: row for row in summarised(size)} if self.ladders.get(size) else {}
            if stage not in rows:
                continue
            row = rows[stage]
            gain = row["difference"] if row["difference"] and row["difference"]["to"] == previous(stage) else None
            images = f"{size.images:,}, {row['config']['epochs']} epochs"
            cells = [images, interval(row["mean"]["train_accuracy"], None)]
            cells.append(f"{interval(row['mean']['accuracy'], row['interval']['accuracy'])}, n = {row['n']}")
            shown = f"{ladder_figures.points(gain['mean'], True)} " if gain else ""
            cells.append((shown + ladder_figures.bounds(gain["interval"], True)).strip() if gain else "")
            lines.append(cells)
        of = reference.STAGES.get(stage)
        if of:
            lines.append([f"reference: 50,000, {of.epochs} epochs", "", published(of), ""])
        return table(
            "training images | training accuracy | test accuracy | gain over the previous stage, points", lines
        )


PEERS = {
    "ours": "cnn_jax",
    "PyTorch channels-last": "PyTorch, channels last",
    "PyTorch channels-last-compile": "PyTorch, channels last, `torch.compile`",
    "PyTorch default": "PyTorch, default layout",
    "Keras fit": "Keras `fit`",
}


def peer_name(peer: str) -> str | None:
    """Returns how tables name what `scripts/benchmark.py` measured; None for what they leave out."""
    also = re.fullmatch(r"ours, jax (\S+) \(python (\S+)\)", peer)
    return f"cnn_jax, jax {also[1]}, Python {also[2]}" if also else PEERS.get(peer)


def summary(stage: str) -> str:
    """Returns the first line of the docstring of a stage, without its name."""
    first = (ROOT / "configs" / f"{stage}.py").read_text().partition("\n")[0]
    return first.partition(": ")[2].rstrip(".")


def published(of: reference.Reference | None) -> str:
    """Returns what the reference reports for a stage."""
    if of is None:
        return "none"
    value = f"{of.accuracy:.4f}".lstrip("0") if of.accuracy is not None else ""
    return ": ".join(filter(None, (value, of.remark)))


def previous(stage: str) -> str:
    """Returns the stage before a stage of the ladder."""
    return (*LADDER, "modern")[(*LADDER, "modern").index(stage) - 1] if stage != LADDER[0] else "base"


def workdirs(size: Size) -> list[Path]:
    """Returns the published runs of a size."""
    return sorted((REPORTS / "runs").glob(f"{size.runs}-*/"))


@functools.cache
def groups(size: Size) -> list[runs.Row]:
    """Returns the published runs of a size, by configuration."""
    return runs.collect(workdirs(size))[0]


@functools.cache
def summarised(size: Size) -> list[dict[str, Any]]:
    """Returns the rows of `cnn_jax.report` for the published runs of a size."""
    return runs.summarise(groups(size))["rows"]


def ladders() -> dict[Size, str]:
    """Returns reports/ladder_SIZE.json, as text, for the sizes that have published runs."""
    found = {}
    for size in SIZES:
        if workdirs(size):
            note = f"CIFAR-10 re-encoded as JPEG; {size.note}"
            found[size] = json.dumps({"note": note, "rows": results.collect(workdirs(size))}, indent=1) + "\n"
    return found


def filled(text: str, tables: dict[str, Callable[[], list[str]]]) -> str:
    """Returns a document with its tables made again."""
    lines, kept = iter(text.split("\n")), []
    for line in lines:
        kept.append(line)
        name = BEGIN.fullmatch(line)
        if name:
            for skipped in lines:
                if skipped == END:
                    break
            else:
                raise SystemExit(f"Table {name[1]} has no line {END}.")
            kept += [*tables[name[1]](), END]
    return "\n".join(kept)


def figures(fill: bool) -> dict[Path, bytes]:
    """Returns the figures of the quick runs. Each names the SHA-256 of its numbers, by which a stale one is noticed."""
    rows = summarised(QUICK)
    named = {r.name: {split: r.curve(split, "accuracy") for split in ("train", "validation")} for r in groups(QUICK)}
    shown = [
        [row["name"], row["n"], row["mean"]["accuracy"], row["interval"]["accuracy"], row["reference"]]
        + [(row["difference"] or {}).get(key) for key in ("mean", "interval", "significant")]
        for row in rows
    ]
    drawn = {
        "waterfall_5000.svg": (shown, lambda: ladder_figures.waterfall(rows)),
        "ladder.svg": (shown, lambda: ladder_figures.beside_reference(rows)),
        "learning_curves_5000.svg": (named, lambda: ladder_figures.curves(named)),
    }
    result = {}
    for name, (numbers, draw) in drawn.items():
        rounded = json.loads(json.dumps(numbers), parse_float=lambda number: f"{float(number):.6g}")
        digest = hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()
        path = REPORTS / "figures" / name
        mark = f"<!-- numbers: {digest} -->\n".encode()
        held = path.read_bytes() if path.exists() else b""
        if not held.endswith(mark):
            result[path] = ladder_figures.svg(draw()) + mark if fill else mark
    return result


def stale(fill: bool = True) -> dict[Path, str | bytes]:
    """Returns the files that differ from the results, with what they should be.

    Args:
      fill: whether figures are drawn; otherwise their content is a placeholder.
    """
    made = ladders()
    wanted: dict[Path, str | bytes] = {size.path: text for size, text in made.items()}
    found = Results({size: json.loads(text)["rows"] for size, text in made.items()})
    tables: dict[str, Callable[[], list[str]]] = {
        "highlights": found.highlights,
        "ladder": found.ladder,
        "quick": found.quick,
        "transfer": found.transfer_table,
        "speed": lambda: found.speed("benchmark_cpu.json"),
        "speed-cached": lambda: found.speed("benchmark_cpu_cached.json"),
        "first-step": found.first_step,
        "seeds": found.seeds,
        "gpu-h100": lambda: found.gpu_programs("h100"),
        "gpu-a100": lambda: found.gpu_programs("a100"),
        "gpu-before": found.gpu_before,
        "modern-trials": found.modern_trials,
        "modern-ablation": found.modern_ablation,
        **{f"diff-{name}": (lambda name=name: found.diff(name)) for name in (*LADDER[1:], "modern")},
        **{f"happened-{name}": (lambda name=name: found.happened(name)) for name in (*LADDER, "modern")},
    }
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        wanted[path] = filled(path.read_text(), tables)
    for name in LADDER:
        row, path = found.row(name, QUICK), ROOT / "configs" / f"{name}.py"
        if row:
            commits = " ".join(sorted({origin["commit"][:7] for origin in row["provenance"]}))
            expect = f"Expect {mean(row)} (mean and 95 % interval of n = {len(row['runs'])} seeds, commit {commits})"
            wanted[path] = EXPECT.sub(expect, path.read_text())
    changed = {p: text for p, text in wanted.items() if not p.exists() or p.read_text() != text}
    return changed | figures(fill)


def main() -> int:
    """Updates what is stale, or names it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if something is stale")
    check = parser.parse_args().check
    found = stale(fill=not check)
    for path, content in found.items():
        print(f"{'stale' if check else 'updated'}: {path.relative_to(ROOT)}")
        if check and isinstance(content, str):
            held = path.read_text().splitlines() if path.exists() else []
            difference = difflib.unified_diff(held, content.splitlines(), "is", "should be", lineterm="")
            print("\n".join(list(difference)[:20]))
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    if check and found:
        print("Run `python scripts/tables.py` and commit.")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
