"""What of the input cannot be used, and when that is too much of it; what is kept with a remark."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from preprocess.problems import Problem, describe

log = logging.getLogger(__name__)

# What is wrong with a ledger or list, not with the media it names: --max-bad-fraction is about these.
_LIST_FAULTS = {"bad_row", "duplicate_row", "unsafe_name", "missing_folder", "missing_file", "missing_frame"}
_LISTED = 20  # problems shown by name; all of them are in rejected.parquet


class TooManyBad(ValueError):
    """More of the input is unusable than the caller allows; the message lists it."""


class Rejects:
    """Counts what cannot be used, and stops where a list does not describe what is on disk, or where nothing is left.

    An archive has broken files, and the summary counts them; a ledger of which a tenth is wrong is the wrong ledger.
    """

    def __init__(self, asked: int, *, source: str, on_error: str, max_bad_fraction: float) -> None:
        self._asked, self._source = asked, source
        self._strict = on_error == "fail"
        self._allowed = int(max_bad_fraction * asked)
        self._limit = f"--max-bad-fraction {max_bad_fraction:g} allows {self._allowed}: mend them, or allow more"
        self._all: list[Problem] = []
        self._wrong: list[Problem] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, problems: Iterable[Problem]) -> None:
        """Adds to them; raises TooManyBad."""
        for problem in problems:
            self._all.append(problem)
            if problem.reason in _LIST_FAULTS and not problem.expected:
                self._wrong.append(problem)
        if self._strict and self._all:
            self._stop(self._all, "--on-error fail allows none")
        if len(self) >= self._asked:
            self._stop(self._all, "so nothing is left")
        if len(self._wrong) > self._allowed:
            self._stop(self._wrong, self._limit)

    def _stop(self, told: Sequence[Problem], limit: str) -> None:
        lines = [describe(problem, self._source) for problem in told[:_LISTED]]
        if len(told) > _LISTED:
            lines.append(f"... and {len(told) - _LISTED} more")
        raise TooManyBad("\n".join([*lines, f"{len(told)} of {self._asked} rows cannot be used, {limit}"]))


class Remarks:
    """Tells what is kept with a remark, the first of each reason by name: a DV archive is interlaced throughout."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def tell(self, remarks: Iterable[tuple[str, str, str]]) -> None:
        """Logs (name, reason, message) of samples."""
        for name, reason, message in remarks:
            self._counts[reason] += 1
            if self._counts[reason] <= _LISTED:
                log.warning("%s: kept, but %s: %s", name, reason, message)
            if self._counts[reason] == _LISTED:
                log.warning("more that is %s is only counted; rejected.parquet has all of it", reason)


def rejected_row(problem: Problem, source: str) -> dict[str, Any]:
    """A row of rejected.parquet for what was left out of the plan.

    Args:
        problem: what is wrong.
        source: the ledger or list that asked for it, where the problem does not say.
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


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
