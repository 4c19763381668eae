"""The Python interface: the same results as the commands, in any thread, without flags."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

import cnn_jax
from cnn_jax import config as config_lib
from cnn_jax import runtime
from cnn_jax.errors import UserError

SMALL = ROOT / "tests" / "small_config.py"


def without_times(records):
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]


@pytest.mark.parametrize("key, value", [("epochs", 3), ("optimizer.learning_rate", 1), ("model.widths", [8, 16])])
def test_a_value_is_what_its_text_is(key, value):
    found = cnn_jax.load_config("batchnorm", {key: value})
    assert found.to_dict() == config_lib.load("batchnorm", {key: str(value)}).to_dict()
    assert found.to_dict() == cnn_jax.load_config("batchnorm", **{key: value}).to_dict()
    assert found.to_dict() == cnn_jax.load_config(ROOT / "configs" / "batchnorm.py", {key: value}).to_dict()


@pytest.mark.parametrize(
    "stage, overrides, says",
    [
        ("nothing", {}, "There is no stage nothing"),
        ("batchnorm", {"learning_rate": 0.1}, r"Did you mean config\.optimizer\.learning_rate\?"),
        ("batchnorm", {"epochs": 1.5}, r"config\.epochs is 1\.5; it must be a whole number"),
        ("batchnorm", {"optimizer": {"learning_rate": 0.1}}, "is a section"),
    ],
)
def test_mistakes_are_user_errors(stage, overrides, says):
    with pytest.raises(UserError, match=says):
        cnn_jax.load_config(stage, overrides)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The result of a run that was trained outside of the main thread."""
    workdir, results = tmp_path_factory.mktemp("api"), []
    config = cnn_jax.load_config(SMALL)
    thread = threading.Thread(target=lambda: results.append(cnn_jax.train(config, str(workdir))))
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_trains_like_the_command(result, trained):
    assert result.finished
    assert without_times(result.history) == without_times(cnn_jax.read_metrics(str(trained)))
    assert result.scores["accuracy"] == result.history[-1]["accuracy"]
    assert not {"step", "epoch", "split"} & set(result.scores)
    assert set(result.paths) == {"config", "metrics", "checkpoints", "tensorboard", "times", "provenance"}
    assert all(path.exists() and path.parent == result.workdir for path in result.paths.values())


def test_a_finished_run_is_not_trained_again(result, capsys):
    again = cnn_jax.train(SMALL, result.workdir)
    assert (again.scores, again.history) == (result.scores, result.history)
    assert "epoch 1/2" not in capsys.readouterr().err


def test_another_configuration_is_refused(result):
    with pytest.raises(UserError, match="holds another run"):
        cnn_jax.train(cnn_jax.load_config(SMALL, seed=5), result.workdir)


def test_the_evaluation_is_that_of_the_file(result):
    found = cnn_jax.evaluate(result.workdir, "validation", step="latest")
    written = json.loads((result.workdir / "evaluation-validation.json").read_text())
    assert (found["accuracy"], found["split"]) == (written["accuracy"], "validation")
    assert found["accuracy"] == pytest.approx(result.history[-2]["accuracy"])
    with pytest.raises(UserError, match="There is no split 'tset'"):
        cnn_jax.evaluate(result.workdir, "tset")
    with pytest.raises(UserError, match="There is no workdir"):
        cnn_jax.evaluate(result.workdir / "none")


def test_an_export_predicts_like_its_workdir(result, tmp_path):
    path = cnn_jax.export(result.workdir, tmp_path / "model.jaxexport")
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found, expected = (cnn_jax.load_classifier(source)(images) for source in (path, result.workdir))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_other_formats_and_the_model_card(result, tmp_path, kind):
    pytest.importorskip(kind, reason=f"needs {kind}: pip install 'cnn_jax[{kind}]'")
    path = cnn_jax.export(result.workdir, tmp_path / f"model.{kind}", card=True)
    card = (tmp_path / "model.md").read_text()
    assert path.stat().st_size > 10_000 and f"# model\\.{kind}\n" in card
    assert f"`python -m cnn_jax.export --workdir={result.workdir} --output={path} --format={kind}" in card
    again = cnn_jax.export(result.workdir, tmp_path / "any.name", format="jaxexport", seed=None)
    assert cnn_jax.load_classifier(again).class_names == tuple("0123456789")


@pytest.mark.parametrize(
    "name, options, says",
    [("m.onnx", {"format": "keras"}, "There is no format keras"), ("no/m", {}, "in a folder that does not exist")],
)
def test_exports_that_are_refused(result, tmp_path, name, options, says):
    with pytest.raises(UserError, match=says):
        cnn_jax.export(result.workdir, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def run(code, environment):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_import_is_quick_and_complete(user_environment):
    code = """
import sys, cnn_jax
assert not {"jax", "absl", "numpy", "ml_collections"} & set(sys.modules)
assert set(cnn_jax.__all__) <= set(dir(cnn_jax))
import cnn_jax.evaluate, cnn_jax.train  # the commands
from cnn_jax import *
assert callable(evaluate) and callable(export) and callable(train) and cnn_jax.train is train
assert issubclass(errors.UserError, Exception)
try:
    cnn_jax.nothing
except AttributeError as error:
    print(error)
"""
    done = run(code, user_environment())
    assert (done.stdout, done.stderr) == ("module 'cnn_jax' has no attribute 'nothing'\n", "")


LATE = """
import os, jax
{before}
import cnn_jax
cnn_jax.load_classifier, cnn_jax.train
print(os.environ.get("XLA_FLAGS"), jax.config.jax_compilation_cache_dir is not None)
"""


@pytest.mark.skipif(not runtime._flag_is_known(), reason="this jaxlib does not have the flag")
def test_jax_is_set_up_after_its_import_and_before_it_starts(user_environment):
    done = run(LATE.format(before=""), user_environment())
    assert done.stdout == f"{runtime._FLAG}={runtime._VALUE} True\n" and done.stderr == ""


@pytest.mark.skipif(not runtime._flag_is_known(), reason="this jaxlib does not have the flag")
def test_one_line_where_jax_had_started(user_environment):
    done = run(LATE.format(before="jax.devices()"), user_environment())
    assert done.stdout == "None False\n"
    assert len(done.stderr.splitlines()) == 1 and "before cnn_jax could set it up" in done.stderr
