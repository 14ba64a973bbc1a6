"""Output to a terminal or a log fails neither for a character nor, in a training, because nobody reads it any more.

tolerate_any_text()        # first in a command
with lasting_output():     # around work that should be saved first
    ...
    if output_is_lost(): ...
"""

import contextlib
import errno
import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

_MOST = 400  # characters of another library's message
_HEAD = 120  # of these, from its beginning, if it is longer
_FRAMES = re.compile(
    r"\s*(Exception raised from |C\+\+ CapturedTraceback|frame #\d+: |Stacktrace \(\d+ entries\):).*", re.S
)


def one_line(error: BaseException | str) -> str:
    """Return another library's message on one line, without frames of C++.

    What matters may stand first or last: DALI's "Critical error in pipeline:" comes before it, the commands of a
    compiler between its beginning and its end. So a long message is cut in the middle.
    """
    text = " ".join(_FRAMES.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= _MOST else f"{text[:_HEAD]} ... {text[_HEAD - _MOST :]}"


def tolerate_any_text() -> None:
    """Let standard output and error write what their encoding lacks as \\u escapes instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a pipe that was taken for a file: it cannot be sought in
                stream.reconfigure(errors="backslashreplace")


def time_text(seconds: float) -> str:
    """Return a length of time for people: "12 s", "5:03 min", "2.3 h", "4.1 days"."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min" if seconds >= 60 else f"{int(seconds)} s"


def printable(text: str) -> str:
    """Return a text on one line, without letters that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def text_width(text: str) -> int:
    """Return the columns of a terminal that a printable text takes."""
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def cut_text(text: str, width: int) -> str:
    """Return a text that takes no more columns than that; what is cut shows as an ellipsis."""
    text = printable(text)
    if text_width(text) <= width:
        return text
    taken, kept = 1, []  # a column for the ellipsis
    for letter in text:
        taken += _letter_width(letter)
        if taken > width:
            break
        kept.append(letter)
    return "".join(kept) + "…" if width > 0 else ""


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


class _LastingStream:
    """A stream whose text goes nowhere once its reader has gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, if somebody reads it."""
        with _without_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if somebody reads it."""
        with _without_reader():
            self._stream.flush()


@contextlib.contextmanager
def _without_reader() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # of a pipe or a socket; of a terminal
            raise


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Yield to a block whose output may lose its reader: a launcher over ssh that is killed closes it at once."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _LastingStream(before[0]), _LastingStream(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for descriptor in (1, 2):  # what is buffered still would fail at the interpreter's end: exit code 120
            if output_is_lost(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def output_is_lost(descriptor: int = 1) -> bool:
    """Return whether standard output had a reader that has gone: the other end of a pipe, a socket or a terminal."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
