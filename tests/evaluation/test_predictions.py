"""The predictions of a run are those that its test scores are of, for every seed, and are computed once."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from cnn_jax.evaluation import dataset, predictions
from cnn_jax.inference import load_classifier
from cnn_jax.workdir.records import read_metrics, scores_on_test

TWO = ROOT / "tests" / "fixtures" / "stopped"  # a run with two seeds


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "workdir")


@pytest.fixture
def two_seeds(tmp_path):
    """A workdir with two seeds and the test scores of each, from the classifiers that the seeds give."""
    workdir = shutil.copytree(TWO, tmp_path / "two")
    accuracies = []
    for seed in (0, 1):
        classifier = load_classifier(workdir, seed=seed)
        test = dataset.load(classifier)
        accuracies.append(float((classifier(test.images(slice(None))).argmax(-1) == test.labels).mean()))
    record = {
        "step": 13,
        "epoch": 1,
        "split": "test",
        "accuracy": np.mean(accuracies),
        "lanes": {"accuracy": accuracies},
    }
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    return workdir


def test_they_have_the_accuracies_that_training_recorded(workdir):
    found, missing = predictions.collect([workdir])
    held = found[workdir]
    record = scores_on_test(read_metrics(workdir))
    assert not missing and held.step == record["step"]
    right = (held.log_probs[0].argmax(-1) == held.labels).sum()
    assert right == round(record["accuracy"] * 359)
    assert predictions.accuracies(held) == [right / 359]
    of_label = held.log_probs[0][np.arange(359), held.labels].astype(np.float64)
    assert -of_label.mean() == pytest.approx(record["loss"], rel=1e-5)
    validation = [record for record in read_metrics(workdir) if record["split"] == "validation"][-1]
    of_validation = held.validation_log_probs[0].argmax(-1) == held.validation_labels
    assert of_validation.mean() == pytest.approx(validation["accuracy"])


def test_every_seed_has_its_own(two_seeds):
    held = predictions.collect([two_seeds])[0][two_seeds]
    classifiers = [load_classifier(two_seeds, seed=seed) for seed in (0, 1)]
    images = dataset.load(classifiers[0]).images(slice(None))
    expected = [classifier(images) for classifier in classifiers]
    np.testing.assert_allclose(np.exp(held.log_probs), expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_they_are_kept(workdir, monkeypatch):
    first = predictions.collect([workdir])[0][workdir]
    shutil.rmtree(workdir / "checkpoints")
    monkeypatch.setattr(predictions, "load_classifier", None)
    again = predictions.collect([workdir], compute=False)[0][workdir]
    for name in vars(first):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.class_names == first.class_names and not list(workdir.glob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_or_older_ones_are_computed_again(workdir, content):
    first = predictions.collect([workdir])[0][workdir]
    path = workdir / "predictions.npz"
    if content is None:
        with np.load(path) as arrays:
            texts = json.loads(str(arrays["texts"])) | {"step": 1}
            np.savez(path, **dict(arrays) | {"texts": np.array(json.dumps(texts))})
    else:
        path.write_bytes(content)
    np.testing.assert_array_equal(predictions.collect([workdir])[0][workdir].log_probs, first.log_probs)
    assert predictions.read(workdir).step == first.step


def test_without_checkpoints_there_are_none(workdir):
    shutil.rmtree(workdir / "checkpoints")
    assert predictions.collect([workdir]) == ({}, {workdir: "the checkpoints are not there"})
    assert predictions.collect([workdir], compute=False) == ({}, {workdir: "no predictions were kept"})


def test_those_of_other_images_are_refused(workdir):
    path = workdir / "metrics.jsonl"
    *others, last = path.read_text().splitlines()
    record = json.loads(last)
    assert record["split"] == "test"
    shifted = record | {"accuracy": record["accuracy"] + 0.006}
    path.write_text("\n".join([*others, json.dumps(shifted)]))
    found, missing = predictions.collect([workdir])
    assert not found and "was recorded: if the test images have changed" in missing[workdir]


def test_images_are_found_by_their_labels(workdir):
    held = predictions.collect([workdir])[0][workdir]
    examples = predictions.images_of(workdir, held.class_names, held.labels)
    assert len(examples) == 359
    assert predictions.images_of(workdir, held.class_names, held.labels[::-1]) is None
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"name": "folder", "dir": str(workdir / "nowhere")}
    (workdir / "config.json").write_text(json.dumps(config))
    assert predictions.images_of(workdir, held.class_names, held.labels) is None


def test_the_fingerprint_is_of_pixels_and_labels(trained):
    test = dataset.load(load_classifier(trained))
    before = test.fingerprint
    changed = [
        dataset.dataclasses.replace(test, labels=np.roll(test.labels, 1)),
        dataset.dataclasses.replace(test, indices=np.roll(test.indices, 1)),
    ]
    assert len({before, *(each.fingerprint for each in changed)}) == 3
