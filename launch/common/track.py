"""A model's output along a video is kept window by window, between its computation and the page that shows it."""

from dataclasses import dataclass

import numpy as np

from mae3d.analysis.course import Change


@dataclass
class Track:
    """All that is known about a file, window by window; NaN or -1 where a window cannot be read.

    Attributes:
        name: The file as given.
        start_s: (n,) beginnings of the windows.
        end_s: (n,) their ends.
        scores: (n, C) of a classifier; (n, 0) of other models.
        curves: Name -> (n,): surprise, surprise_copy, novelty, as far as the model has them.
        changes: Change points by the row that is the first of the new segment.
        predicted: (n,) classes after smoothing; empty without classes that exclude one another.
        true: (n,) classes by the events; empty without any.
        first_row: Number of its first row in the table.
    """

    name: str
    start_s: np.ndarray
    end_s: np.ndarray
    scores: np.ndarray
    curves: dict[str, np.ndarray]
    changes: list[Change]
    predicted: np.ndarray
    true: np.ndarray
    first_row: int = 0

    @property
    def is_readable(self) -> bool:
        """Return whether any of its windows has a time; a file that cannot be opened has one without."""
        return bool(np.isfinite(self.start_s).any())

    @property
    def centre_s(self) -> np.ndarray:
        """Middles of the windows, (n,) seconds."""
        centres: np.ndarray = (self.start_s + self.end_s) / 2
        return centres

    @property
    def edges_s(self) -> np.ndarray:
        """Bounds of the time that each window stands for, (n + 1,) seconds: half way between the windows' middles."""
        between = (self.centre_s[1:] + self.centre_s[:-1]) / 2
        return np.concatenate([self.start_s[:1], between, self.end_s[-1:]])

    def change_s(self, change: Change) -> float:
        """Return the time of a change: half way between the middles of the windows before and after it."""
        return float(self.centre_s[change.row - 1 : change.row + 1].mean())
