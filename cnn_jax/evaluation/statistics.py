"""Statistics over seeds."""

import statistics
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> list[float] | None:
    """Returns the 95 % confidence interval of the mean by Student's t distribution; None for a single value."""
    if len(values) == 1:
        return None
    # The scale is applied here, because SciPy's is NaN if all values are equal.
    low, high = stats.t.interval(0.95, len(values) - 1)
    mean, error = statistics.fmean(values), float(stats.sem(values))
    return [mean + float(low) * error, mean + float(high) * error]
