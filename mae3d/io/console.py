"""Output to a terminal or a log never fails for a character: names in any script, under any locale.

tolerate_any_text()        # first in a command
"""

import io
import sys


def tolerate_any_text() -> None:
    """Let standard output and error write what their encoding lacks as \\u escapes instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
