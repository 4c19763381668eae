"""An evaluation counts every example once, and agrees with what training recorded."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset, results, scores
from cnn_jax.inference import load_classifier
from cnn_jax.report import html
from cnn_jax.training.metrics import NAMES
from cnn_jax.utils import text
from cnn_jax.workdir.records import read_metrics


@pytest.fixture(scope="module")
def classifier(trained):
    return load_classifier(trained, step="latest")


@pytest.fixture
def workdir(trained, tmp_path):
    """A writable copy of the workdir."""
    return shutil.copytree(trained, tmp_path / "workdir")


def recorded(workdir, split):
    return [record for record in read_metrics(workdir) if record["split"] == split][-1]


def test_the_command_agrees_with_training(command, workdir, tmp_path):
    done = command("evaluate", f"--workdir={workdir}", "--step=latest", f"--report={tmp_path / 'report'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads((workdir / "evaluation.json").read_text())
    for name in NAMES:
        assert result[name] == pytest.approx(recorded(workdir, "test")[name], rel=1e-5), name
    assert (result["split"], result["examples"], result["step"], result["checkpoint"]) == ("test", 359, 25, "latest")
    assert result["data"] == {"name": "digits", "dir": ""}
    assert np.sum(result["confusion_matrix"]) == sum(row["support"] for row in result["classes"]) == 359
    assert 0.05 <= result["temperature"] <= 20
    assert list(workdir.glob("*.partial")) == []
    assert "Test split of digits: 359 images, after step 25, the latest." in done.stdout
    assert f"{result['accuracy']:.2%}" in done.stdout
    assert not re.search(r"[\x1b━─│]", done.stdout)
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"confusion_matrix", "filters", "learning_curves", "mistakes", "network", "reliability"}
    page = (tmp_path / "report" / "index.html").read_text()
    wrong = result["examples"] - round(result["accuracy"] * result["examples"])
    assert page.count("<img src='data:image/png;base64,") == min(html.MISTAKES, wrong) + 1  # and the filters
    assert page.count("<svg ") == 4  # calibration, loss, accuracy, network
    assert not re.search(r"<script|<link|@import|(src|href)=.http", page)
    assert "prefers-color-scheme: dark" in page


def test_other_images_leave_the_evaluation_of_the_test_split(command, workdir, photographs):
    (workdir / "evaluation.json").write_text("{}")
    root = photographs("7/a.png", "7/b.png", "3/c.png")
    for arguments, name in (
        (["--split=validation"], "evaluation-validation.json"),
        (["--data.name=folder", f"--data.dir={root}", f"--report={root}"], "evaluation-folder-all.json"),
    ):
        done = command("evaluate", f"--workdir={workdir}", *arguments)
        assert done.returncode == 0 and f"Written: {workdir / name}" in done.stdout, done.stderr
        assert json.loads((workdir / name).read_text())["accuracy"] is not None
    assert (workdir / "evaluation.json").read_text() == "{}"
    missing = "Classes without images: 0, 1, 2, 4, 5, 6, 8, 9."
    assert missing in done.stdout and missing in (root / "index.html").read_text()


def test_averages_over_the_classes_of_another_data_set_are_over_those_that_it_has():
    labels = np.array([0, 0, 1, 1], np.int32)
    log_probs = np.log(np.full((4, 3), 0.1) + 0.7 * np.eye(3)[[0, 0, 1, 2]])
    found = results.describe(log_probs, labels, ("a", "b", "c"), own=False)
    for name, score in (("precision", metrics.precision_score), ("recall", metrics.recall_score)):
        assert found[name] == pytest.approx(score(labels, [0, 0, 1, 2], labels=[0, 1], average="macro"))
        own = results.describe(log_probs, labels, ("a", "b", "c"))
        with_all = score(labels, [0, 0, 1, 2], labels=[0, 1, 2], average="macro", zero_division=0)
        assert own[name] == pytest.approx(with_all)


def test_the_splits_are_those_of_training(classifier, trained):
    validation = dataset.load(classifier, "validation")
    log_probs = dataset.predict(classifier, validation)
    assert scores.loss(log_probs, validation.labels) == pytest.approx(recorded(trained, "validation")["loss"], rel=1e-5)
    assert len(dataset.load(classifier, "train")) == 200
    assert len(validation) == 100


def test_the_temperature_is_of_the_validation_split(classifier, tmp_path):
    test, validation = (dataset.load(classifier, split) for split in ("test", "validation"))
    log_probs = dataset.predict(classifier, test)
    result = results.measure(classifier, test, log_probs, tmp_path)
    assert result["temperature"] == scores.fit_temperature(dataset.predict(classifier, validation), validation.labels)
    calibrated = scores.calibrate(log_probs, result["temperature"])
    assert result["calibrated"]["loss"] == pytest.approx(scores.loss(calibrated, test.labels))
    assert ("    temperature", "none: no mistakes to fit it to") in results.rows(result | {"temperature": 1.0})
    config = classifier.metadata["config"]
    none = classifier.metadata | {"config": config | {"data": config["data"] | {"validation": 0}}}
    result = results.measure(dataclasses.replace(classifier, metadata=none), test, log_probs, tmp_path)
    assert result["temperature"] is None and result["calibrated"] is None


@pytest.mark.parametrize("chunk", [1, 100, 359])
def test_chunks_do_not_matter(classifier, monkeypatch, chunk):
    test = dataset.load(classifier)
    test = dataclasses.replace(test, indices=test.indices[:101], labels=test.labels[:101])
    expected = classifier.score(test.images(slice(None)))
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    np.testing.assert_allclose(dataset.predict(classifier, test), expected, rtol=1e-4, atol=1e-5)


def test_photographs_are_matched_by_the_name_of_their_class(classifier, photographs, tmp_path):
    root = photographs("7/a.png", "7/b.jpg", "3/c.png", "empty/readme.txt.png")
    shutil.rmtree(root / "empty")
    (root / "empty").mkdir()
    scored = dataset.load(classifier, name="folder", directory=str(root))
    assert (scored.split, scored.own, scored.labels.tolist()) == ("all", False, [3, 7, 7])
    log_probs = dataset.predict(classifier, scored)
    paths = [root / "3" / "c.png", root / "7" / "a.png", root / "7" / "b.jpg"]
    np.testing.assert_allclose(np.exp(log_probs), classifier(paths), rtol=1e-4)
    result = results.measure(classifier, scored, log_probs, tmp_path)
    assert result["examples"] == 3 and result["temperature"] is None
    assert "All images in" in results.heading(result | {"checkpoint": "best"})
    # An earlier evaluation of the same step knows the temperature.
    results.write(result | {"temperature": 1.5}, tmp_path)
    assert results.measure(classifier, scored, log_probs, tmp_path)["temperature"] == 1.5
    results.write(result | {"temperature": 1.5, "step": 1}, tmp_path)
    assert results.measure(classifier, scored, log_probs, tmp_path)["temperature"] is None


def test_a_folder_may_have_splits(classifier, photographs):
    root = photographs("test/1/a.png", "train/2/b.png", "train/2/c.png")
    assert dataset.load(classifier, None, "folder", str(root)).labels.tolist() == [1]
    assert dataset.load(classifier, "train", "folder", str(root)).labels.tolist() == [2, 2]
    with pytest.raises(UserError, match="leave out --split"):
        dataset.load(classifier, "validation", "folder", str(root))


def test_names_are_matched_without_regard_to_capitals():
    labels = np.array([1, 0, 1], np.int32)
    assert dataset.match(labels, ("Dog", "CAT"), ("cat", "dog"), "here").tolist() == [0, 1, 0]
    assert dataset.match(labels, ("a", "A"), ("b", "A", "a"), "here").tolist() == [1, 2, 1]
    assert dataset.match(labels, ("cat", "dog", "unknown but unused"), ("cat", "dog"), "here").tolist() == [1, 0, 1]
    with pytest.raises(UserError, match=r"here has images of bird, which the network was not trained on.* \(cat, dog"):
        dataset.match(labels, ("cat", "bird"), ("cat", "dog"), "here")


def test_class_names_are_text(classifier, tmp_path, capsys):
    names = ("<b>bold</b>", "[red]", ":smile:", "$x$", "&amp;", "猫", "a" * 90, "", "'", "\x1b[31mred\n")
    odd = dataclasses.replace(classifier, class_names=names)
    test = dataset.load(classifier)
    log_probs = dataset.predict(classifier, test)
    result = {"checkpoint": "best"} | results.measure(classifier, test, log_probs, tmp_path)
    result |= results.describe(log_probs, test.labels, names)
    results.show(result, tmp_path)
    shown = capsys.readouterr().out
    assert all(text.printable(name) in shown for name in names) and "\x1b" not in shown
    page = html.write(tmp_path, tmp_path, odd, test, log_probs, result).read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page and "&amp;amp;" in page
    assert not (tmp_path / "learning_curves.png").exists()  # there are no records


def test_many_classes_are_shown_as_confusions(tmp_path, capsys):
    labels = np.arange(30) % 20
    log_probs = np.log(np.eye(20)[(labels + (labels == 4)) % 20] * 0.9 + 0.005)
    result = results.describe(log_probs, labels, tuple(f"class {i}" for i in range(20)))
    result |= {"checkpoint": "best", "step": 1, "split": "test", "data": {"name": "x", "dir": ""}, "temperature": None}
    results.show(result, tmp_path)
    assert re.search(r"class 4 +class 5 +2", capsys.readouterr().out)


def test_values_that_are_not_finite_are_null(tmp_path):
    result = results.describe(np.array([[0.0, -np.inf], [np.nan, np.nan]]), np.array([1, 0]), ("a", "b"))
    assert json.loads(results.write(result, tmp_path).read_text())["loss"] is None


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--workdir=... is missing"),
        (["--workdir=NOTHING"], "There is no workdir"),
        (["--workdir=README.md"], "README.md is a file"),
        (["--workdir=W", "--step=many"], "--step is 'many'; it must be"),
        (["--workdir=W", "--step=12345"], "There is no step 12345"),
        (["--workdir=W", "--split=most"], "test|validation|train"),
        (["--workdir=W", "--data.name=folder"], "needs --data.dir=DIR"),
        (["--workdir=W", "--data.name=folder", "--data.dir=NOTHING"], "NOTHING is not a folder"),
        (["--workdir=W", "--data.name=folder", "--data.dir=PHOTOGRAPHS"], "has images of zebra, which"),
        (["--workdir=W", "--report=/dev/null/x"], "Cannot create --report=/dev/null/x"),
    ],
)
def test_one_clear_line(command, trained, photographs, arguments, says):
    places = {"=W": f"={trained}", "PHOTOGRAPHS": str(photographs("1/a.png", "zebra/b.png"))}
    for old, new in places.items():
        arguments = [argument.replace(old, new) for argument in arguments]
    done = command("evaluate", *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and not (trained / "evaluation.json").exists()


def test_a_damaged_photograph_is_named(classifier, photographs):
    root = photographs("1/a.png", "2/b.png")
    (root / "1" / "a.png").write_bytes(b"no image")
    scored = dataset.load(classifier, None, "folder", str(root))
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        dataset.predict(classifier, scored)


def test_only_the_chosen_images_are_decoded(classifier, photographs, tmp_path):
    root = photographs(*(f"1/{i}.png" for i in range(4)))
    scored = dataset.load(classifier, None, "folder", str(root))
    Image.new("RGB", (9, 9), "red").save(root / "1" / "2.png")
    (root / "1" / "0.png").unlink()
    assert scored.images(np.array([2])).shape == (1, 32, 32, 3)


def test_neither_trainer_nor_optimizer(command):
    code = """
import sys
import cnn_jax.evaluate
light = set(sys.modules)
from cnn_jax.evaluation import dataset, results
from cnn_jax.report import html
heavy = {"cnn_jax.training", "optax", "tensorflow", "matplotlib.pyplot"} & set(sys.modules)
assert not heavy, heavy
assert not {"jax", "matplotlib", "rich"} & light
"""
    done = command("", code=code)
    assert done.returncode == 0, done.stderr
