"""The learning-rate range test."""

import json
import math

import numpy as np
from PIL import Image

from cnn_jax import data
from cnn_jax.report.range_test import find_learning_rate
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.rate_finder import RangeTest, learning_rate


def test_the_losses_of_a_sweep_and_its_files(tmp_path, small_config, capsys):
    assert find_learning_rate(small_config, tmp_path) == 0
    found = json.loads((tmp_path / "learning_rate.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_rate.json", "learning_rate.png"]
    with Image.open(tmp_path / "learning_rate.png") as figure:
        assert figure.width > 500
    rates = found["learning_rates"]
    np.testing.assert_allclose(np.diff(np.log10(rates)), 7 / 139)
    assert rates[0] == 1e-6 and len(rates) == len(found["losses"]) == len(found["averages"]) > 100
    # The loss of the first step does not depend on the learning rate; it is that of the run.
    small_config.steps_per_call = 1
    experiment = Experiment(small_config, data.load(small_config.data))
    _, _, metrics = experiment.train_chunk(experiment.init(), 0)
    assert found["losses"][0] == metrics["loss"]
    best = min(value for value in found["averages"] if value is not None)
    assert found["lowest"] == rates[found["averages"].index(best)]
    assert f"Try --config.optimizer.learning_rate={found['advice']:g}: a tenth of" in capsys.readouterr().out


def test_advice():
    rates = [learning_rate(step) for step in range(140)]
    assert rates[-1] == 10.0
    losses = [2.3 - 1.3 * math.exp(-((math.log10(rate) + 1) ** 2)) for rate in rates]  # lowest at 0.1
    found = RangeTest(rates, losses, [*losses[:-1], math.nan])
    assert abs(found.lowest - 0.1) < 0.01
    assert found.advice == 0.01
