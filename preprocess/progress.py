"""How far a long job is, on stderr."""

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


class Progress:
    """A bar on a terminal, else a plain line every half minute.

    with Progress(len(plan), "sample") as advance:
        advance(3)
    """

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._count = total, unit, 0
        self._began = self._said = time.monotonic()
        self._bar = tqdm(total=total, unit=unit, desc="preprocess") if sys.stderr.isatty() else None

    def __enter__(self) -> Callable[[int], None]:
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _advance(self, count: int) -> None:
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S or self._count == self._total:
            self._said = now
            rate = self._count / max(now - self._began, 1e-3)
            left = (self._total - self._count) / rate if rate else 0.0
            log.info("%d of %d %ss, %.1f a second, %.0f s left", self._count, self._total, self._unit, rate, left)
