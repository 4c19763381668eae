import numpy as np
import pytest
from conftest import stage
from sklearn.utils.class_weight import compute_class_weight

from cnn_jax.data.splits import ArraySource, balanced_weights, make_splits, stratified
from cnn_jax.errors import UserError


@pytest.fixture
def source():
    """100 images of four classes, unequal in number; every pixel of an image is its position."""
    labels = np.random.RandomState(0).permutation(np.repeat([0, 1, 2, 3], [40, 30, 20, 10])).astype(np.int32)
    array = np.tile(np.arange(100, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 3))
    return ArraySource(("a", "b", "c", "d"), labels, array)


def config(**changes):
    data = stage("base").data
    data.update(changes)
    return data


def counts(split):
    return np.bincount(split.labels, minlength=4).tolist()


def test_validation_then_train_examples(source):
    dataset = make_splits("toy", source, source, config(validation=20.0, train_examples=40))
    assert counts(dataset.validation) == [8, 6, 4, 2]
    assert counts(dataset.train) == [16, 12, 8, 4]
    assert len(dataset.test) == 100
    assert not set(dataset.train.indices) & set(dataset.validation.indices)
    np.testing.assert_array_equal(dataset.train.images()[:, 0, 0, 0], dataset.train.indices)
    np.testing.assert_array_equal(dataset.train.labels, source.labels[dataset.train.indices])


def test_a_fraction_or_none(source):
    assert counts(make_splits("toy", source, source, config(validation=0.1)).validation) == [4, 3, 2, 1]
    dataset = make_splits("toy", source, source, config(validation=0.0))
    assert (len(dataset.validation), len(dataset.train)) == (0, 100)
    assert dataset.validation.images().shape == (0, 2, 2, 3)


def test_a_test_split_where_there_is_none_stays_the_same(source):
    tests = [
        make_splits("toy", source, None, config(validation=validation, train_examples=n)).test.indices
        for validation, n in [(0.0, 0), (0.5, 10), (30.0, 20)]
    ]
    assert len(tests[0]) == 20
    np.testing.assert_array_equal(tests[0], tests[1])
    np.testing.assert_array_equal(tests[0], tests[2])


def test_the_draw_is_seeded(source):
    first, again, other = (
        make_splits("toy", source, source, config(split_seed=seed)).validation.indices.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_more_training_examples_hold_fewer_validation_examples_constant(source):
    small, large = (make_splits("toy", source, source, config(train_examples=n)) for n in (10, 80))
    np.testing.assert_array_equal(small.validation.indices, large.validation.indices)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"validation": 101.0}, "config.data.validation needs 101 images, but toy has only 100 left"),
        ({"train_examples": 91}, "config.data.train_examples needs 91 images, but toy has only 90 left"),
        ({"validation": 100.0}, "The train split of toy is empty"),
    ],
)
def test_too_few_images(source, changes, says):
    with pytest.raises(UserError, match=says):
        make_splits("toy", source, source, config(**changes))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 50, 99, 100])
def test_stratified_shares_are_within_one_image(count):
    labels = np.random.RandomState(1).randint(0, 7, 100).astype(np.int32)
    pool = np.arange(100)
    chosen, rest = stratified(labels, pool, count, (0,))
    assert sorted([*chosen, *rest]) == list(range(100)) and len(chosen) == count
    share = count * np.bincount(labels, minlength=7) / 100
    assert (np.abs(np.bincount(labels[chosen], minlength=7) - share) < 1).all()


def test_the_draw_never_changes():
    """Recorded numbers are only comparable for the same draw."""
    chosen, _ = stratified(np.repeat([0, 1], 10).astype(np.int32), np.arange(20), 6, (0, 1))
    assert chosen.tolist() == [0, 4, 9, 13, 17, 18]


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.random.RandomState(0).choice(4, 100, p=[0.6, 0.2, 0.15, 0.05]).astype(np.int32)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, "abcd"), expected, rtol=1e-12)
    with pytest.raises(UserError, match="no training images of e: add some"):
        balanced_weights(labels, "abcde")


def test_a_label_that_is_no_class_is_refused():
    labels = np.array([0, 1, 2, 1, 0, 1], np.int32)
    source = ArraySource(("a", "b"), labels, np.zeros((6, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"1 label of mine is not from 0 to 1, the first 2 of example 2\."):
        make_splits("mine", source, None, config())
