"""Lines about a run where standard error is no terminal."""

import pytest

from cnn_jax.workdir import progress

VALUES = {"loss": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize("epoch, label", [(0.0, "1/5"), (0.2, "1/5"), (1.0, "1/5"), (1.01, "2/5"), (5.0, "5/5")])
def test_a_line_names_the_epoch_of_its_last_step(monkeypatch, capsys, epoch, label):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with progress.Progress(total_steps=68, epochs=5, images_per_step=32) as shown:
        shown.update(14, epoch, VALUES)
    assert capsys.readouterr().err.startswith(f"epoch {label}  step 14/68  loss 1.000 accuracy 0.500")
