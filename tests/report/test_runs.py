"""The report on several runs: rows, statistics, files and page, recomputed from metrics.jsonl."""

import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, stage
from PIL import Image
from scipy import stats

from cnn_jax import config as config_lib
from cnn_jax.errors import UserError
from cnn_jax.report import reference, runs
from cnn_jax.training.metrics import NAMES

PUBLISHED = ROOT / "reports" / "runs"
GLANCE = sorted(PUBLISHED.glob("glance-*"))


def make_run(folder, name, accuracies, seed=0, label=None, times=None, **changes):
    """A finished run of two epochs, with one seed or several."""
    workdir = folder / (label or f"{name}-{seed}")
    workdir.mkdir(parents=True)
    config = stage(name)
    config.update_from_flattened_dict({"seed": seed, "seeds": len(accuracies), **changes})
    config_lib.write(config, workdir / "config.json")

    def record(split, epoch, shift, **more):
        values = [accuracy + shift for accuracy in accuracies]
        found = {"step": 10 * epoch, "epoch": epoch, "split": split} | dict.fromkeys(NAMES, 0.25) | more
        found["accuracy"] = float(np.mean(values))
        if len(values) > 1:
            found["lanes"] = {each: [0.25] * len(values) for each in NAMES} | {"accuracy": values}
        return json.dumps(found)

    lines = [record("train", 1, -0.2), record("validation", 1, -0.1), record("train", 2, 0.1, images_per_second=40)]
    lines += [record("validation", 2, 0.02), record("test", 2, 0)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if times:
        (workdir / "times.json").write_text(json.dumps(times))
    return workdir


def summary(*workdirs, **options):
    return runs.summarise(runs.collect(workdirs, **options)[0])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report on the published runs of 5,000 images: its folder and what `write_report` returned."""
    folder = tmp_path_factory.mktemp("report")
    return folder, runs.write_report(GLANCE, folder / "new", "A note with <b> & 'quotes'.")


def test_published_runs_are_recomputed(report):
    rows = report[1]["rows"]
    assert [row["name"] for row in rows] == list(runs.LADDER[:6])
    accuracy = {}
    for row in rows:
        tests = []
        for seed in row["seeds"]:
            lines = (PUBLISHED / f"glance-{row['name']}-{seed}" / "metrics.jsonl").read_text().splitlines()
            tests.append(next(r for r in map(json.loads, reversed(lines)) if r["split"] == "test"))
        accuracy[row["name"]] = [test["accuracy"] for test in tests]
        assert row["seeds"] == [0, 1, 2, 3, 4] and row["n"] == 5
        for name in NAMES:
            values = [test[name] for test in tests]
            assert row["mean"][name] == pytest.approx(np.mean(values))
            expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert row["interval"][name] == pytest.approx(list(expected))
    for before, after in zip(rows, rows[1:]):
        of = after["difference"]
        expected = stats.ttest_rel(accuracy[after["name"]], accuracy[before["name"]])
        assert of["to"] == before["name"]
        assert of["mean"] == pytest.approx(after["mean"]["accuracy"] - before["mean"]["accuracy"])
        assert of["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))
        assert of["p_value"] >= 2 / 2**5 and not of["significant"]
    adjusted = [row["difference"]["adjusted_p_value"] for row in rows[1:]]
    assert adjusted == pytest.approx(stats.false_discovery_control([r["difference"]["p_value"] for r in rows[1:]]))
    assert rows[0]["difference"] is None


def test_the_files_agree(report):
    folder, result = report[0] / "new", report[1]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(result))
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result["rows"])
    for line, row in zip(lines, result["rows"]):
        assert (line["name"], int(line["n"])) == (row["name"], row["n"])
        for name in runs.SCORES:
            assert float(line[name]) == row["mean"][name]
            assert [float(line[f"{name}_{end}"]) for end in ("low", "high")] == row["interval"][name]
        assert [float(x) for x in line["accuracy_of_seeds"].split()] == [run["accuracy"] for run in row["runs"]]
        of = row["difference"]
        assert line["difference"] == ("" if of is None else str(of["mean"]))
        assert line["p_value"] == ("" if of is None else str(of["p_value"]))
    for name in ("waterfall", "accuracy", "learning_curves", "learning_curves_loss", "reference"):
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        with Image.open(folder / f"{name}.png") as image:
            image.load()


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects ids, texts, and what a browser would load."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loaded, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in self.VOID else [tag]
        self.note(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def note(self, tag, attrs):
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.loaded += [value] if name in ("src", "href", "xlink:href") and not value.startswith("#") else []
        assert tag not in ("script", "link", "iframe", "object")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_well_formed_and_self_contained(report):
    text = (report[0] / "new" / "index.html").read_text()
    page = Page(text)
    assert page.open == [] and page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)", text)
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", text))
    assert used and used <= set(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert "A note with <b> & 'quotes'." in page.texts
    seen = " ".join(page.texts)
    assert seen.index("Gain of each step") < seen.index("Test accuracy")
    for row in report[1]["rows"]:
        assert row["name"] in page.texts
    assert "model.batch_norm: false → true" in page.texts
    assert "5,000 training images instead of 50,000" in page.texts
    assert "There are too few seeds to call any difference significant" in seen
    assert "0.0625" in seen


def test_one_seed_has_no_interval(tmp_path):
    workdirs = [make_run(tmp_path, "baseline", [0.4]), make_run(tmp_path, "batchnorm", [0.6])]
    result = runs.write_report(workdirs, tmp_path / "report")
    first, second = result["rows"]
    assert set(first["interval"].values()) == {None}
    assert second["difference"]["mean"] == pytest.approx(0.2)
    assert second["difference"]["interval"] is None and second["difference"]["p_value"] is None
    assert second["difference"]["significant"] is False
    assert "[" not in "".join(Page((tmp_path / "report" / "index.html").read_text()).texts).split("What changes")[0]


@pytest.mark.parametrize("n", [5, 6])
def test_fewer_than_six_seeds_are_never_significant(tmp_path, n):
    before, after = ([base + 0.001 * i for i in range(n)] for base in (0.4, 0.6))
    workdirs = [make_run(tmp_path, "baseline", before), make_run(tmp_path, "batchnorm", after)]
    runs.write_report(workdirs, tmp_path / "report")
    of = summary(*workdirs)["rows"][1]["difference"]
    assert of["p_value"] == of["adjusted_p_value"] == 2 / 2**n
    assert of["significant"] == (n == 6)
    seen = "".join(Page((tmp_path / "report" / "index.html").read_text()).texts)
    assert ("Significant (adjusted p < 0.05): batchnorm." in seen) == (n == 6)
    assert ("too few seeds" in seen) == (n == 5)


def test_several_seeds_of_one_run_are_like_several_runs(tmp_path):
    accuracies = [0.5, 0.7, 0.65]
    together = make_run(tmp_path, "dropout", accuracies, seed=3, label="together", steps_per_call=7)
    alone = [make_run(tmp_path, "dropout", [value], seed=3 + i) for i, value in enumerate(accuracies)]
    one, other = (summary(*workdirs)["rows"] for workdirs in ([together], alone))
    assert len(one) == len(other) == 1
    assert one[0]["seeds"] == [3, 4, 5]
    assert one[0]["runs"] == other[0]["runs"]
    assert one[0]["interval"]["gap"] == pytest.approx([0.1, 0.1])  # the last epoch of training is 0.1 above the test
    assert len(summary(together, *alone)["rows"][0]["runs"]) == 3  # a seed counts once


def test_the_band_of_a_curve_is_the_range_of_the_seeds(tmp_path):
    row = runs.collect([make_run(tmp_path, "dropout", [0.5, 0.7])])[0][0]
    assert np.array(row.curve("validation", "accuracy")) == pytest.approx(
        np.array([[1, 0.5, 0.4, 0.6], [2, 0.62, 0.52, 0.72]])
    )
    assert np.array(row.curve("train", "accuracy")) == pytest.approx(np.array([[1, 0.4, 0.3, 0.5], [2, 0.7, 0.6, 0.8]]))


def test_times_are_per_epoch_and_seed(tmp_path):
    # The process trained the last 5 of 20 steps, which are half an epoch, of two seeds.
    times = {"steps": 5, "seconds": {"train": 8.0}}
    row = summary(make_run(tmp_path, "dropout", [0.5, 0.7], times=times))["rows"][0]
    assert row["seconds_per_epoch"] == 8.0 / 0.5 / 2
    assert row["images_per_second"] == 40


def test_orders_names_and_what_is_left_out(tmp_path):
    (tmp_path / "unfinished").mkdir()
    changed = make_run(tmp_path, "basic", [0.2], label="batch64-seed0", batch_size=64)
    longer = make_run(tmp_path, "augment", [0.8], label="longer", epochs=200)
    short = make_run(tmp_path, "augment", [0.7])
    given = [changed, longer, tmp_path / "unfinished", short, make_run(tmp_path, "basic", [0.3])]
    rows, left_out = runs.collect(given)
    assert [row.name for row in rows] == ["basic", "augment (epochs 100)", "augment (epochs 200)", "batch64"]
    assert [row.stage for row in rows] == ["basic", "augment", "augment", None]
    assert left_out == [tmp_path / "unfinished"]
    assert runs.collect(given, "given")[0][0].name == "batch64"
    assert runs.summarise(rows)["rows"][3]["changes"]["batch_size"] == [32, 64]


def test_parameters_are_those_of_the_network():
    def conv(inputs, outputs):
        return 9 * inputs * outputs + outputs

    expected = conv(3, 32) + conv(32, 64) + conv(64, 128) + 2048 * 10 + 10
    assert runs.parameters(runs.comparable(stage("basic"))) == expected
    unknown = stage("basic")
    unknown.data.name = "folder"
    assert runs.parameters(runs.comparable(unknown)) is None


@pytest.mark.parametrize(("validation", "images"), [(0.1, 45_000), (0, 50_000), (2000, 48_000)])
def test_differences_from_the_reference(validation, images):
    config = stage("augment")
    config.data.validation = validation
    assert reference.training_images(runs.comparable(config)) == images
    found = reference.differences("augment", runs.comparable(config), 1, {})
    assert any("training images instead" in phrase for phrase in found) == (images != 50_000)
    assert not any("epochs instead" in phrase for phrase in found)


def test_a_changed_key_is_a_difference_from_the_reference(tmp_path):
    row = summary(make_run(tmp_path, "dropout", [0.5], batch_size=64, epochs=50))["rows"][0]
    assert (row["name"], row["stage"]) == ("dropout", None)
    assert row["reference"]["accuracy"] == 0.8083
    assert "batch_size 64 instead of 32" in row["reference"]["protocol"]


def test_other_data_are_not_compared_with_the_reference(tmp_path):
    result = runs.write_report([make_run(tmp_path, "dropout", [0.5, 0.6], **{"data.name": "digits"})], tmp_path / "new")
    assert result["rows"][0]["reference"] is None
    assert "Beside the reference" not in (tmp_path / "new" / "index.html").read_text()


def test_numbers_that_are_not_finite(tmp_path):
    workdir = make_run(tmp_path, "baseline", [0.1])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"loss": None} | ({"accuracy": None} if line["split"] == "train" else {})
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    row = runs.write_report([workdir], tmp_path / "report")["rows"][0]
    assert row["mean"]["loss"] is None and row["mean"]["gap"] is None
    assert math.isfinite(row["mean"]["accuracy"])


def test_hostile_names(tmp_path):
    workdirs = [make_run(tmp_path, "basic", [0.1 * n], label=f'$x$ <i>&" {n}a', batch_size=64 + n) for n in (1, 2)]
    runs.write_report(workdirs, tmp_path / "report")
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert page.open == [] and '$x$ <i>&" 1a' in page.texts


def test_user_errors(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        runs.write_report([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match="None of these runs is finished"):
        runs.write_report([tmp_path], tmp_path / "report")
    workdir = make_run(tmp_path, "basic", [0.5])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Choose another folder"):
        runs.write_report([workdir], tmp_path / "file")
    broken = shutil.copytree(workdir, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        runs.write_report([broken], tmp_path / "report")


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", "{}"),
        ("config.json", "[]"),
        ("times.json", "[]"),
        ("metrics.jsonl", '{"step": 9, "epoch": 1, "split": "test"}'),
    ],
)
def test_a_file_that_lacks_what_it_must_have_is_damaged(tmp_path, name, content):
    workdir = make_run(tmp_path, "basic", [0.5])
    (workdir / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        runs.write_report([workdir], tmp_path / "report")


def test_the_command(tmp_path, command):
    workdirs = [make_run(tmp_path, "basic", [0.5]), tmp_path / "unfinished"]
    workdirs[1].mkdir()
    done = command("report", *map(str, workdirs), f"--output={tmp_path / 'report'}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "unfinished: not a finished run, left out" in done.stdout
    assert (tmp_path / "report" / "index.html").exists()
    done = command("report", f"--output={tmp_path / 'report'}")
    assert done.returncode == 1 and done.stderr.startswith("Error: Name the workdirs")
