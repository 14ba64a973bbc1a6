"""The progress of a long job is shown on stderr: counts ─► a bar on a terminal, else lines."""

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


class Progress:
    """A bar on a terminal, else a plain line every half minute.

    with Progress(len(plan), "sample", done=2) as advance:      # done by an earlier run
        advance(3, "1 rejected")
    """

    def __init__(self, total: int, unit: str, *, done: int = 0) -> None:
        self._total, self._unit, self._count, self._before = total, unit, done, done
        self._began = self._logged = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit=unit, desc="preprocess") if sys.stderr.isatty() else None

    def __enter__(self) -> Callable[..., None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _advance(self, count: int, more: str = "") -> None:
        self._count += count
        if self._bar is not None:
            self._bar.set_postfix_str(more, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._logged >= _LINE_EVERY_S or self._count == self._total:
            self._logged = now
            rate = (self._count - self._before) / max(now - self._began, 1e-3)
            left = f"{(self._total - self._count) / rate:.0f}" if rate else "?"
            line = f"{self._count} of {self._total} {self._unit}s, {rate:.1f} per second, {left} s left"
            log.info("%s", f"{line}; {more}" if more else line)
