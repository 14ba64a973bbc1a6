"""Output to a terminal or a log never fails for a character: names in any script, under any locale.

tolerate_any_text()        # first in a command
"""

import contextlib
import io
import re
import sys

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
