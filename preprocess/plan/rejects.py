"""Samples that cannot be used are counted, and too many stop the build: problems ─► count, or TooManyBad."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from preprocess.problems import Problem, describe

log = logging.getLogger(__name__)

# Faults of a ledger or list, not of the media that it names: --max-bad-fraction is about these.
_LIST_FAULTS = {"bad_row", "duplicate_row", "unsafe_name", "missing_folder", "missing_file", "missing_frame"}
_LIST_FAULTS |= {"unknown_label", "several_videos", "ambiguous_file", "ambiguous_folder"}
# Media that no row names: they are no share of the rows.
_NO_ROWS = {"no_event"}
_LISTED = 20  # problems shown by name; all of them are in rejected.parquet


class TooManyBad(ValueError):
    """More of the input is unusable than the caller allows; the message lists it."""


class Rejects:
    """A count of the rows that cannot be used; it raises if a list does not fit the disk, or if nothing is left.

    An archive has broken files, and the summary counts them; a ledger of which a tenth is wrong is the wrong ledger.
    """

    def __init__(self, num_requested: int, *, source: str, on_error: str, max_bad_fraction: float) -> None:
        self._num_requested, self._source = num_requested, source
        self._strict = on_error == "fail"
        self._num_rows, self._max_bad_fraction = num_requested, max_bad_fraction
        self._all: list[Problem] = []
        self._wrong: list[Problem] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems; raise TooManyBad if they are too many."""
        for problem in problems:
            self._all.append(problem)
            self._num_rows -= problem.reason in _NO_ROWS
            if problem.reason in _LIST_FAULTS and not problem.expected:
                self._wrong.append(problem)
        if self._strict and self._all:
            self._stop(self._all, "--on-error fail allows none", self._num_requested)
        if len(self) >= self._num_requested:
            self._stop(self._all, "so nothing is left", self._num_requested)
        allowed = int(self._max_bad_fraction * self._num_rows)
        if len(self._wrong) > allowed:
            limit = f"--max-bad-fraction {self._max_bad_fraction:g} allows {allowed}: mend them, or allow more"
            self._stop(self._wrong, limit, self._num_rows)

    def _stop(self, problems: Sequence[Problem], limit: str, count: int) -> None:
        lines = [describe(problem, self._source) for problem in problems[:_LISTED]]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more")
        raise TooManyBad("\n".join([*lines, f"{len(problems)} of {count} rows cannot be used, {limit}"]))


class Remarks:
    """A log of the samples that are kept with a remark; of each reason only the first ones are named.

    A whole archive may share one remark: DV is interlaced throughout.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def log(self, remarks: Iterable[tuple[str, str, str]]) -> None:
        """Log the (name, reason, message) of samples."""
        for name, reason, message in remarks:
            self._counts[reason] += 1
            if self._counts[reason] <= _LISTED:
                log.warning("%s: kept, but %s: %s", name, reason, message)
            if self._counts[reason] == _LISTED:
                log.warning("more that is %s is only counted; rejected.parquet has all of it", reason)


def rejected_row(problem: Problem, source: str) -> dict[str, Any]:
    """Return the row of rejected.parquet for a problem that kept a sample out of the plan.

    Args:
        problem: the problem.
        source: the ledger or list that requested the sample, if the problem does not name it.
    """
    return {
        "key": "",
        "name": problem.name,
        "num_frames": 0,
        "file": problem.file or source or problem.name,
        "line": problem.line,
        "frame": -1,
        "reason": problem.reason,
        "message": problem.message,
    }


def first_names(names: Sequence[str]) -> str:
    """Return the first of many names, and the number of the others."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
