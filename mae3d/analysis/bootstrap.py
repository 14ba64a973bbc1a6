"""A bootstrap over groups of test samples shows how far a mean score, or the difference of two, may be off.

values of the test samples, their groups ─► mean and 95 % interval

    hits = intervals({"own": own_hits, "gain": own_hits - other_hits}, groups=video_names)
    hits["gain"].low > 0                # the first model is better than the second

Groups are drawn with replacement and keep all of their samples (Efron & Tibshirani 1993, chapter 6; the percentile
interval, chapter 13): pieces of one video are alike, and counting them as independent would make intervals too narrow.
Every value sees the same draws, which makes the interval of a difference a paired one. N samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae3d.io.progress import followed
from mae3d.io.random import Stream, philox

DRAWS = 2000
LOW, HIGH = 2.5, 97.5  # percentiles


class Interval(NamedTuple):
    """A mean over the samples, and the limits of its 95 % interval, None if there is one group alone."""

    mean: float
    low: float | None
    high: float | None


def intervals(
    values: Mapping[str, NDArray[Any]], *, groups: Sequence[str], draws: int = DRAWS, seed: int = 0, show: bool = False
) -> dict[str, Interval]:
    """Compute the means of values over the samples, and their intervals over the same draws of groups.

    Args:
        values: (N,) floats by name.
        groups: (N,) names of the group of each sample.
        draws: Number of draws.
        seed: Seed of the draws.
        show: Whether to show the progress on stderr.

    Raises:
        ValueError: There are no samples, or lengths differ.
    """
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
    if not len(groups) or len(columns) != len(groups):
        raise ValueError(f"{len(columns)} values of {len(groups)} samples: give one value per sample, and one or more")
    names, of_sample = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(of_sample)
    sums = np.stack([np.bincount(of_sample, column) for column in columns.T], axis=1)
    means = sums.sum(axis=0) / sizes.sum()
    if len(names) < 2:
        return {name: Interval(float(mean), None, None) for name, mean in zip(values, means, strict=True)}
    drawn = np.zeros((draws, len(values)))
    for i in followed(range(draws), "draw", doing="bootstrap", show=show):
        chosen = philox(seed, Stream.BOOTSTRAP, position=i).integers(len(names), size=len(names))
        drawn[i] = sums[chosen].sum(axis=0) / sizes[chosen].sum()
    low, high = np.percentile(drawn, [LOW, HIGH], axis=0)
    # A mean that no draw can move has itself as limits; rounding must not put it outside.
    low, high = np.minimum(low, means), np.maximum(high, means)
    return {name: Interval(*map(float, row)) for name, *row in zip(values, means, low, high, strict=True)}
