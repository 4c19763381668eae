"""What predictions add to a report, recomputed in another way: loops, scikit-learn, SciPy, resampled indices."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics
from test_runs import Page, make_run

from cnn_jax.evaluation import predictions
from cnn_jax.evaluation.predictions import Predictions
from cnn_jax.report import by_image, runs

N, M, CLASSES = 359, 150, 10  # test and validation images of digits


def draw(generator, labels, skill):
    """Log-probabilities of a network that is overconfident; `skill` is how far the right class stands out."""
    logits = 3 * generator.standard_normal((len(labels), CLASSES))
    logits[np.arange(len(labels)), labels] += skill
    return special.log_softmax(logits, -1).astype(np.float32)


def make_predictions(seed, skills, fingerprint="images"):
    generator = np.random.default_rng(0)
    labels, validation = (generator.integers(0, CLASSES, size).astype(np.int32) for size in (N, M))
    generator = np.random.default_rng(seed)
    test, held_out = (np.stack([draw(generator, each, skill) for skill in skills]) for each in (labels, validation))
    names = tuple(f"class {i}" for i in range(CLASSES))
    return Predictions(20, fingerprint, names, labels, test, validation, held_out)


def row_of(seed=1, skills=(4.0, 5.0, 6.0), **options):
    held = make_predictions(seed, skills, **options)
    return held, by_image.OfRow.join({index: (held, index) for index in range(len(skills))})


def calibration_error(log_probs, labels):
    """Guo et al. 2017, equation 3, one image after the other."""
    bins = [[] for _ in range(15)]
    for row, label in zip(np.exp(log_probs.astype(np.float64)), labels):
        bins[min(int(np.ceil(row.max() * 15)) - 1, 14)].append((row.max(), row.argmax() == label))
    return sum(abs(sum(sure for sure, _ in each) - sum(right for _, right in each)) for each in bins) / len(labels)


def temperature_of(log_probs, labels):
    def loss(log_temperature):
        return metrics.log_loss(labels, special.softmax(log_probs / np.exp(log_temperature), -1), labels=range(CLASSES))

    return float(np.exp(optimize.minimize_scalar(loss, (-1, 1)).x))


def check_calibration(found, test, labels, validation, validation_labels):
    temperature = temperature_of(validation.astype(np.float64), validation_labels)
    scaled = special.log_softmax(test.astype(np.float64) / temperature, -1)
    assert found["temperature"] == pytest.approx(temperature, rel=1e-4)
    assert found["loss"] == pytest.approx(metrics.log_loss(labels, special.softmax(test, -1)), rel=1e-5)
    assert found["calibrated_loss"] == pytest.approx(metrics.log_loss(labels, np.exp(scaled)), rel=1e-5)
    assert found["calibration_error"] == pytest.approx(calibration_error(test, labels), rel=1e-5)
    assert found["calibrated_error"] == pytest.approx(calibration_error(scaled, labels), rel=1e-2)


def test_calibration():
    held, row = row_of()
    for seed, found in row.calibration().items():
        check_calibration(
            found, held.log_probs[seed], held.labels, held.validation_log_probs[seed], held.validation_labels
        )
        assert found["calibrated_loss"] < found["loss"]


def test_the_ensemble_is_the_mean_of_the_probabilities():
    held, row = row_of()
    test, validation = (np.log(np.exp(each.astype(np.float64)).mean(0))
                        for each in (held.log_probs, held.validation_log_probs))  # fmt: skip
    found = row.summary()["ensemble"]
    right = test.argmax(-1) == held.labels
    single = (held.log_probs.argmax(-1) == held.labels).mean(0)
    assert found["members"] == 3 and found["accuracy"] == pytest.approx(right.mean())
    assert found["gain"] == pytest.approx(np.mean(right - single))
    low, high = found["gain_interval"]
    assert low < found["gain"] < high
    check_calibration(found, test, held.labels, validation, held.validation_labels)


def test_one_run_with_several_seeds_is_like_several_runs():
    held, row = row_of()
    alone = {
        seed: (
            dataclasses.replace(
                held,
                log_probs=held.log_probs[[seed]],
                validation_log_probs=held.validation_log_probs[[seed]],
            ),
            0,
        )
        for seed in (2, 0, 1)
    }
    other = by_image.OfRow.join(alone)
    assert list(other.test) == [0, 1, 2]
    assert other.summary() == row.summary()
    assert by_image.OfRow.join({**alone, 3: (dataclasses.replace(held, fingerprint="others"), 0)}) is None


def test_confusions_and_images_that_all_seeds_get_wrong():
    held, row = row_of()
    found = row.summary()
    predicted = held.log_probs.argmax(-1)
    expected = sum(metrics.confusion_matrix(held.labels, each, labels=range(CLASSES)) for each in predicted)
    np.testing.assert_array_equal(found["confusion_matrix"], expected)
    wrong = [index for index in range(N) if all(each[index] != held.labels[index] for each in predicted)]
    right = [index for index in range(N) if all(each[index] == held.labels[index] for each in predicted)]
    assert (found["wrong_in_all"], found["right_in_all"], found["images"]) == (len(wrong), len(right), N)
    assert wrong and {each["index"] for each in found["hardest"]} <= set(wrong)
    assert len(found["hardest"]) == min(by_image.HARDEST, len(wrong))
    sure = [each["probability"] for each in found["hardest"]]
    assert sure == sorted(sure, reverse=True)
    for each in found["hardest"]:
        index, votes = each["index"], [f"class {one[each['index']]}" for one in predicted]
        assert each["true"] == f"class {held.labels[index]}" != each["predicted"]
        assert votes.count(each["predicted"]) == max(map(votes.count, votes))
        mean = np.exp(held.log_probs[:, index]).mean(0)
        assert each["probability"] == pytest.approx(mean[int(each["predicted"].split()[1])], rel=1e-5)
        assert each["probability_of_true"] == pytest.approx(mean[held.labels[index]], rel=1e-5)


def test_the_difference_by_image_is_that_of_resampled_test_sets():
    (before, first), (after, second) = row_of(1, (4.0, 5.0)), row_of(2, (5.0, 6.0, 7.0))
    found = by_image.difference(first, second)  # seeds 0 and 1 are in both
    accuracy = [(each.log_probs[:2].argmax(-1) == each.labels) for each in (before, after)]
    assert found["images"] == N
    assert found["mean"] == pytest.approx(accuracy[1].mean() - accuracy[0].mean())
    generator, means = np.random.default_rng(5), []
    for _ in range(20_000):
        drawn = generator.integers(0, N, N)
        means.append(accuracy[1][:, drawn].mean() - accuracy[0][:, drawn].mean())
    assert found["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.0015)


def test_no_difference_without_common_images_or_seeds():
    (held, row), (_, other) = row_of(), row_of(fingerprint="others")
    assert by_image.difference(None, row) is None and by_image.difference(row, other) is None
    assert by_image.difference(row, by_image.OfRow.join({9: (held, 0)})) is None


def test_a_network_that_predicts_nan_has_no_calibration():
    held, _ = row_of(skills=(4.0, 5.0))
    held.log_probs[0, :] = np.nan
    row = by_image.OfRow.join({seed: (held, seed) for seed in (0, 1)})
    assert set(row.calibration()[0].values()) == {None} and None not in row.calibration()[1].values()
    found = json.loads(json.dumps(row.summary(), allow_nan=False))
    assert found["ensemble"]["calibrated_error"] is None
    assert {each["probability"] for each in found["hardest"]} == {0.0}
    assert by_image.OfRow.join({0: (held, 1)}).summary()["ensemble"] is None


def test_without_validation_images_there_is_no_temperature():
    held, _ = row_of()
    held = dataclasses.replace(
        held, validation_labels=held.validation_labels[:0], validation_log_probs=held.validation_log_probs[:, :0]
    )
    row = by_image.OfRow.join({seed: (held, seed) for seed in range(3)})
    assert row.calibration()[0]["temperature"] is None and row.calibration()[0]["calibration_error"] > 0
    assert row.summary()["ensemble"]["calibrated_error"] is None


@pytest.fixture
def workdirs(tmp_path, monkeypatch):
    """Runs of two stages with three seeds each, and their predictions; those of the second are one run."""
    held = {}
    for name, seed, skills in (("baseline", 1, (4.0, 5.0, 6.0)), ("batchnorm", 2, (5.0, 6.0, 7.0))):
        whole = make_predictions(seed, skills)
        accuracies = predictions.accuracies(whole)
        if name == "batchnorm":
            held[make_run(tmp_path, name, accuracies, **{"data.name": "digits"})] = whole
            continue
        for index, accuracy in enumerate(accuracies):
            workdir = make_run(tmp_path, name, [accuracy], seed=index, **{"data.name": "digits"})
            held[workdir] = dataclasses.replace(
                whole,
                log_probs=whole.log_probs[[index]],
                validation_log_probs=whole.validation_log_probs[[index]],
            )
    monkeypatch.setattr(
        predictions, "collect", lambda workdirs, compute: ({path: held[path] for path in workdirs if path in held}, {})
    )
    return list(held)


def test_the_report(workdirs, tmp_path):
    result = runs.write_report(workdirs, tmp_path / "report")
    first, second = result["rows"]
    whole = make_predictions(2, (5.0, 6.0, 7.0))
    errors = [calibration_error(each, whole.labels) for each in whole.log_probs]
    assert second["mean"]["calibration_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert [run["calibration_error"] for run in second["runs"]] == pytest.approx(errors, rel=1e-5)
    assert second["difference"]["by_image"]["mean"] == pytest.approx(second["difference"]["mean"])
    assert first["predictions"]["accuracy_off"] == second["predictions"]["accuracy_off"] == 0
    line = runs.flat(result)[1]
    assert [line["difference_low_by_image"], line["difference_high_by_image"]] == (
        second["difference"]["by_image"]["interval"]
    )
    assert line["ensemble_accuracy"] == second["predictions"]["ensemble"]["accuracy"]
    assert (line["test_images"], line["calibration_error"]) == (N, second["mean"]["calibration_error"])
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(json.dumps(result))

    text = (tmp_path / "report" / "index.html").read_text()
    page = Page(text)
    seen = " ".join(page.texts)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    titles = ["Test accuracy", "Calibration", "Ensembles", "Classes and mistakes", "Cost"]
    assert sorted(titles, key=seen.index) == titles
    assert "exactly the recorded test accuracies" in seen
    assert f"{second['predictions']['wrong_in_all']:,} of 359 test images wrong in all seeds" in seen
    assert "The test images are not there to be shown." in seen  # the labels are made up
    assert text.count("<details open>") == 1


def test_a_row_needs_the_predictions_of_all_its_seeds(workdirs, tmp_path):
    rows, _ = runs.collect([*workdirs, make_run(tmp_path, "batchnorm", [0.6], seed=7, **{"data.name": "digits"})])
    assert runs.add_predictions(rows) == {}
    assert [row.predictions is None for row in rows] == [False, True]
    second = runs.summarise(rows)["rows"][1]
    assert second["predictions"] is None and second["difference"]["by_image"] is None
    assert second["mean"]["calibration_error"] is None


def test_pictures_of_a_trained_run(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    result = runs.write_report([workdir], tmp_path / "report")
    of = result["rows"][0]["predictions"]
    held = predictions.read(workdir)
    wrong = np.flatnonzero(held.log_probs[0].argmax(-1) != held.labels)
    assert of["wrong_in_all"] == len(wrong) and of["ensemble"] is None
    text = (tmp_path / "report" / "index.html").read_text()
    assert text.count("<img src='data:image/png;base64,") == min(24, len(wrong))


def test_nopredict_computes_nothing(trained, tmp_path, command):
    done = command("report", str(trained), f"--output={tmp_path / 'report'}", "--nopredict")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    result = json.loads((tmp_path / "report" / "results.json").read_text())
    assert result["without_predictions"] == {"no predictions were kept": [str(trained)]}
    assert not (trained / "predictions.npz").exists()
    assert "1 run without predictions: no predictions were kept" in (tmp_path / "report" / "index.html").read_text()
