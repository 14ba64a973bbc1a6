"""A real terminal of a given width takes output: bytes ─► the states of its lines, one per redraw."""

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Terminal:
    """The program's end of a terminal, and the reader of what came out."""

    stream: TextIO
    master: int

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self) -> str:
        """Return what has been written since the last time; less than the buffer of a terminal, 4 kB."""
        self.stream.flush()
        os.set_blocking(self.master, False)
        parts = []
        while True:
            try:
                part = os.read(self.master, 1 << 16)
            except BlockingIOError:
                break
            parts.append(part)
        return b"".join(parts).decode()


@contextmanager
def terminal(columns: int) -> Iterator[Terminal]:
    """Yield a terminal of so many columns."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST  # newlines come out as they were written
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        made = Terminal(stream, master)
        made.resize(columns)
        try:
            yield made
        finally:
            os.close(master)


def drawn(text: str) -> list[str]:
    """Return each state of each line: pieces between carriage returns and newlines."""
    return [state for line in text.split("\n") for state in line.split("\r")]


def shown(text: str) -> list[str]:
    """Return the lines as they stand at the end, when later states lie over earlier ones."""
    lines = []
    for line in text.split("\n"):
        stands = ""
        for state in line.split("\r"):
            stands = state + stands[len(state) :]
        lines.append(stands.rstrip())
    return lines
