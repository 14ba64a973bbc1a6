"""What can be wrong with the input: a row that cannot be had, a source that cannot become a sample.

`reason` is one short word for counting, the message says why. Both end up in rejected.parquet.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Something asked for that cannot be had, and where it was asked for."""

    reason: str
    message: str
    name: str = ""
    line: int = -1
    file: str = ""  # the ledger or list with that line; "" = the only one there is
    expected: bool = False  # as lists are published: videos that nobody can download any more


class MediaError(Exception):
    """A source that cannot become a sample; `frame` is where it broke, or -1."""

    def __init__(self, reason: str, message: str, *, frame: int = -1) -> None:
        super().__init__(message)
        self.reason = reason
        self.frame = frame

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can come back from another process."""
        return type(self), (self.reason, str(self)), {"frame": self.frame}


def describe(problem: Problem, source: str) -> str:
    """One line for people: where, what, why.

    Args:
        problem: what is wrong.
        source: the name of the ledger or list that the line is of.
    """
    source = problem.file or source
    where = f"{source}, line {problem.line}" if problem.line > 0 else (problem.name or source)
    return f"{where}: {problem.reason}: {problem.message}"
