"""Progressive resizing: training images of one size after another, one compiled program for each."""

import jax
import numpy as np
import pytest
from conftest import ROOT
from whole_runs import assert_same_run, interrupt_at

from cnn_jax import config as config_lib
from cnn_jax import data
from cnn_jax.errors import UserError
from cnn_jax.training.experiment import Experiment
from cnn_jax.training.loop import train
from cnn_jax.training.phases import parts
from cnn_jax.transforms.augment import resize

TOTAL, BOUNDARY = 25, 12


def load(sides=(6, 8), **changes):
    config = config_lib.load(ROOT / "tests" / "speedrun_config.py")
    config.augment.sides = sides
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def dataset():
    return data.load(load().data)


def test_the_steps_are_divided_evenly_and_equal_neighbours_are_one_part():
    assert list(parts((), 3, 8)) == [(0, 3, 8)]
    assert list(parts((24, 28, 32), 10, 20)) == [(24, 10, 13), (28, 13, 17), (32, 17, 20)]
    assert list(parts((28,) * 5 + (32,) * 4, 0, 180)) == [(28, 0, 100), (32, 100, 180)]
    assert list(parts((8, 6, 8), 0, 1)) == [(6, 0, 1)]


def test_resizing_interpolates_between_the_two_nearest_pixels():
    ramp = np.arange(6.0)[None, None, :, None] + 10 * np.arange(6.0)[None, :, None, None]
    images = np.broadcast_to(ramp, (2, 6, 6, 3)).astype(np.float32)
    centres = np.array([0.5, 2.5, 4.5])
    expected = np.broadcast_to((centres[None] + 10 * centres[:, None])[None, :, :, None], (2, 3, 3, 3))
    np.testing.assert_allclose(resize(jax.numpy.asarray(images), 3), expected, rtol=1e-5)


def test_each_part_sees_its_size_and_the_optimizer_continues(dataset):
    experiment, plain = (Experiment(load(sides), dataset) for sides in ((6, 8), ()))
    assert [(p.begin, p.start, p.stop) for p in experiment.phases] == [(0, 0, BOUNDARY), (0, BOUNDARY, TOTAL)]
    assert [phase.longest_chunk for phase in experiment.phases] == [10, 10]
    state = experiment.init()
    for phase, side in zip(experiment.phases, (6, 8)):
        pipeline = experiment.pipeline(phase, state.variables)
        row = jax.tree.map(lambda x: jax.numpy.asarray(x[0]), pipeline.rows(0, 1))
        batch, targets = pipeline.batch(row, pipeline.shared), jax.numpy.zeros((16, 10))
        images, _ = phase.step.inputs.train(batch, targets, experiment.keys, state.step, 0)
        assert images.shape == (16, side, side, 3)
    assert experiment.phases[1].restart(state) is state
    steps = range(TOTAL)
    assert [experiment.phase(step).rate(step) for step in steps] == [plain.phases[0].rate(step) for step in steps]


@pytest.mark.parametrize("stop", [10, BOUNDARY])
def test_stopped_before_and_at_the_change_it_resumes_exactly(tmp_path, monkeypatch, stop):
    config = load(data__validation=0)
    assert train(config, str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        assert train(config, str(tmp_path / "resumed")) == 128 + 15
    assert train(config, str(tmp_path / "resumed")) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", TOTAL)


def test_no_more_epochs_where_sizes_depend_on_the_length(tmp_path):
    constant = {"optimizer__schedule": "constant", "average__decay": 0.0, "average__lookahead": False}
    assert train(load(**constant, epochs=1), str(tmp_path)) == 0
    with pytest.raises(UserError, match=r"for more epochs: with config\.augment\.sides, the size of its images"):
        train(load(**constant), str(tmp_path))


def test_networks_that_need_one_size_are_refused(dataset, small_config):
    small_config.augment.sides = (6, 8)
    with pytest.raises(UserError, match=r"config\.augment\.sides is \(6, 8\), but .* the network cnn: leave it empty"):
        Experiment(small_config, dataset)
    with pytest.raises(UserError, match=r"Images of 2x2 pixels are too small for 1 blocks: .*config\.augment\.sides"):
        Experiment(load((2, 8)), dataset)
