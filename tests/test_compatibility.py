"""What an earlier version wrote, in tests/fixtures, is opened and continued by this one."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from cnn_jax import config as config_lib
from cnn_jax.inference import load_classifier
from cnn_jax.training.loop import train
from cnn_jax.training.metrics import NAMES
from cnn_jax.workdir.records import read_metrics

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module")
def expected():
    """The arrays of expected.npz, by name."""
    with np.load(FIXTURES / "expected.npz") as archive:
        return dict(archive)


@pytest.fixture
def copy(tmp_path):
    """Makes a copy of a workdir, modification times included."""
    return lambda name: shutil.copytree(FIXTURES / name, tmp_path / name)


def configuration(workdir, stage):
    """The configuration in a workdir, as the command gets it: keys that were added since are at their defaults."""
    config = config_lib.load(ROOT / "tests" / f"{stage}_config.py")
    held = config_lib.flatten(json.loads((workdir / "config.json").read_text()))

    def with_tuples(value):  # which JSON holds as lists
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    config.update_from_flattened_dict({key: with_tuples(value) for key, value in held.items()})
    return config


def assert_ends_as_expected(workdir, expected):
    """The last validation scores of a workdir are those of the run that was not stopped."""
    *_, last = (record for record in read_metrics(workdir) if record["split"] == "validation")
    found = {name: last[name] for name in NAMES}
    assert found == pytest.approx({name: float(expected[f"{workdir.name}_{name}"]) for name in NAMES}, rel=1e-4)


@pytest.mark.parametrize(
    "name, source, lane",
    [
        ("finished", "finished", 0),
        ("exported", "model.jaxexport", 0),
        ("stopped_0", "stopped", 0),
        ("stopped_1", "stopped", 1),
    ],
)
def test_answers(expected, name, source, lane):
    classifier = load_classifier(FIXTURES / source, lane=lane)
    assert classifier.class_names == tuple("0123456789")
    np.testing.assert_allclose(classifier(expected["images"]), expected[name], rtol=0, atol=1e-5)


def test_seeds_continue(expected, copy):
    workdir = copy("stopped")
    assert train(configuration(workdir, "small"), str(workdir)) == 0
    assert_ends_as_expected(workdir, expected)


def test_cached_features_are_found(expected, copy):
    workdir = copy("transfer")

    def features():
        return {path: path.stat().st_mtime_ns for path in (workdir / "features").rglob("*")}

    before = features()
    assert train(configuration(workdir, "transfer"), str(workdir)) == 0
    assert len(list(workdir.glob("features/*/*/*.npz"))) == 2 and features() == before
    assert_ends_as_expected(workdir, expected)


def test_records():
    records = read_metrics(FIXTURES / "finished")
    assert [(record["step"], record["epoch"], record["split"]) for record in records] == [
        (13, 1.04, "train"),
        (13, 1, "validation"),
        (25, 2.0, "train"),
        (25, 2, "validation"),
        (25, 2, "test"),
    ]
    assert all(set(NAMES) <= record.keys() for record in records)
