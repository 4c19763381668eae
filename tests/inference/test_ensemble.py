"""A run with several seeds answers with one of them, or with the mean of their probabilities."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from cnn_jax.errors import UserError
from cnn_jax.evaluation import dataset, results, scores
from cnn_jax.inference import artifact, load_classifier
from cnn_jax.inference.classifier import TTA
from cnn_jax.inference.seeds import make_mean

TWO, ONE = (ROOT / "tests" / "fixtures" / name for name in ("stopped", "finished"))  # workdirs, by number of seeds


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).randint(0, 256, (5, 64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def ensemble():
    return load_classifier(TWO, seed="ensemble")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The exported ensemble, and the finished command."""
    path = tmp_path_factory.mktemp("exported") / "model.jaxexport"
    arguments = [f"--workdir={TWO}", f"--output={path}", "--seed=ensemble"]
    done = subprocess.run(
        [sys.executable, "-m", "cnn_jax.export", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return path, done


def test_the_ensemble_is_the_mean_of_the_probabilities(ensemble, images):
    singles = [load_classifier(TWO, seed=seed) for seed in (0, 1)]
    assert [one.seed for one in (*singles, ensemble, load_classifier(ONE))] == [0, 1, "ensemble", None]
    assert [one.metadata["config"]["seeds"] for one in (*singles, ensemble)] == [1, 1, 2]
    first, second = (one(images) for one in singles)
    assert np.abs(first - second).max() > 1e-3
    assert ensemble.score(ensemble.fit(images)).dtype == np.float32
    np.testing.assert_allclose(ensemble(images), (first + second) / 2, rtol=0, atol=1e-6)


def test_every_seed_has_its_own_test_time_augmentation(images, monkeypatch):
    """The logits of the views are averaged for each seed, and the probabilities of the seeds after that."""
    plain = load_classifier(TWO, seed="ensemble")(images)
    monkeypatch.setattr(TTA, "from_config", lambda config: TTA(mirror=True, shift=1))
    first, second, both = (load_classifier(TWO, seed=seed)(images) for seed in (0, 1, "ensemble"))
    np.testing.assert_allclose(both, (first + second) / 2, rtol=0, atol=1e-6)
    assert np.abs(both - plain).max() > 1e-5


def test_improbable_classes_do_not_underflow():
    logs = [jnp.asarray([[-2000.0, 0.0, -jnp.inf]]), jnp.asarray([[-2001.0, -3000.0, -jnp.inf]])]
    mean = make_mean(lambda index, _: jnp.stack([log[0] for log in logs])[index][None], [0, 1], 3)(np.zeros((1, 1)))
    expected = [np.logaddexp(-2000.0, -2001.0) - np.log(2), -np.log(2), -np.inf]
    np.testing.assert_allclose(mean, [expected], rtol=1e-6)


def test_without_a_seed_the_first_answers_and_lane_is_the_old_name(images):
    first, second = (load_classifier(TWO, seed=seed)(images) for seed in (0, 1))
    np.testing.assert_array_equal(load_classifier(TWO)(images), first)
    np.testing.assert_array_equal(load_classifier(TWO, lane=1)(images), second)


@pytest.mark.parametrize(
    ("workdir", "arguments", "says"),
    [
        (TWO, {"seed": 2}, r"has 2 seeds: --seed=2 must be a number below 2 \(0 is the first\), or ensemble"),
        (TWO, {"seed": -1}, "--seed=-1 must be a number below 2"),
        (TWO, {"seed": "mean"}, "--seed=mean must be a number below 2"),
        (TWO, {"lane": 2}, "has 2 seeds: --seed=2 must be"),
        (TWO, {"seed": 0, "lane": 0}, "Give seed or lane, its old name, not both"),
        (ONE, {"seed": 1}, "has 1 seed: leave out --seed=1, or train several"),
        (
            ONE,
            {"seed": "ensemble"},
            "has 1 seed: leave out --seed=ensemble, or train several seeds with --config.seeds",
        ),
        (ROOT / "tests" / "fixtures" / "model.jaxexport", {"seed": "ensemble"}, r"holds seed 0 .*--seed=ensemble"),
    ],
)
def test_a_choice_that_does_not_exist(workdir, arguments, says):
    with pytest.raises(UserError, match=says) as raised:
        load_classifier(workdir, **arguments)
    assert "\n" not in str(raised.value)


def test_an_exported_ensemble(exported, ensemble, images):
    path, done = exported
    assert ", ensemble of all seeds, 10 classes" in done.stdout
    header, _ = artifact.read(path)
    assert header["seed"] == "ensemble" and header["config"]["seeds"] == 2
    loaded = load_classifier(path, seed="ensemble")
    assert loaded.seed == load_classifier(path).seed == "ensemble"
    for count in (1, 5):
        np.testing.assert_allclose(loaded(images[:count]), ensemble(images[:count]), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"holds ensemble of all seeds: export another .* --seed=0 --output="):
        load_classifier(path, seed=0)


def test_predict_says_which_seed_it_used(command, exported, ensemble, photographs):
    image = str(photographs("1.png") / "1.png")
    done = command("predict", f"--model={exported[0]}", "--json", "--top_k=1", image)
    assert done.returncode == 0 and done.stderr == f"{exported[0]}: ensemble of all seeds.\n"
    row = json.loads(done.stdout)
    assert row["seed"] == "ensemble"
    assert row["top"][0]["probability"] == pytest.approx(ensemble([image]).max(), abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed=0", "--lane=0"], "Give --seed or --lane, its old name, not both."),
        (["--seed=all"], "--seed is 'all'; it must be the index of a seed (0 is the first), or ensemble."),
        (["--lane=-1"], "--lane is '-1'; it must be the index"),
        (["--lane=2"], "has 2 seeds: --seed=2 must be a number below 2"),
    ],
)
def test_one_clear_line(command, flags, says):
    done = command("evaluate", f"--workdir={TWO}", *flags)
    assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_seed_of_an_exported_model_is_fixed(command, exported):
    done = command("predict", f"--model={exported[0]}", "--seed=1", "image.png")
    assert done.returncode == 1 and "--seed chooses a network of a workdir" in done.stderr


def test_evaluation_of_an_ensemble(command, ensemble, tmp_path):
    workdir = shutil.copytree(TWO, tmp_path / "workdir")
    done = command("evaluate", f"--workdir={workdir}", "--seed=ensemble", f"--report={tmp_path / 'report'}")
    assert done.returncode == 0, done.stderr
    heading = "Test split of digits: 359 images, after step 13, the best by validation accuracy; ensemble of all seeds."
    assert heading in done.stdout
    assert heading in (tmp_path / "report" / "index.html").read_text()
    result = json.loads((workdir / "evaluation.json").read_text())
    assert result["seed"] == "ensemble"

    examples, validation = (dataset.load(ensemble, split) for split in ("test", "validation"))
    probabilities = np.mean(
        [np.exp(dataset.predict(load_classifier(TWO, seed=seed), examples)) for seed in (0, 1)], axis=0
    )
    assert result["loss"] == pytest.approx(scores.loss(np.log(probabilities), examples.labels), rel=1e-5)
    expected = scores.fit_temperature(dataset.predict(ensemble, validation), validation.labels)
    assert result["temperature"] == pytest.approx(expected, rel=1e-3)


def test_a_temperature_belongs_to_what_it_was_fitted_for(ensemble, photographs, tmp_path):
    scored = dataset.load(ensemble, name="folder", directory=str(photographs("7/a.png")))
    log_probs = dataset.predict(ensemble, scored)
    first = load_classifier(TWO)
    results.write({"step": 13, "temperature": 1.5, "seed": "ensemble"}, tmp_path)
    assert results.measure(ensemble, scored, log_probs, tmp_path)["temperature"] == 1.5
    assert results.measure(first, scored, log_probs, tmp_path)["temperature"] is None
    results.write({"step": 13, "temperature": 1.5}, tmp_path)  # by an earlier version: of an unknown seed
    assert results.measure(first, scored, log_probs, tmp_path)["temperature"] is None
