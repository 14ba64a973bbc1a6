"""Rows of metrics.jsonl, as they come ─► curves of few points that keep every peak, and the events among the rows.

follower, curves = Follower(run), Curves(clips_per_step=512)
if follower.is_new_course(): curves = Curves(...)     # the file was cut back, or replaced
for row in follower.rows(): curves.add(row)
curves.points("loss")                                 # [(step, value), ...], at most 2 * BUCKETS of them

The memory does not grow with the run's length: neighbouring points are put together, and of each group the least and
the greatest stay, with the mean.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae3d.tracking.history import COUNTS, interval_s, is_number
from mae3d.tracking.run_dir import METRICS, rows_in

BUCKETS = 300  # groups of points of a curve, at most
MOST_CURVES = 48  # names that are followed
MOST_EVENTS = 200  # the latest
_TAIL = 64  # bytes before the end that was read, by which a replaced file is known
_CHUNK = 1 << 22


class Follower:
    """A reader of a growing metrics.jsonl: each line is read once, a line that is being written later."""

    def __init__(self, run: Path):
        """Begin before the first line; the file need not exist."""
        self._path = run / METRICS
        self._read, self._tail = 0, b""

    def is_new_course(self) -> bool:
        """Return whether the file no longer begins with what was read; the next rows are then the first."""
        if not self._read:
            return False
        try:
            with self._path.open("rb") as file:
                file.seek(self._read - len(self._tail))
                same = file.read(len(self._tail)) == self._tail
        except FileNotFoundError:
            same = False
        if not same:
            self._read, self._tail = 0, b""
        return not same

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that have come, a few megabytes in memory at a time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            while chunk := file.read(_CHUNK):
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if not whole:
                    return
                self._read += len(whole)
                self._tail = whole[-_TAIL:]
                file.seek(self._read)
                yield from rows_in(whole.splitlines())


@dataclass
class _Bucket:
    """Neighbouring points of a curve: the least, the greatest, their sum, and where they are."""

    step: int
    least: tuple[int, float]
    greatest: tuple[int, float]
    total: float
    count: int = 1

    def absorb(self, other: "_Bucket") -> None:
        """Take in the points of the next bucket."""
        self.least = min(self.least, other.least, key=lambda point: point[1])
        self.greatest = max(self.greatest, other.greatest, key=lambda point: point[1])
        self.step, self.total, self.count = other.step, self.total + other.total, self.count + other.count


class Curve:
    """A logged value over the steps."""

    def __init__(self) -> None:
        """Begin without a point."""
        self._buckets: list[_Bucket] = []
        self._size = 1  # points per bucket, but for the last
        self._last: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Add the next point."""
        self._last = step, value
        new = _Bucket(step, (step, value), (step, value), value)
        if self._buckets and self._buckets[-1].count < self._size:
            self._buckets[-1].absorb(new)
            return
        if len(self._buckets) == BUCKETS:
            for first, second in zip(self._buckets[::2], self._buckets[1::2], strict=True):
                first.absorb(second)
            self._buckets, self._size = self._buckets[::2], 2 * self._size
        self._buckets.append(new)

    def points(self) -> list[tuple[int, float]]:
        """Return (step, value): all of a short curve, else the least and greatest of each group, and the last."""
        points: list[tuple[int, float]] = []
        for bucket in self._buckets:
            pair = [bucket.least, bucket.greatest] if bucket.least != bucket.greatest else [bucket.least]
            points += sorted(pair)
        return [*points, self._last] if self._last and self._last != points[-1] else points

    def means(self) -> list[tuple[int, float]]:
        """Return (last step, mean) of each group; empty if every group is one point."""
        return [(bucket.step, bucket.total / bucket.count) for bucket in self._buckets] if self._size > 1 else []


@dataclass
class Curves:
    """All logged values of a run over its steps, with epochs and hours for the axis, and events.

    Attributes:
        clips_per_step: Over all ranks; hours are computed from it and the speed.
        named: Name ─► curve.
        events: (step, text), the latest.
    """

    clips_per_step: int
    named: dict[str, Curve] = field(default_factory=dict)
    events: list[tuple[int, str]] = field(default_factory=list)
    _hours: float = 0.0
    _before: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl."""
        step = row["step"]
        for name, value in row.items():
            if name == "step" or name in COUNTS or not is_number(value):
                continue
            if name not in self.named and len(self.named) == MOST_CURVES:
                continue
            self.named.setdefault(name, Curve()).add(step, float(value))
        seconds = interval_s(row, self._before, clips_per_step=self.clips_per_step)
        if seconds is not None:
            self._hours += max(seconds, 0.0) / 3600  # back at a checkpoint it would be negative
            self._before = step
            self.named.setdefault("hours", Curve()).add(step, self._hours)
        for name, words in COUNTS.items():
            count = row.get(name)
            if isinstance(count, int):
                if (more := count - self._counts.get(name, 0)) > 0:
                    self.events.append((step, f"{more:,} {words}"))
                self._counts[name] = count
        del self.events[:-MOST_EVENTS]
