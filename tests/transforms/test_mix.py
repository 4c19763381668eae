"""Mixup and cutmix against plain numpy, from the same random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax import rng
from cnn_jax.transforms.mix import Mixing, cutmix, mixup

COUNT, HEIGHT, WIDTH, CLASSES = 12, 6, 9, 12
KEYS = jax.vmap(lambda i: jax.random.fold_in(rng.root(0), i))(jnp.arange(40))


@pytest.fixture
def batch():
    """Image i is i everywhere and has class i, so that what it was mixed from can be read off."""
    images = jnp.broadcast_to(jnp.arange(COUNT, dtype=jnp.float32)[:, None, None, None], (COUNT, HEIGHT, WIDTH, 3))
    return images, jnp.eye(COUNT, CLASSES)


def over_keys(function, batch, *alpha, **kwargs):
    """The images and targets for each of `KEYS`."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: function(*batch, key, *alpha, **kwargs)))(KEYS))


@pytest.mark.parametrize("function", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_targets_are_distributions_over_each_example_and_one_partner(function, alpha, batch):
    images, targets = over_keys(function, batch, alpha)
    assert images.shape == (len(KEYS), *batch[0].shape) and images.dtype == np.float32
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    for each in targets:
        own = np.diag(each)
        fixed = own == 1  # its own partner, or a factor of 1
        if not fixed.all():
            factor = own[~fixed]
            np.testing.assert_allclose(factor, factor[0], atol=1e-6)  # one factor for the batch
            assert ((each > 0).sum(1) == np.where(fixed, 1, 2)).all()
            # Partners are a permutation: every example gives as much as it gets.
            np.testing.assert_allclose(each.sum(0), 1, atol=1e-6)


def test_mixup_weights_images_as_targets(batch):
    images, targets = over_keys(mixup, batch, 1.0)
    expected = targets @ np.arange(CLASSES, dtype=np.float32)
    np.testing.assert_allclose(images, np.broadcast_to(expected[..., None, None, None], images.shape), atol=1e-5)
    factors = targets.min(-1, where=targets > 0, initial=1)
    assert factors.std() > 0.1


def test_cutmix_replaces_one_rectangle_whose_share_is_the_weight_of_the_partner(batch):
    images, targets = over_keys(cutmix, batch, 1.0)
    clipped = 0
    for picture, target in zip(images, targets):
        for own in range(COUNT):
            inside = (picture[own] != own).all(-1)
            assert ((picture[own] != own).any(-1) == inside).all()
            rows, columns = inside.any(1), inside.any(0)
            np.testing.assert_array_equal(inside, rows[:, None] & columns)
            for side in (rows, columns):
                assert np.abs(np.diff(np.concatenate([[0], side, [0]]).astype(int))).sum() in (0, 2)
            if inside.any():
                partner = int(picture[own][inside][0, 0])
                assert (picture[own][inside] == partner).all()
                np.testing.assert_allclose(target[own, partner], inside.mean(), atol=1e-7)
                np.testing.assert_allclose(target[own, own], 1 - inside.mean(), atol=1e-7)
                clipped += rows[[0, -1]].any() or columns[[0, -1]].any()
    assert clipped


def test_by_default_nothing_is_mixed(batch):
    images, targets = Mixing()(*batch, rng.root(0))
    assert images is batch[0] and targets is batch[1]


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_the_key_determines_the_result(function, batch):
    first, again, other = (function(*batch, key, 1.0) for key in (KEYS[0], KEYS[0], KEYS[1]))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (np.asarray(first[1]) != np.asarray(other[1])).any()


def test_with_both_each_batch_draws_one_of_them(batch):
    images, targets = over_keys(Mixing(mixup=1.0, cutmix=1.0), batch)
    alone = over_keys(mixup, batch, 1.0), over_keys(cutmix, batch, 1.0)
    drawn = [[np.allclose(images[i], x[i]) and np.allclose(targets[i], t[i]) for x, t in alone] for i in range(40)]
    assert all(map(any, drawn)) and min(np.sum(drawn, axis=0)) > 5


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_one_alone_is_applied_to_every_batch(function, batch):
    mixed = Mixing(**{function.__name__: 0.5})(*batch, KEYS[2])
    jax.tree.map(np.testing.assert_array_equal, mixed, function(*batch, KEYS[2], 0.5))
