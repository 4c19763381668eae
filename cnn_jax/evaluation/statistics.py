"""Statistics over seeds: confidence intervals, paired differences, a permutation test, false-discovery correction.

Pure functions of numbers. The unit of observation is a training run: an interval says how far the mean over seeds is
uncertain because there are few of them, with the same training and test images. `bootstrap_interval` is over test
images instead: it says how far the result is uncertain because there are few of those, with the same networks.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
ENOUGH = 6  # the smallest number of pairs whose sign-flip test can have p < 0.05: 2 / 2^6 = 0.03125
EXACT = 20  # pairs up to which all sign flips are enumerated
_RANDOM_FLIPS = 100_000
_RESAMPLES = 20_000


class Difference(NamedTuple):
    """A paired difference of two groups of runs.

    Attributes:
      seeds: those that both groups have, ascending.
      values: the difference per seed.
      mean: the mean of `values`.
      interval: see `t_interval`.
      p_value: see `sign_flip_p_value`; None for a single pair.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p_value: float | None


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Returns the confidence interval of a mean by Student's t distribution (Student 1908); None for a single value."""
    if len(values) < 2:
        return None
    # The scale is applied here, because SciPy's interval is NaN if all values are equal.
    low, high = stats.t.interval(level, len(values) - 1)
    mean, error = statistics.fmean(values), float(stats.sem(values))
    return mean + float(low) * error, mean + float(high) * error


def bootstrap_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13); reproducible.

    For differences per test image it is the paired bootstrap: both networks are scored on each resampled test set.

    Args:
      values: one per test image. A resample is drawn as the count of each distinct value, so few should be distinct.
      level: of confidence.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    drawn = np.random.RandomState(0).multinomial(counts.sum(), counts / counts.sum(), _RESAMPLES)
    low, high = np.quantile(drawn @ distinct / counts.sum(), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(before: Mapping[int, float], after: Mapping[int, float]) -> Difference | None:
    """Returns `after - before`, paired by seed; None if the groups share no seed.

    Args:
      before: one value per seed.
      after: one value per seed.
    """
    seeds = tuple(sorted(before.keys() & after.keys()))
    if not seeds:
        return None
    values = tuple(after[seed] - before[seed] for seed in seeds)
    p_value = sign_flip_p_value(values) if len(values) > 1 else None
    return Difference(seeds, values, statistics.fmean(values), t_interval(values), p_value)


def sign_flip_p_value(differences: Sequence[float], tolerance: float = 1e-6) -> float:
    """Returns the two-sided p-value of the hypothesis that the differences are symmetric around zero.

    It is the share of all 2^n assignments of signs whose sum is at least as far from zero as the observed one (Fisher
    1935, The Design of Experiments, section 21), so the smallest possible value is 2 / 2^n. For more than `EXACT`
    pairs, random assignments are drawn instead, and the observed one is counted as one of them (Phipson and Smyth
    2010).

    Args:
      differences: at least one.
      tolerance: sums that differ by less are equal; scores are recorded in single precision.
    """
    values = np.asarray(differences, np.float64)
    observed = abs(values.sum()) - tolerance
    if len(values) > EXACT:
        signs = np.random.RandomState(0).randint(0, 2, (_RANDOM_FLIPS, len(values))) * 2 - 1
        return float((1 + (np.abs(signs @ values) >= observed).sum()) / (1 + _RANDOM_FLIPS))
    sums = values[:1]  # the sign of the first is fixed: flipping all signs changes no absolute sum
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= observed).mean())


def false_discovery(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995); None stays None."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(stats.false_discovery_control(known).tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]
