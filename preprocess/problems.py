"""What can be wrong with the input: a row that cannot be had, a source that cannot become a sample.

`reason` is one short word for counting, the message says why. Both end up in rejected.parquet. What is wrong with the
machine or its mounts is an OSError instead: it stops the build, which can go on later, and costs no sample.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something asked for that cannot be had, and where it was asked for."""

    reason: str
    message: str
    name: str = ""
    line: int = -1
    file: str = ""  # the ledger or list with that line; "" = the only one there is
    expected: bool = False  # as lists are published: videos that nobody can download any more


def describe(problem: Problem, source: str) -> str:
    """One line for people: where, what, why.

    Args:
        problem: what is wrong.
        source: the name of the ledger or list that the line is of.
    """
    source = problem.file or source
    where = f"{source}, line {problem.line}" if problem.line > 0 else (problem.name or source)
    return f"{where}: {problem.reason}: {problem.message}"
