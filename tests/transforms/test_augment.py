"""Each transform against a slow reference in plain numpy, pixel by pixel, from the same random numbers."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stage

from cnn_jax import data, rng
from cnn_jax.data.order import Order
from cnn_jax.errors import UserError
from cnn_jax.training.experiment import Experiment
from cnn_jax.transforms import augment
from cnn_jax.transforms.augment import Augmentation

HEIGHT, WIDTH = 7, 9


@pytest.fixture
def image():
    return np.random.RandomState(0).rand(HEIGHT, WIDTH, 3).astype(np.float32)


def keys(count=20):
    return [jax.random.fold_in(rng.root(1), i) for i in range(count)]


def at(image, y, x):
    """A pixel, with the edge repeated outside."""
    return image[min(max(y, 0), HEIGHT - 1), min(max(x, 0), WIDTH - 1)]


def test_flip(image):
    seen = set()
    for key in keys():
        mirrored = bool(jax.random.bernoulli(key))
        expected = [[image[y, WIDTH - 1 - x] if mirrored else image[y, x] for x in range(WIDTH)] for y in range(HEIGHT)]
        np.testing.assert_array_equal(augment.flip(jnp.array(image), key), np.array(expected))
        seen.add(mirrored)
    assert seen == {True, False}


def test_shift(image):
    moves = set()
    for key in keys(60):
        dy, dx = np.asarray(jax.random.randint(key, (2,), jnp.array([-1, -2]), jnp.array([2, 3])))
        expected = [[at(image, y + dy, x + dx) for x in range(WIDTH)] for y in range(HEIGHT)]
        np.testing.assert_array_equal(augment.shift(jnp.array(image), key, 0.25), np.array(expected))
        moves.add((dy, dx))
    assert {dy for dy, _ in moves} == {-1, 0, 1} and {dx for _, dx in moves} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop(image, mode):
    def padded(y, x):
        if mode == "constant":
            return image[y, x] if 0 <= y < HEIGHT and 0 <= x < WIDTH else np.zeros(3)
        y, x = abs(y), abs(x)
        return image[y if y < HEIGHT else 2 * HEIGHT - 2 - y, x if x < WIDTH else 2 * WIDTH - 2 - x]

    for key in keys():
        top, left = np.asarray(jax.random.randint(key, (2,), 0, 5)) - 2
        expected = [[padded(y + top, x + left) for x in range(WIDTH)] for y in range(HEIGHT)]
        np.testing.assert_allclose(augment.crop(jnp.array(image), key, 2, mode), np.array(expected))


@pytest.mark.parametrize("degrees, zoom", [(30.0, 0.0), (0.0, 0.3), (180.0, 0.5)])
def test_rotate_zoom(image, degrees, zoom):
    for key in keys(8):
        angle_key, zoom_key = jax.random.split(key)
        angle = math.radians(float(jax.random.uniform(angle_key, minval=-degrees, maxval=degrees)))
        factor = float(jax.random.uniform(zoom_key, minval=1 - zoom, maxval=1 + zoom))
        expected = np.zeros_like(image)
        for y in range(HEIGHT):
            for x in range(WIDTH):
                v, u = y - (HEIGHT - 1) / 2, x - (WIDTH - 1) / 2
                sy = (math.cos(angle) * v - math.sin(angle) * u) / factor + (HEIGHT - 1) / 2
                sx = (math.sin(angle) * v + math.cos(angle) * u) / factor + (WIDTH - 1) / 2
                fy, fx = math.floor(sy), math.floor(sx)
                wy, wx = sy - fy, sx - fx
                expected[y, x] = (1 - wy) * ((1 - wx) * at(image, fy, fx) + wx * at(image, fy, fx + 1)) + wy * (
                    (1 - wx) * at(image, fy + 1, fx) + wx * at(image, fy + 1, fx + 1)
                )
        actual = augment.rotate_zoom(jnp.array(image), key, degrees, zoom)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout(image, size):
    fill = (0.1, 0.2, 0.3)
    for key in keys():
        top, left = np.asarray(jax.random.randint(key, (2,), 0, jnp.array([HEIGHT, WIDTH]))) - size // 2
        expected = image.copy()
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if top <= y < top + size and left <= x < left + size:
                    expected[y, x] = fill
        np.testing.assert_array_equal(augment.cutout(jnp.array(image), key, size, fill), expected)
        assert (np.asarray(augment.cutout(jnp.array(image), key, size, fill)) != image).any()


EVERYTHING = Augmentation(flip=True, shift=0.2, rotate=20.0, zoom=0.2, crop_padding=2, cutout=3)


def test_nothing_by_default(image):
    batch = jnp.array(image)[None]
    assert not Augmentation().enabled
    assert Augmentation()(batch, rng.root(0)) is batch


def test_each_image_draws_its_own_numbers(image):
    batch = jnp.stack([jnp.array(image)] * 8)
    out = np.asarray(EVERYTHING(batch, rng.root(0)))
    assert len({each.tobytes() for each in out}) == 8


def test_parts_of_a_batch_equal_the_whole(image):
    """A batch spread over devices relies on this."""
    batch = jnp.array(np.random.RandomState(1).rand(6, HEIGHT, WIDTH, 3), jnp.float32)
    whole = EVERYTHING(batch, rng.root(0))
    parts = [EVERYTHING(batch[i : i + 2], rng.root(0), i) for i in (0, 2, 4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)


def test_alternating_flips_mirror_every_image_in_every_second_epoch():
    """For a run whose batches extend over the ends of epochs."""
    rows = Order(num_examples=50, batch_size=16).rows(0, 0, 16)  # five epochs and a little
    seen = np.zeros((6, 50), bool)
    for index, epoch in zip(rows["index"], rows["epoch"], strict=True):
        seen[epoch, index] = augment.alternate(rng.root(3), jnp.asarray(index), jnp.asarray(epoch))
    for epoch in range(4):
        np.testing.assert_array_equal(seen[epoch], ~seen[epoch + 1])
    assert 10 < seen[0].sum() < 40
    assert (seen[0] != augment.alternate(rng.root(4), jnp.arange(50), jnp.zeros(50, jnp.int32))).any()


def test_mirrored_images_are_mirrored_before_the_rest(image):
    batch = jnp.stack([jnp.array(image)] * 3)
    mirrored = jnp.array([True, False, True])
    expected = np.stack([image[:, ::-1], image, image[:, ::-1]])
    alone = Augmentation(alternate_flip=True)
    assert alone.enabled
    np.testing.assert_array_equal(alone(batch, rng.root(0), mirrored=mirrored), expected)
    both = Augmentation(alternate_flip=True, crop_padding=2)(batch, rng.root(0), mirrored=mirrored)
    np.testing.assert_array_equal(both, Augmentation(crop_padding=2)(jnp.array(expected), rng.root(0)))


def test_random_and_alternating_flips_are_mutually_exclusive():
    config = stage("augment").augment
    config.alternate_flip = True
    with pytest.raises(UserError, match=r"config\.augment\.flip and config\.augment\.alternate_flip"):
        Augmentation.from_config(config, (0.0, 0.0, 0.0), (32, 32))


@pytest.mark.parametrize("side", [2, 3, 8, 32, 49, 299, 12_345])
def test_a_shift_of_less_than_one_pixel_is_refused_with_the_smallest_valid_shift(side):
    config = stage("augment").augment
    config.shift = 0.99 / side
    with pytest.raises(UserError, match=rf"less than one pixel of an image side of {side}: .* or to 0") as error:
        Augmentation.from_config(config, (0.0, 0.0, 0.0), (side + 1, side))
    config.shift = float(re.search(r"at least (\S+),", str(error.value))[1])
    Augmentation.from_config(config, (0.0, 0.0, 0.0), (side + 1, side))
    assert config.shift <= 1 / side + 1e-4


def test_the_trainer_checks_the_shift_at_the_size_of_the_networks_input(small_config):
    small_config.augment.shift = 0.1  # digits have 32 pixels, resized to 8
    with pytest.raises(UserError, match=r"config\.augment\.shift is 0\.1, less than one pixel of an image side of 8"):
        Experiment(small_config, data.load(small_config.data))


@pytest.mark.parametrize("field, value", [("flip", True), ("shift", 0.2), ("cutout", 3)])
def test_enabling_one_transform_does_not_change_the_numbers_of_another(image, field, value):
    """Streams are named: next to a transform without effect, another draws the same numbers as alone."""
    alone = Augmentation(**{field: value})
    beside = Augmentation(**{field: value}, crop_padding=0, zoom=1e-9)
    batch = jnp.array(image)[None]
    np.testing.assert_allclose(alone(batch, rng.root(4)), beside(batch, rng.root(4)), atol=1e-5)
