"""The progress of long work is shown on stderr: by tqdm, one line that fits a terminal; else a plain line now and then.

with Progress(len(rows), "clip", doing="embedding") as advance:
    advance(8, "1 rejected")                                    # pieces that are worth seeing, the first ones first
for shard in followed(shards, "shard", doing="verify"): ...

Work that is over in a moment shows nothing. The line has count, share and end first; what has no room is cut off.
"""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY_S = 0.5  # before anything is shown on a terminal
LINE_EVERY_S = 30.0  # between the lines of a log
_DRAW_EVERY_S = 0.1
_FORM = "{desc} {n_fmt}/{total_fmt}  {percentage:.0f}%  ETA {remaining}{postfix}"
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
        self._before, self._name = done, f"{doing} {unit}".strip()
        self._show = show and sys.stderr is not None
        self._pieces = ""
        self._began = self._logged = time.monotonic()
        self._logged_count = done
        self._bar = _bar(self._name, total, done) if self._show and sys.stderr.isatty() else None

    @property
    def on_terminal(self) -> bool:
        """Return whether one line is drawn again and again; if not, lines are logged."""
        return self._bar is not None

    def __enter__(self) -> Callable[..., None]:
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: int = 1, *pieces: str) -> None:
        """Count more work as done; `pieces` replace the texts behind the line, the most important one first."""
        self.reach(self.count + count, *pieces)

    def reach(self, count: int, *pieces: str) -> None:
        """Set how much is done."""
        if pieces:
            self.note(*pieces)
        more, self.count = count - self.count, count
        if (bar := self._bar) is not None:
            if (columns := _columns()) != bar.ncols:  # the window has been resized
                bar.ncols = columns
                bar.sp = bar.status_printer(bar.fp)  # forgets the line that it would blank out
            self._shown(lambda: bar.update(more))
        elif self._show and time.monotonic() - self._logged >= LINE_EVERY_S:
            self._log()

    def note(self, *pieces: str) -> None:
        """Replace the texts behind the line."""
        self._pieces = "  ".join(pieces)
        if self._bar is not None:
            self._bar.set_postfix_str(self._pieces, refresh=False)

    def say(self, text: str) -> None:
        """Print a line above that of the progress, on a terminal."""
        from tqdm import tqdm

        self._shown(lambda: tqdm.write(text, file=sys.stderr))

    def close(self) -> None:
        """End the line, if one was drawn; write the last one of a log that has others."""
        if self._bar is not None:
            self._shown(self._bar.close)
        if self._show and not self.on_terminal and self._logged > self._began and self._logged_count < self.count:
            self._log()

    def left_s(self, count: int) -> float | None:
        """Return the seconds that the rest takes at the mean pace up to this count; None before the first."""
        done, seconds = count - self._before, time.monotonic() - self._began
        return seconds / done * max(self.total - count, 0) if done > 0 else None

    def _log(self) -> None:
        from tqdm import tqdm

        self._logged, self._logged_count = time.monotonic(), self.count
        line = tqdm.format_meter(
            self.count,
            self.total,
            self._logged - self._began,
            prefix=self._name,
            initial=self._before,
            bar_format=_FORM,
            postfix=self._pieces,
        )
        self._shown(lambda: print(line, file=sys.stderr, flush=True))

    def _shown(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except OSError:  # nobody reads it any more, or the disk is full: no reason to stop the work
            self._show = False
            if self._bar is not None:
                self._bar.disable, self._bar = True, None


def followed(items: Collection[Item], unit: str, *, doing: str, show: bool = True) -> Iterator[Item]:
    """Yield the items, and show how many have been worked on."""
    with Progress(len(items), unit, doing=doing, show=show) as advance:
        for item in items:
            yield item
            advance()


def _bar(name: str, total: int, done: int) -> "tqdm":
    from tqdm import tqdm  # 0.03 s, for terminals only

    return tqdm(
        total=total,
        initial=done,
        desc=name,
        bar_format=_FORM,
        ncols=_columns(),
        delay=DELAY_S,
        mininterval=_DRAW_EVERY_S,
        miniters=0,
        smoothing=0,
        position=0,  # not below the line of earlier work that an error has left open
    )


def _columns() -> int:
    """Return the columns that a line may take: a full one would make some terminals begin the next."""
    try:
        return (os.get_terminal_size(sys.stderr.fileno()).columns or _WIDTH) - 1
    except (OSError, ValueError, AttributeError):
        return _WIDTH - 1
