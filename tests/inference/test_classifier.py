"""A workdir suffices to classify images, with the preprocessing and the numbers of training."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from cnn_jax import data
from cnn_jax.data.images import decode
from cnn_jax.errors import UserError
from cnn_jax.inference import load_classifier
from cnn_jax.inference.classifier import BATCH_SIZES
from cnn_jax.training.loop import train
from cnn_jax.workdir.records import read_metrics


@pytest.fixture(scope="module")
def classifier(trained):
    return load_classifier(trained, step="latest")


def test_equals_what_training_recorded_of_the_test_split(classifier, trained, small_config):
    test = data.load(small_config.data).test
    probabilities = classifier(test.images())
    recorded = next(record for record in read_metrics(trained) if record["split"] == "test")
    assert (probabilities.argmax(-1) == test.labels).mean() == pytest.approx(recorded["accuracy"], abs=1e-6)
    loss = -np.log(probabilities[np.arange(len(test)), test.labels]).mean()
    assert loss == pytest.approx(recorded["loss"], rel=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert classifier.class_names == tuple("0123456789")


@pytest.mark.parametrize("count", [0, 1, 2, BATCH_SIZES[1] + 1, BATCH_SIZES[-1] + 1])
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(classifier, count):
    pixels = np.random.RandomState(0).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    together = classifier(pixels)
    assert together.shape == (count, 10)
    for i in {0, count // 2, count - 1} - {-1} if count else ():
        np.testing.assert_allclose(classifier(pixels[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-6)


def test_paths_images_and_arrays_are_the_same(classifier, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (48, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    predictions = classifier([tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(pixels), pixels])
    for prediction in predictions[1:]:
        np.testing.assert_array_equal(prediction, predictions[0])
    np.testing.assert_allclose(classifier(pixels[None]), predictions[:1], rtol=1e-5)
    np.testing.assert_allclose(predictions[0], classifier(pixels[None, 8:40])[0], rtol=1e-4)
    assert (classifier([pixels], fit="stretch") != predictions[:1]).any()


def test_arrays_that_would_be_misread_are_refused(classifier):
    """Pixels scaled to [0, 1], grey images, channels first, and a single image."""
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    for wrong in (pixels / 255, pixels.astype(np.float32), pixels[..., :1], pixels.transpose(0, 3, 1, 2)):
        with pytest.raises(UserError, match=r"uint8 \[height, width, 3\], RGB from 0 to 255; this one is"):
            classifier(wrong)
        with pytest.raises(UserError, match="this one is"):
            classifier([wrong[0]])
    for single in (pixels[0], "cat.jpg"):
        with pytest.raises(UserError, match=r"pass a single image as \[image\]"):
            classifier(single)


def test_the_exif_orientation_is_applied_to_every_kind_of_input(classifier, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (32, 40, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    predictions = classifier([path, Image.open(path), decode(path), np.rot90(pixels, -1)])
    for prediction in predictions[1:]:
        np.testing.assert_array_equal(prediction, predictions[0])


def test_mirror_averages(classifier):
    pixels = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    expected = (classifier(pixels) + classifier(pixels[:, :, ::-1])) / 2
    np.testing.assert_allclose(classifier(pixels, mirror=True), expected, rtol=1e-5)
    np.testing.assert_allclose(classifier(pixels[:, :, ::-1], mirror=True), expected, rtol=1e-5)


def test_the_baseline_has_no_statistics(tmp_path, small_config):
    small_config.model.batch_norm = False
    small_config.epochs = 1
    assert train(small_config, str(tmp_path)) == 0
    assert load_classifier(tmp_path)(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no workdir"):
        load_classifier(tmp_path / "nothing")
    with pytest.raises(UserError, match="no checkpoint"):
        load_classifier(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        load_classifier(tmp_path)


def test_an_unreadable_image_is_named(classifier, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png: not an image"):
        classifier([tmp_path / "broken.png"])


def test_needs_no_trainer_no_optimizer_no_data_set(trained):
    code = f"""
import sys
import numpy as np
from cnn_jax.inference import load_classifier
load_classifier({str(trained)!r})(np.zeros((1, 32, 32, 3), np.uint8))
heavy = {{"optax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "tensorboardX", "cnn_jax.training",
         "cnn_jax.data.splits", "clu"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
