"""Report of several finished runs: one row per configuration, statistics over its seeds, paired differences.

Runs that differ only in their seed, or in keys that change no numbers, form one row. The numbers come from the files of
the workdirs: config.json, metrics.jsonl, times.json and provenance.json; and, for calibration and for comparisons by
test image, from predictions.npz, which is computed from the last checkpoint where there is one.
"""

import csv
import dataclasses
import functools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cnn_jax import config as config_lib
from cnn_jax import models
from cnn_jax.errors import UserError
from cnn_jax.evaluation import predictions
from cnn_jax.evaluation.statistics import ENOUGH, false_discovery, paired_difference, t_interval
from cnn_jax.report import by_image, reference
from cnn_jax.report.by_image import OfRow
from cnn_jax.report.curves import of_split, per_epoch
from cnn_jax.training.metrics import NAMES
from cnn_jax.utils import files
from cnn_jax.workdir import provenance
from cnn_jax.workdir.layout import CONFIG_FILE, METRICS_FILE, TIMES_FILE
from cnn_jax.workdir.records import read_metrics, scores_on_test

LADDER = ("basic", "baseline", "batchnorm", "dropout", "dropout_scheduled", "augment", "modern", "transfer")
LADDER += ("transfer_lite", "transfer_finetune", "speedrun", "quickstart")
# Keys in which runs may differ from the stage whose name they have.
SIZES = ("epochs", "finetune.epochs", "data.train_examples", "data.validation", "model.weights")
SCORES = (*NAMES, "train_accuracy", "gap")  # per seed; the gap is training minus test accuracy
CALIBRATION = ("calibration_error", "temperature", "calibrated_error", "calibrated_loss")  # per seed, of predictions
ALPHA = 0.05
_CLASSES = {"cifar10": 10, "digits": 10}

Numbers = dict[str, Any]


@dataclasses.dataclass
class Row:
    """The runs of one configuration.

    Attributes:
      name: of the stage, or of the folders of the runs.
      stage: the stage whose configuration this is, apart from `SIZES`; None if there is none.
      config: flat, without seeds and keys that change no numbers.
      records: the records of each seed.
      sources: the folder of the run of each seed, and the position of the seed in that run.
      predictions: of all seeds; None unless they were collected and every seed has them.
    """

    name: str
    stage: str | None
    config: dict[str, Any]
    records: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    sources: dict[int, tuple[Path, int]] = dataclasses.field(default_factory=dict)
    predictions: OfRow | None = None

    @property
    def workdirs(self) -> list[Path]:
        """The folders of the runs."""
        return list(dict.fromkeys(workdir for workdir, _ in self.sources.values()))

    def scores(self) -> dict[int, Numbers]:
        """Returns `SCORES` and `CALIBRATION` of each seed, ascending; a value is None if not finite or not known."""
        found, of_predictions = {}, self.predictions.calibration() if self.predictions else {}
        for seed in sorted(self.records):
            test = scores_on_test(self.records[seed])
            assert test  # unfinished runs are left out
            epochs = per_epoch(self.records[seed], "accuracy")
            train = epochs[-1][1] if epochs and math.isfinite(epochs[-1][1]) else None
            gap = None if train is None or test["accuracy"] is None else train - test["accuracy"]
            found[seed] = {name: test[name] for name in NAMES} | {"train_accuracy": train, "gap": gap}
            found[seed] |= {name: of_predictions.get(seed, {}).get(name) for name in CALIBRATION}
        return found

    def hardest_images(self) -> np.ndarray | None:
        """Returns the images of `OfRow.summary()["hardest"]`; None if the test images are not there."""
        if not self.predictions:
            return None
        examples = predictions.images_of(self.workdirs[0], self.predictions.class_names, self.predictions.labels)
        chosen = [each["index"] for each in self.predictions.hardest()]
        return None if examples is None else examples.images(np.array(chosen, np.int64))

    def curve(self, split: str, measure: str) -> list[tuple[float, float, float, float]]:
        """Returns (epoch, mean, lowest, highest) over the seeds, at the epochs that all of them recorded."""
        by_seed = [
            dict(per_epoch(records, measure) if split == "train" else of_split(records, split, measure))
            for records in self.records.values()
        ]
        points = []
        for epoch in sorted(set.intersection(*map(set, by_seed))):
            values = [each[epoch] for each in by_seed]
            if all(map(math.isfinite, values)):
                points.append((epoch, statistics.fmean(values), min(values), max(values)))
        return points


def write_report(
    workdirs: Iterable[Path | str],
    folder: Path | str,
    note: str = "",
    order: str = "ladder",
    predict: bool = True,
) -> dict[str, Any]:
    """Writes index.html, results.json, results.csv and the figures as SVG and PNG files.

    Args:
      workdirs: of runs; those that are not finished are left out, and the page names them.
      folder: created if missing.
      note: a sentence about the runs that their files do not tell, such as how the data were prepared.
      order: of the rows: "ladder", or "given" for that of `workdirs`.
      predict: whether to compute the predictions on the test images that a workdir lacks, from its checkpoint.

    Returns:
      The content of results.json (see `summarise`).

    Raises:
      UserError: a workdir does not exist, none is finished, or the folder cannot be written to.
    """
    from cnn_jax.report import ladder_page  # it draws, and importing matplotlib takes a second

    folder = Path(folder).expanduser()
    rows, left_out = collect([Path(workdir).expanduser() for workdir in workdirs], order)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before anything is computed
        result = summarise(rows, note, left_out, add_predictions(rows, predict))
        ladder_page.write(folder, result, rows)
        with files.replacing(folder / "results.json") as file:
            file.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
        with files.replacing(folder / "results.csv") as file:
            lines = flat(result)
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise UserError(f"Cannot write the report to {folder}: {error.strerror}. Choose another folder.") from None
    return result


def collect(workdirs: Sequence[Path], order: str = "ladder") -> tuple[list[Row], list[Path]]:
    """Returns one row per configuration, and the workdirs that hold no finished run.

    A seed that several workdirs of a row have counts once.

    Raises:
      UserError: a workdir does not exist, a file in it is damaged, or none is finished.
    """
    groups: dict[str, Row] = {}
    left_out = []
    for workdir in workdirs:
        if not workdir.is_dir():
            raise UserError(f"There is no folder {workdir}: name the workdirs of runs.")
        records = read_metrics(workdir)
        scores = scores_on_test(records)
        if not (workdir / CONFIG_FILE).exists() or not scores:
            left_out.append(workdir)
            continue
        if not scores.keys() >= set(NAMES):
            raise _damaged(workdir / METRICS_FILE)
        held = _read(workdir / CONFIG_FILE, "seed")
        config = comparable(held)
        stage = stage_of(config)
        key = json.dumps(config, sort_keys=True)
        row = groups.setdefault(key, Row(stage or _name_of(workdir), stage, config))
        new = [index for index in range(held.get("seeds", 1)) if held["seed"] + index not in row.records]
        row.records |= {held["seed"] + index: [_of_seed(record, index) for record in records] for index in new}
        row.sources |= {held["seed"] + index: (workdir, index) for index in new}
    if not groups:
        raise UserError("None of these runs is finished: train them to the end (the same command resumes a run).")
    rows = list(groups.values())
    if order == "ladder":
        place = {name: number for number, name in enumerate(LADDER)}
        sizes = ("data.train_examples", "epochs")
        rows.sort(key=lambda row: (place.get(row.name, len(place)), *(row.config[size] or 10**9 for size in sizes)))
    _make_names_unique(rows)
    return rows, left_out


def add_predictions(rows: Sequence[Row], compute: bool = True) -> dict[str, list[str]]:
    """Adds their predictions to the rows of whose seeds all have them.

    Args:
      rows: of `collect`.
      compute: whether to compute what a workdir lacks, from its checkpoint.

    Returns:
      Why runs have no predictions, with their workdirs.
    """
    found, missing = predictions.collect((workdir for row in rows for workdir in row.workdirs), compute)
    reasons: dict[str, list[str]] = {}
    for workdir, reason in missing.items():
        reasons.setdefault(reason, []).append(str(workdir))
    for row in rows:
        if all(workdir in found for workdir in row.workdirs):
            row.predictions = OfRow.join({seed: (found[path], index) for seed, (path, index) in row.sources.items()})
            if row.predictions is None:
                reasons.setdefault("the images are not those of the other seeds", []).extend(map(str, row.workdirs))
    return reasons


def comparable(config: Any) -> dict[str, Any]:
    """Returns a configuration flat and as in JSON, without the seeds and keys that change no numbers."""
    flat_config = config_lib.with_defaults(json.loads(json.dumps(config_lib.flatten(config))))
    return {key: value for key, value in flat_config.items() if key not in (*config_lib.FREE, "seed", "seeds")}


def stage_of(config: Mapping[str, Any]) -> str | None:
    """Returns the name of the stage that a `comparable` configuration equals, apart from `SIZES`."""
    for name, stage in _stages().items():
        if all(config.get(key) == stage[key] for key in stage if key not in SIZES):
            return name
    return None


@functools.cache
def _stages() -> dict[str, dict[str, Any]]:
    existing = [name for name in LADDER if (config_lib.ROOT / "cnn_jax" / "configs" / f"{name}.py").is_file()]
    return {name: comparable(config_lib.load(name)) for name in existing}


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """Returns the content of a JSON file, which must have these keys."""
    try:
        content = files.read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: restore it, or leave this run out.")


def _name_of(workdir: Path) -> str:
    """Returns the name of a folder, or of its parent, without the number of the seed at its end."""
    path = workdir.absolute()
    for part in (path.name, path.parent.name):
        name = re.sub(r"[-_.]*(seeds?)?[-_.]*\d*$", "", part)
        if name:
            return name
    return path.name


def _of_seed(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns the record of one seed of a run."""
    lanes = record.get("lanes", {})
    return {key: value for key, value in record.items() if key != "lanes"} | {
        name: values[index] for name, values in lanes.items()
    }


def _make_names_unique(rows: Sequence[Row]) -> None:
    """Adds to names that several rows have the values of the keys in which those rows differ, or a number."""
    for name in {row.name for row in rows}:
        same = [row for row in rows if row.name == name]
        keys = {key for row in same for key in changes(same[0].config, row.config)}
        for number, row in enumerate(same, 1):
            if len(same) > 1:
                values = ", ".join(f"{key.rpartition('.')[2]} {row.config.get(key)}" for key in sorted(keys))
                row.name += f" ({values})" if len(keys) <= 3 else f" ({number})"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the keys whose values differ, with both values; a missing key counts as None."""
    keys = {**before, **after}
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def summarise(
    rows: Sequence[Row],
    note: str = "",
    left_out: Sequence[Path] = (),
    without_predictions: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns the content of results.json: the note, what was left out and why, and one entry per row.

    An entry has the `mean` and the 95 % t `interval` of every score (None for one seed), the scores of every seed as
    `runs`, and the paired `difference` of test accuracy to the previous row (None for the first, and where no seed is
    in both). A difference is `significant` if its adjusted p-value is below `ALPHA` and it has at least
    `statistics.ENOUGH` pairs; it also has the difference `by_image`. `predictions` is `OfRow.summary`. Both are None
    without predictions. Accuracies and their differences are fractions.
    """
    entries, previous = [], None
    for row in rows:
        scores = row.scores()
        columns = {name: [score[name] for score in scores.values()] for name in (*SCORES, *CALIBRATION)}
        known = {name: values for name, values in columns.items() if None not in values}
        entry = {
            "name": row.name,
            "stage": row.stage,
            "seeds": list(scores),
            "n": len(scores),
            "mean": {name: statistics.fmean(known[name]) if name in known else None for name in columns},
            "interval": {name: _bounds(known.get(name, [])) for name in columns},
            "difference": _difference(previous, row) if previous else None,
            "predictions": _of_predictions(row),
            "parameters": parameters(row.config),
            **_cost(row),
            "reference": _reference(row),
            "changes": {key: list(pair) for key, pair in changes(previous.config, row.config).items()}
            if previous
            else {},
            "config": row.config,
            "runs": [{"seed": seed, **score} for seed, score in scores.items()],
            "provenance": _origins(row),
        }
        entries.append(entry)
        previous = row
    differences = [entry["difference"] for entry in entries]
    adjusted = false_discovery([each and each["p_value"] for each in differences])
    for each, p_value in zip(differences, adjusted):
        if each:
            enough = len(each["seeds"]) >= ENOUGH
            each["adjusted_p_value"] = p_value
            each["significant"] = bool(enough and p_value is not None and p_value < ALPHA)
    reasons = {reason: list(runs) for reason, runs in without_predictions.items()}
    return {
        "note": note,
        "left_out": [str(path) for path in left_out],
        "without_predictions": reasons,
        "rows": entries,
    }


def flat(result: Mapping[str, Any]) -> list[Numbers]:
    """Returns one flat dictionary of numbers and texts per row, for CSV; None is an empty cell."""
    lines = []
    for row in result["rows"]:
        line = {"name": row["name"], "stage": row["stage"], "n": row["n"]}
        for name in (*SCORES, *CALIBRATION):
            low, high = row["interval"][name] or (None, None)
            line |= {name: row["mean"][name], f"{name}_low": low, f"{name}_high": high}
        of = row["difference"] or {}
        low, high = of.get("interval") or (None, None)
        line |= {"difference_to": of.get("to"), "difference": of.get("mean"), "difference_n": len(of.get("seeds", ()))}
        line |= {"difference_low": low, "difference_high": high}
        line |= {name: of.get(name) for name in ("p_value", "adjusted_p_value", "significant")}
        low, high = (of.get("by_image") or {}).get("interval") or (None, None)
        line |= {"difference_low_by_image": low, "difference_high_by_image": high}
        seen = row["predictions"] or {}
        line |= {"test_images": seen.get("images"), "wrong_in_all_seeds": seen.get("wrong_in_all")}
        ensemble = seen.get("ensemble") or {}
        low, high = ensemble.get("gain_interval") or (None, None)
        line |= {f"ensemble_{name}": ensemble.get(name) for name in ("accuracy", "gain")}
        line |= {"ensemble_gain_low": low, "ensemble_gain_high": high}
        line |= {f"ensemble_{name}": ensemble.get(name) for name in CALIBRATION}
        line |= {name: row[name] for name in ("parameters", "seconds_per_epoch", "images_per_second")}
        line["reference_accuracy"] = (row["reference"] or {}).get("accuracy")
        line["seeds"] = " ".join(map(str, row["seeds"]))
        line["accuracy_of_seeds"] = " ".join(str(run["accuracy"]) for run in row["runs"])
        lines.append(line)
    return lines


def _bounds(values: Sequence[float]) -> list[float] | None:
    bounds = t_interval(values)
    return list(bounds) if bounds else None


def _difference(before: Row, after: Row) -> dict[str, Any] | None:
    first, second = (
        {seed: scores["accuracy"] for seed, records in row.records.items() if (scores := scores_on_test(records))}
        for row in (before, after)
    )
    found = paired_difference(first, second)
    return found and {
        "to": before.name,
        **found._asdict(),
        "interval": found.interval and list(found.interval),
        "by_image": by_image.difference(before.predictions, after.predictions),
    }


@functools.lru_cache
def _count_parameters(model: str, classes: int, side: int, dtype: str) -> int:
    import jax
    import jax.numpy as jnp

    network = models.build(json.loads(model), classes, dtype)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def parameters(config: Mapping[str, Any]) -> int | None:
    """Returns the number of parameters of the network, frozen ones included.

    None for a data set whose number of classes or image size the configuration does not tell.
    """
    classes, side = _CLASSES.get(config["data.name"]), config["data.image_size"]
    if not classes or not side or config["model.name"] not in models.MODELS:
        return None
    model = {key.removeprefix("model."): value for key, value in config.items() if key.startswith("model.")}
    return _count_parameters(json.dumps(model), classes, side, config["dtype"])


def _of_predictions(row: Row) -> dict[str, Any] | None:
    """Returns the summary of the predictions of a row, with how far their accuracies are off the recorded ones."""
    if not row.predictions:
        return None
    accuracies, scores = row.predictions.accuracies(), row.scores()
    # Recorded accuracies are in single precision.
    off = max(abs(accuracies[seed] - (scores[seed]["accuracy"] or 0)) for seed in accuracies)
    return row.predictions.summary() | {"accuracy_off": off if off > 1e-6 else 0.0}


def _cost(row: Row) -> Numbers:
    """Returns the median time per epoch and seed, and images per second of training, over the workdirs of a row."""
    seconds, speeds = [], []
    for workdir in row.workdirs:
        records = [record for record in read_metrics(workdir) if record["split"] == "train"]
        speeds += [record["images_per_second"] for record in records if record.get("images_per_second")]
        path, last = workdir / TIMES_FILE, records[-1] if records else None
        times = _read(path) if path.exists() else {}
        if last and times.get("steps") and "train" in times.get("seconds", {}):
            # The times are of the last process, which may have resumed the run.
            epochs = last["epoch"] * times["steps"] / last["step"]
            seconds.append(times["seconds"]["train"] / epochs / _read(workdir / CONFIG_FILE).get("seeds", 1))
    return {
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "images_per_second": statistics.median(speeds) if speeds else None,
    }


def _reference(row: Row) -> dict[str, Any] | None:
    name = row.stage or row.name  # a stage with changed keys has the name of its folder
    if name not in reference.STAGES or row.config["data.name"] != reference.DATA:
        return None
    changed = {key: pair for key, pair in changes(_stages()[name], row.config).items() if key not in SIZES}
    protocol = reference.differences(name, row.config, len(row.records), changed)
    return reference.STAGES[name]._asdict() | {"protocol": protocol}


def _origins(row: Row) -> list[dict[str, Any]]:
    """Returns the distinct sources, versions and processors that the runs of a row were trained with."""
    found: list[dict[str, Any]] = []
    for workdir in row.workdirs:
        for segment in provenance.read(workdir) or [{"provenance": {}}]:
            each = segment["provenance"]
            origin = {name: each.get(name) for name in ("commit", "dirty", "processor", "cores")}
            origin |= {name: each.get("versions", {}).get(name) for name in ("cnn_jax", "jax")}
            origin["device"] = (each.get("devices") or {}).get("kind")
            found += [origin] if origin not in found else []
    return found
