"""The search for the recipe of stage `modern`: deterministic, and blind to the test images."""

import json
import math
import sys

import pytest
from conftest import ROOT

from cnn_jax import config as config_lib

sys.path.insert(0, str(ROOT / "scripts"))
import search


def make_trial(runs, name, validation, test, epoch=10.0, status=0):
    """What a trial leaves: records of its last validation and test, and a log."""
    folder = runs / f"search-{name}"
    folder.mkdir(parents=True)
    records = [{"step": 9, "epoch": epoch, "split": "validation", "accuracy": validation}] if validation else []
    records += [{"step": 9, "epoch": epoch, "split": "test", "accuracy": test}] if test else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.json").write_text('{"seed": 0}')
    (folder / "log.txt").write_text(f"[ladder] exit status {status} after 3.0 s\n")


def test_every_trial_is_a_valid_configuration():
    points = {"start": search.START} | search.draws(20) | search.neighbours(search.START, [search.START], 1)
    for point in points.values():
        assert point.keys() == search.SPACE.keys()
        assert all(value in search.SPACE[key] for key, value in point.items())
        settings = {**search.SIZE, **search.settings_of(point)}
        config_lib.validate(config_lib.load("augment", {key: str(value) for key, value in settings.items()}))


def test_draws_do_not_depend_on_their_number():
    assert dict(list(search.draws(12).items())[:5]) == search.draws(5)


def test_neighbours_differ_in_one_setting():
    points = list(search.neighbours(search.START, [search.START], 1).values())
    assert len(points) == sum(len(values) - 1 for values in search.SPACE.values())
    assert all(sum(point[key] != search.START[key] for key in search.SPACE) == 1 for point in points)
    assert points[0] not in search.neighbours(search.START, [search.START, points[0]], 1).values()


def test_only_validation_counts(tmp_path):
    trials = search.Search(tmp_path, tmp_path)
    trials.trials = {"good": search.START, "lucky": search.START, "broken": search.START, "early": search.START}
    make_trial(tmp_path, "good", validation=0.6, test=0.1)
    make_trial(tmp_path, "lucky", validation=0.5, test=0.9)
    make_trial(tmp_path, "broken", validation=None, test=None, status=1)
    make_trial(tmp_path, "early", validation=0.8, test=None, epoch=5.0)
    assert trials.best() == "good"
    assert math.isnan(trials.score("broken"))
    assert trials.score("early") is None and trials.score("not begun") is None


def test_trials_and_failures_are_recorded(tmp_path, monkeypatch):
    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(search, "ROOT", tmp_path)
    trials = search.Search(tmp_path, tmp_path)
    trials.trials = {"good": search.START, "broken": search.START, "missing": search.START}
    make_trial(tmp_path, "good", validation=0.6, test=0.4321)
    make_trial(tmp_path, "broken", validation=None, test=None, status=1)
    trials.write()
    text = (tmp_path / "reports/modern_trials.json").read_text()
    rows = json.loads(text)["trials"]
    assert [(row["trial"], row["validation_accuracy"]) for row in rows] == [("good", 0.6), ("broken", None)]
    assert "0.4321" not in text


def test_costs_are_paired_by_seed(tmp_path, monkeypatch):
    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(search, "ROOT", tmp_path)
    monkeypatch.setattr(search, "variants", lambda: {"modern": ("modern", {}), "no_mirror": ("modern", {"a": 1})})
    for name, values in (("modern", (0.6, 0.62, 0.64)), ("no_mirror", (0.59, 0.6))):
        for seed, value in enumerate(values, 1):
            folder = tmp_path / f"modern-{name}-{seed}"
            folder.mkdir()
            record = {"step": 9, "epoch": 10, "split": "test", "accuracy": value}
            (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            (folder / "provenance.json").write_text(
                json.dumps([{"from_step": 0, "provenance": {"commit": "a" * 40, "versions": {}}}])
            )
    search.write_ablation(tmp_path, 3)
    modern, without = json.loads((tmp_path / "reports/modern_ablation.json").read_text())["rows"]
    assert modern["cost"] is None and modern["mean"] == pytest.approx(0.62)
    assert without["cost"]["seeds"] == [1, 2] and without["cost"]["mean"] == pytest.approx(0.015)
