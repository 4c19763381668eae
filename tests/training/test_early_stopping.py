"""Early stopping: the same epoch as a loop with a counter, the same parameters as a run of that length."""

import re

import jax
import numpy as np
import pytest
from whole_runs import final_arrays, interrupt_at, records

from cnn_jax.errors import UserError
from cnn_jax.training.early_stopping import triggered
from cnn_jax.training.loop import train
from cnn_jax.workdir.records import read_metrics


def simulated(accuracies, patience, min_delta):
    """The epoch after which a loop that counts epochs without improvement ends, as Keras' EarlyStopping does."""
    best, waited = -np.inf, 0
    for epoch, accuracy in enumerate(accuracies, 1):
        waited += 1
        if accuracy - min_delta > best:
            best, waited = accuracy, 0
        if waited >= patience:
            return epoch
    return None


def test_the_epoch_is_that_of_a_loop_with_a_counter(small_config):
    generator, ended = np.random.RandomState(0), set()
    for _ in range(200):
        accuracies = generator.randint(0, 12, generator.randint(1, 15)) / 16  # with ties
        patience, min_delta = int(generator.randint(1, 5)), generator.choice([0.0, 1 / 16, 1 / 4])
        small_config.early_stopping.update({"patience": patience, "min_delta": float(min_delta)})
        found = [
            {"split": "validation", "epoch": epoch, "step": 10 * epoch, "accuracy": value}
            for epoch, value in enumerate(accuracies.tolist(), 1)
        ]
        stops = [epoch for epoch in range(1, len(found) + 1) if triggered(small_config, found, 0, 10 * epoch)]
        expected = simulated(accuracies, patience, min_delta)
        assert (stops[0] if stops else None) == expected
        ended.add(expected is None)
    assert ended == {True, False}


def test_only_scores_that_were_due_in_the_last_phase_count(small_config):
    small_config.early_stopping.patience = 2
    small_config.eval.epochs = 2
    found = [
        {"split": "validation", "epoch": epoch, "step": epoch, "accuracy": value}
        for epoch, value in enumerate([0.5, 0.6, 0.9, 0.7, 0.7, None], 1)
    ]
    assert not triggered(small_config, found, 0, 4)
    assert triggered(small_config, found, 0, 6)  # epochs 2, 4 and 6
    assert not triggered(small_config, found, 4, 6)


def test_a_run_that_stops_early_is_the_run_of_that_length(trained, tmp_path, small_config, monkeypatch, capsys):
    """Nothing improves by so much, so that the second epoch, with which `trained` ends, is the last."""
    small_config.epochs = 9
    small_config.early_stopping.update({"patience": 1, "min_delta": 0.9})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18)
        assert train(small_config, str(tmp_path)) == 143
    assert train(small_config, str(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "has not improved for 1 epoch." in printed.err
    assert "after 2 epochs:" in printed.out
    jax.tree.map(np.testing.assert_array_equal, final_arrays(tmp_path, 25), final_arrays(trained, 25))
    assert records(tmp_path) == records(trained)
    # The line of an epoch has the averages over its steps, those before the interruption included.
    second = [r for r in read_metrics(tmp_path) if r["split"] == "train" and r["step"] > 13]
    loss = np.average([r["loss"] for r in second], weights=[5, 5, 2])
    assert f"{loss:.3f}" == re.search(r"epoch 2/9  train loss (\S+)", printed.err)[1]
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(small_config, str(tmp_path)) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_what_early_stopping_needs(small_config, tmp_path):
    small_config.early_stopping.patience = 1
    small_config.seeds = 2
    with pytest.raises(UserError, match="each seed would end at an epoch of its own"):
        train(small_config, str(tmp_path))
    small_config.seeds, small_config.data.validation = 1, 0.0
    with pytest.raises(UserError, match="needs validation images"):
        train(small_config, str(tmp_path))
