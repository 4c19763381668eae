"""Curves of a run, from its records."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]  # as `cnn_jax.workdir.records.read_metrics` returns them


def of_split(records: Records, split: str, measure: str) -> list[tuple[float, float]]:
    """Returns (epoch, value) per record of a split. Values that were not finite are NaN, a gap in the curve."""
    return [(r["epoch"], _value(r, measure)) for r in records if r["split"] == split and measure in r]


def per_epoch(records: Records, measure: str) -> list[tuple[float, float]]:
    """Returns the averages of the training records per epoch; a record may span two epochs and is divided."""
    train = [(r["epoch"], _value(r, measure)) for r in records if r["split"] == "train" and measure in r]
    if not train:
        return []
    ends, values = map(np.array, zip(*train))
    widths, finite = np.diff(ends, prepend=0), np.isfinite(values)
    # The remainder of the last epoch gets a point of its own only if it is longer than a tenth of an epoch.
    edges = np.append(np.arange(math.floor(ends[-1]) + 1), ends[-1:] if ends[-1] % 1 > 0.1 else [])
    sums = [
        np.interp(edges, [0, *ends], [0, *np.cumsum(np.where(finite, part, 0))]) for part in (values * widths, widths)
    ]
    total, width = map(np.diff, sums)
    return list(zip(edges[1:].tolist(), np.where(width > 0, total / np.maximum(width, 1e-9), np.nan).tolist()))


def _value(record: Mapping[str, Any], measure: str) -> float:
    return math.nan if record[measure] is None else record[measure]
