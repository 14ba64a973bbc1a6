"""The progress of long work is shown on stderr: one line that fits a terminal, else a plain line now and then.

with Progress(len(rows), "clip", doing="embedding") as advance:
    advance(8, "1 rejected")                                    # pieces that are worth seeing, the first ones first
for shard in followed(shards, "shard", doing="verify"): ...

Work that is over in a moment shows nothing. The line has step, share and end first; what has no room is left out.
"""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from mae3d.io.console import cut_text, text_width, time_text

DELAY_S = 0.5  # before anything is shown on a terminal
LINE_EVERY_S = 30.0  # between the lines of a log
_DRAW_EVERY_S = 0.1
_BAR, _LEAST_BAR = 24, 8  # columns of the bar, if there is room
_WIDTH = 80  # of a terminal that does not say its own

Item = TypeVar("Item")


class Progress:
    """The progress of counted work; a context manager that yields `advance`."""

    def __init__(self, total: int, unit: str, *, doing: str = "", done: int = 0, show: bool = True) -> None:
        """Begin to measure time.

        Args:
            total: how much there is to do.
            unit: the name of one, as "clip".
            doing: the name of the work.
            done: how much an earlier run has done.
            show: whether to show anything; ranks but the first do not.
        """
        self.total, self.count = total, done
        self._unit, self._doing, self._before = unit, doing, done
        self._show = show and sys.stderr is not None
        self._pieces: tuple[str, ...] = ()
        self._began = self._drawn = time.monotonic()
        self._width = 0  # of the line on the terminal
        self.on_terminal = self._show and sys.stderr.isatty()

    def __enter__(self) -> Callable[..., None]:
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: int = 1, *pieces: str) -> None:
        """Count more work as done; `pieces` replace the texts behind the line, the most important one first."""
        self.reach(self.count + count, *pieces)

    def reach(self, count: int, *pieces: str) -> None:
        """Set how much is done."""
        self.count, self._pieces = count, pieces or self._pieces
        if not self._show:
            return
        now = time.monotonic()
        if self.on_terminal:
            if now - self._began >= DELAY_S and now - self._drawn >= _DRAW_EVERY_S:
                self._draw()
        elif now - self._drawn >= LINE_EVERY_S:
            self._log()

    def note(self, *pieces: str) -> None:
        """Replace the texts behind the line."""
        self._pieces = pieces

    def say(self, text: str) -> None:
        """Print a line above that of the progress, on a terminal."""
        self._write(f"\r{' ' * self._width}\r{text}\n" if self._width else f"{text}\n")
        if self._width:
            self._draw()

    def close(self) -> None:
        """End the line, if one was drawn; write the last one of a log that has others."""
        if self._width:
            self._draw()
            self._write("\n")
            self._width = 0
        elif self._show and self._drawn > self._began and not self.on_terminal:
            self._log()

    def left_s(self, count: int) -> float | None:
        """Return the seconds that the rest takes at the mean pace up to this count; None before the first."""
        done, seconds = count - self._before, time.monotonic() - self._began
        return seconds / done * max(self.total - count, 0) if done > 0 else None

    def _head(self) -> list[str]:
        """Return the pieces that come first: the work, its share, its end."""
        counted = f"{self._unit} {self.count:,}/{self.total:,}"
        share = f"{self.count / max(self.total, 1):.0%}"
        left = self.left_s(self.count)
        if left is None:
            return [f"{self._doing} {counted}".strip(), share]
        is_over = self.count >= self.total
        end = f"in {time_text(time.monotonic() - self._began)}" if is_over else f"ETA {time_text(left)}"
        return [f"{self._doing} {counted}".strip(), share, end]

    def _log(self) -> None:
        self._drawn = time.monotonic()
        self._write("  ".join([*self._head(), *self._pieces]) + "\n")

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        room = _columns() - 1  # a full line would make some terminals begin the next one
        text = fitted(self._head(), self._pieces, room, share=self.count / max(self.total, 1))
        width = text_width(text)
        self._write(f"\r{text}{' ' * max(min(self._width, room) - width, 0)}")
        self._width = width

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # nobody reads it any more, or the disk is full: no reason to stop the work
            self._show = self.on_terminal = False


def followed(items: Collection[Item], unit: str, *, doing: str, show: bool = True) -> Iterator[Item]:
    """Yield the items, and show how many have been worked on."""
    with Progress(len(items), unit, doing=doing, show=show) as advance:
        for item in items:
            yield item
            advance()


def fitted(head: Sequence[str], pieces: Sequence[str], width: int, *, share: float) -> str:
    """Return the pieces that fit, in order, with a bar behind the second one if there is room for it."""
    texts = list(head)
    for piece in pieces:
        if text_width("  ".join([*texts, piece])) > width:
            break
        texts.append(piece)
    room = width - text_width("  ".join(texts)) - 2
    if len(texts) > 1 and room >= _LEAST_BAR:
        size = min(room, _BAR)
        full = round(min(max(share, 0.0), 1.0) * size)
        texts.insert(2, "#" * full + "-" * (size - full))
    return cut_text("  ".join(texts), width)


def _columns() -> int:
    """Return the width of the terminal as it is now."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _WIDTH
    except (OSError, ValueError, AttributeError):
        return _WIDTH
