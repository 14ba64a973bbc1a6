"""What can be wrong with the input: a row that cannot be had, a source that cannot become a sample.

`reason` is one short word for counting, the message says why. Both end up in rejected.parquet. What is wrong with the
machine or its mounts is an OSError instead: it stops the build, which can go on later, and costs no sample.
"""

import errno
from dataclasses import dataclass
from typing import Any

# Of a disk that has gone or a machine that is short of something, never of one broken file.
_NOT_OF_A_FILE = frozenset(
    (
        *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ENOLINK, errno.EREMOTEIO, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE),
    )
)


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


def raise_unless_of_the_file(error: BaseException, path: object) -> None:
    """Raises OSError if an error of reading a file, FFmpeg's too, is that of its disk or of the machine."""
    if (number := getattr(error, "errno", None)) in _NOT_OF_A_FILE:
        raise OSError(number, getattr(error, "strerror", ""), str(path)) from error


def describe(problem: Problem, source: str) -> str:
    """One line for people: where, what, why.

    Args:
        problem: what is wrong.
        source: the name of the ledger or list that the line is of.
    """
    source = problem.file or source
    where = f"{source}, line {problem.line}" if problem.line > 0 else (problem.name or source)
    return f"{where}: {problem.reason}: {problem.message}"
