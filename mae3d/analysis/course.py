"""The vectors of windows along a video say when something new is seen, and when the scene changes.

vectors (n, D), one row per window in order of time ─► novelty (n,), change points

    novelty = novelties(vectors, start_s, end_s)            # cosine distance to the nearest earlier window
    changes = change_points(vectors, penalty=12.0, min_rows=2)

Both work through hours of video in bounded memory and do not depend on the number of threads.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae3d.analysis.exact import one_thread
from mae3d.analysis.features import unit

ROWS = 256  # of the matrix of similarities at a time: 24 h at a window per second take 90 MB
COMPONENTS = 16  # principal components that change points are sought in
BLOCK, MARGIN = 2048, 256  # rows that are segmented at once, and rows at their ends that another block decides
QUIET = 0.25  # share of the steps between windows that are noise alone, for sure
STILL = 1e-3  # least noise, as a share of the variance
ROUNDING = 1e-10  # and at all: of vectors of length 1 in float32


class Change(NamedTuple):
    """A change point: the first row of the new segment, and the cosine distance of the segments' mean vectors."""

    row: int
    strength: float


def novelties(
    vectors: NDArray[np.floating], start_s: NDArray[np.float64], end_s: NDArray[np.float64], *, apart_s: float = 0.0
) -> NDArray[np.float32]:
    """Return each window's cosine distance to the most similar earlier one, (n,) float32 on [0, 2].

    Args:
        vectors: (n, D) of one video, in order of their beginnings.
        start_s: (n,) beginnings, ascending.
        end_s: (n,) ends, ascending.
        apart_s: Seconds between the end of the earlier window and the beginning of the later one, at least; windows
            that overlap never count.

    Returns:
        NaN for a window without an earlier one that counts.
    """
    rows, latest = unit(vectors), np.searchsorted(end_s, start_s - apart_s, side="right")

    def nearest(first: int) -> NDArray[np.float32]:
        counts = latest[first : first + ROWS]
        similar = rows[first : first + ROWS] @ rows[: counts.max()].T
        similar[np.arange(similar.shape[1]) >= counts[:, None]] = -np.inf
        best = similar.max(axis=1, initial=-np.inf)
        return np.where(np.isfinite(best), np.maximum(1 - best, 0), np.nan).astype(np.float32)

    with one_thread() as spread:
        parts = spread(nearest, range(0, len(rows), ROWS))
    return np.concatenate([np.zeros(0, np.float32), *parts])


def change_points(vectors: NDArray[np.floating], *, penalty: float, min_rows: int = 2) -> list[Change]:
    """Return the rows at which the vectors' mean changes, by penalised least squares (PELT, Killick et al. 2012).

    Vectors have length 1 and are reduced to their principal components. A change must lessen the sum of squared
    distances to the segments' means by `penalty` x log(n) x the noise: half the lower quartile of the squared distances
    of windows that follow one another, which neither changes nor stretches of motion move, or a thousandth of the whole
    variance in still footage.

    Args:
        vectors: (n, D) of one video, in order of time.
        penalty: Evidence that a change needs; more finds fewer.
        min_rows: Rows of a segment, at least.
    """
    rows = unit(vectors)
    if len(rows) < 2 * min_rows:
        return []
    with one_thread():
        reduced = _reduced(rows)
        steps = float(np.quantile(np.square(np.diff(reduced, axis=0)).sum(axis=1), QUIET)) / 2
        noise = max(steps, STILL * float(np.square(reduced).sum(axis=1).mean()), ROUNDING)
        cost = penalty * np.log(len(rows)) * noise
        ends = [0, *_segmented(reduced, cost, min_rows), len(rows)]
        means = [unit(rows[a:b].mean(axis=0, keepdims=True))[0] for a, b in pairwise(ends)]
        return [Change(row, 1 - float(a @ b)) for row, (a, b) in zip(ends[1:-1], pairwise(means), strict=True)]


def _reduced(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (n, COMPONENTS) float64, the rows along the axes in which they vary most; block by block."""
    mean, begins = rows.mean(axis=0, dtype=np.float64), range(0, len(rows), BLOCK)

    def centred(begin: int) -> NDArray[np.float64]:
        return rows[begin : begin + BLOCK].astype(np.float64) - mean

    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    for block in map(centred, begins):
        scatter += block.T @ block
    axes = np.linalg.eigh(scatter)[1][:, ::-1][:, :COMPONENTS]
    return np.concatenate([block @ axes for block in map(centred, begins)])


def _segmented(rows: NDArray[np.float64], cost: float, min_rows: int) -> list[int]:
    """Return the change points; of a long video block by block, each without those near its ends.

    The time of a search grows with the square of its rows, and blocks overlap by twice the margin.
    """
    from ruptures import KernelCPD

    points: list[int] = []
    step = BLOCK - 2 * MARGIN
    for begin in range(0, max(len(rows) - 2 * MARGIN, 1), step):
        block = rows[begin : begin + BLOCK]
        is_last = begin + BLOCK >= len(rows)
        if len(block) >= 2 * min_rows:
            search = KernelCPD(kernel="linear", min_size=min_rows).fit(block)
            low = MARGIN if begin else 0
            high = len(block) if is_last else BLOCK - MARGIN
            points += [begin + int(end) for end in search.predict(pen=cost)[:-1] if low <= end < high]
        if is_last:
            break
    # where two blocks meet, each may have put the same change a row apart
    return [row for i, row in enumerate(points) if not i or row - points[i - 1] >= min_rows]
