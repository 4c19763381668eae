"""Statistics over seeds equal those computed in another way: SciPy's tests, brute force, a table."""

import itertools

import numpy as np
import pytest
from scipy import stats

from cnn_jax.evaluation import statistics


def sample(n, seed=0, shift=0.3):
    return (np.random.RandomState(seed).randn(n) + shift).tolist()


def brute_force(differences):
    flipped = [
        sum(s * d for s, d in zip(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return np.mean([abs(total) >= abs(sum(differences)) - 1e-9 for total in flipped])


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_interval_is_that_of_scipys_test(n):
    values = sample(n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.t_interval(values) == pytest.approx(tuple(expected))


def test_the_interval_of_few_or_equal_values():
    assert statistics.t_interval([0.5]) is None
    assert statistics.t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    # By a table of Student's t: 4.303 standard errors of 0.1 / sqrt(3).
    assert statistics.t_interval([0.5, 0.6, 0.7]) == pytest.approx((0.352, 0.848), abs=5e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("shift", [0, 2])
def test_the_p_value_is_that_of_all_sign_flips(n, shift):
    differences = sample(n, seed=n, shift=shift)
    assert statistics.sign_flip_p_value(differences) == pytest.approx(brute_force(differences))


def test_the_p_value_is_that_of_scipy():
    differences = sample(10)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**10).pvalue
    assert statistics.sign_flip_p_value(differences) == pytest.approx(expected)


def test_equal_sums_count_although_they_are_rounded():
    differences = [0.1 + 0.2, -0.3, 0.0, 1e-8]  # mathematically, the sum is zero
    assert statistics.sign_flip_p_value(differences) == 1
    single = [float(np.float32(x)) for x in (0.01, 0.02, 0.03)]
    assert statistics.sign_flip_p_value([single[0], single[1], -single[2]]) == 1


def test_six_pairs_are_the_fewest_that_can_be_significant():
    assert statistics.sign_flip_p_value([1.0] * statistics.ENOUGH) == 2 / 2**6 < 0.05
    assert statistics.sign_flip_p_value([1.0] * (statistics.ENOUGH - 1)) > 0.05


def test_many_pairs_are_compared_with_random_flips():
    differences = sample(statistics.EXACT + 1, shift=0.5)
    assert statistics.sign_flip_p_value(differences) == statistics.sign_flip_p_value(differences)
    # Standard error of the share of 100,000 flips: below 0.0016.
    assert statistics.sign_flip_p_value(differences) == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=0.01
    )


def test_a_difference_pairs_by_seed():
    before, after = {0: 0.5, 1: 0.7, 2: 0.6, 9: 0.1}, {2: 0.9, 0: 0.6, 1: 0.9, 8: 0.2}
    found = statistics.paired_difference(before, after)
    expected = stats.ttest_rel([0.6, 0.9, 0.9], [0.5, 0.7, 0.6])
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.values == pytest.approx((0.1, 0.2, 0.3))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value == 2 / 2**3


def test_a_difference_of_one_pair_or_none():
    assert statistics.paired_difference({0: 0.5}, {1: 0.5}) is None
    found = statistics.paired_difference({0: 0.5, 1: 0.5}, {1: 0.75})
    assert found == ((1,), (0.25,), 0.25, None, None)


def test_false_discovery_is_benjamini_hochberg():
    p_values = [0.03, None, 0.001, 0.5, 0.04]
    known = sorted(p for p in p_values if p is not None)

    def adjust(p):  # the smallest m * p_(j) / j over all j from the rank of p on
        return min(len(known) * known[j] / (j + 1) for j in range(known.index(p), len(known)))

    expected = [None if p is None else adjust(p) for p in p_values]
    found = statistics.false_discovery(p_values)
    assert found[1] is None
    assert [p for p in found if p is not None] == pytest.approx([p for p in expected if p is not None])
    assert statistics.false_discovery([]) == []
    assert statistics.false_discovery([None]) == [None]


@pytest.mark.parametrize("n", [200, 5000])
def test_the_bootstrap_interval_is_that_of_scipy(n):
    values = np.random.RandomState(1).choice([-1.0, -0.5, 0.0, 0.5, 1.0], n, p=[0.05, 0.05, 0.7, 0.1, 0.1])
    found = statistics.bootstrap_interval(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2))
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.15 * values.std() / n**0.5)
    normal = values.mean() + np.array([-1.96, 1.96]) * values.std() / n**0.5
    assert found == pytest.approx(tuple(normal), abs=0.15 * values.std() / n**0.5)
    assert statistics.bootstrap_interval(values) == found


def test_the_bootstrap_interval_of_equal_values():
    assert statistics.bootstrap_interval([0.25] * 30) == (0.25, 0.25)
