"""Time stamps become seconds: the clock of a stream's frames, apart from any file.

Stamps (whole numbers of a time base) ─► seconds that ascend, the first frame of the stream at about 0 s.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

T = TypeVar("T")

STEP_S = 0.04  # from a frame to the next if the distance is not known
_RESTARTS_S = 0.25  # stamps that go back by so much begin anew; by less, they are out of place
_A_MOMENT_S = 0.001  # from a frame to one whose stamp is not later


class FrameClock:
    """The times of frames, in the order in which a decoder gives them.

    Attributes:
        latest_s: The time of the frame before; -inf before the first one.
    """

    def __init__(self, base: Fraction, *, origin: int | None, step_s: float) -> None:
        """Set the clock before the first frame, or before the first one after a jump.

        Args:
            base: Seconds per unit of the stamps.
            origin: The stamp of 0 s; None = the first stamp.
            step_s: Seconds from a frame to a next one that has no stamp.
        """
        self._base, self._origin, self._step_s = base, origin, step_s
        self._moved_s = 0.0  # added to stamps that began anew
        self.latest_s = -math.inf

    @property
    def next_s(self) -> float:
        """The expected time of the next frame, seconds."""
        return max(self.latest_s + self._step_s, 0.0)

    def seconds(self, stamp: int | None) -> float:
        """Return when the next frame is shown: by its stamp, or one step after the frame before if it has none."""
        if self._origin is None:
            self._origin = stamp
        if stamp is None or self._origin is None:
            seconds = self.next_s
        else:
            seconds = float((stamp - self._origin) * self._base) + self._moved_s
        if seconds <= self.latest_s - _RESTARTS_S:
            self._moved_s += self.latest_s + self._step_s - seconds
            seconds = self.latest_s + self._step_s
        self.latest_s = max(seconds, self.latest_s + _A_MOMENT_S)
        return self.latest_s


class PacketStamps(NamedTuple):
    """The stamps of a packet, which are those of the frame in it."""

    pts: int | None
    dts: int | None
    is_keyframe: bool


class FrameTimes(NamedTuple):
    """When the frames of a video are shown, ascending, and from which of them decoding can begin."""

    seconds: list[float]
    keyframes: list[float]  # a selection of `seconds`; empty if only the start of the file is sure


def within(timed: Iterable[tuple[float, T]], start_s: float, stop_s: float) -> Iterator[tuple[float, T]]:
    """Yield what has start_s <= time < stop_s, the last one before and the first one after; times ascend."""
    previous: tuple[float, T] | None = None
    for pair in timed:
        if pair[0] < start_s:
            previous = pair
            continue
        if previous is not None:
            yield previous
            previous = None
        yield pair
        if pair[0] >= stop_s:
            return
    if previous is not None:
        yield previous


def times_of_packets(packets: Iterable[PacketStamps], clock: FrameClock) -> FrameTimes | None:
    """Return the times of the frames in all packets of a stream, which the decoder will put in order.

    Args:
        packets: The packets that hold frames to be shown, as they lie in the file.
        clock: A clock before its first frame.

    Returns:
        The times; None if the packets do not have them: stamps are missing, come twice or begin anew.
    """
    is_key: dict[int, bool] = {}
    latest_dts = -math.inf
    for pts, dts, is_keyframe in packets:
        if pts is None or pts in is_key or (dts is not None and dts < latest_dts):
            return None
        is_key[pts] = is_keyframe
        latest_dts = latest_dts if dts is None else dts
    times = {pts: clock.seconds(pts) for pts in sorted(is_key)}
    return FrameTimes(list(times.values()), [seconds for pts, seconds in times.items() if is_key[pts]])
