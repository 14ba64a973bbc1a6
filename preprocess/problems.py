"""Faults of the input are described: a row that cannot be used, a source that cannot become a sample.

`reason` is one short word for counting, the message says why. Both end up in rejected.parquet. A fault of the machine
or its mounts is an OSError instead: it stops the build, which can go on later, and costs no sample.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A requested sample that cannot be built, and the place of the request."""

    reason: str
    message: str
    name: str = ""
    line: int = -1
    file: str = ""  # the ledger or list with that line; "" = the only one there is
    expected: bool = False  # True for videos that published lists name and nobody can download any more


def describe(problem: Problem, source: str) -> str:
    """Return a line for people: the place, the reason, the message.

    Args:
        problem: the problem.
        source: the name of the ledger or list that the line belongs to.
    """
    source = problem.file or source
    where = f"{source}, line {problem.line}" if problem.line > 0 else (problem.name or source)
    return f"{where}: {problem.reason}: {problem.message}"
