"""mae3d.video.clock: stamps become times, without any file."""

import math
from fractions import Fraction

import pytest

from mae3d.video.clock import FrameClock, PacketStamps, times_of_packets

BASE = Fraction(1, 100)


def clock(origin: int | None = 0) -> FrameClock:
    return FrameClock(BASE, origin=origin, step_s=0.1)


def seconds(*stamps: int | None, origin: int | None = 0) -> list[float]:
    ticking = clock(origin)
    return [round(ticking.seconds(stamp), 6) for stamp in stamps]


def packets(*stamps: int | None) -> list[PacketStamps]:
    return [PacketStamps(stamp, number, number % 3 == 0) for number, stamp in enumerate(stamps)]


def test_stamps_count_from_the_origin() -> None:
    assert seconds(50, 60, 80, origin=50) == [0, 0.1, 0.3]
    assert seconds(50, 60, 80) == [0.5, 0.6, 0.8]
    assert seconds(50, 60, 80, origin=None) == [0, 0.1, 0.3]  # the first is the origin


def test_a_frame_without_a_stamp_is_a_step_after_the_one_before() -> None:
    assert seconds(None, None, 50, None) == [0, 0.1, 0.5, 0.6]
    assert seconds(None, None, 50, None, origin=None) == [0, 0.1, 0.101, 0.2 + 0.001]


def test_a_clock_that_begins_anew_goes_on() -> None:
    assert seconds(0, 10, 20, 0, 10, 20) == [0, 0.1, 0.2, 0.201, 0.202, 0.203]  # 0.2 s back is out of place
    assert seconds(0, 10, 20, 30, 0, 10, 20) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_stamps_out_of_place_ascend_all_the_same() -> None:
    assert seconds(0, 20, 10, 30) == [0, 0.2, 0.201, 0.3]


def test_the_next_frame_is_expected_a_step_on() -> None:
    ticking = clock()
    assert (ticking.latest_s, ticking.next_s) == (-math.inf, 0.0)
    ticking.seconds(70)
    assert ticking.next_s == pytest.approx(0.8)


def test_packets_in_any_order_of_presentation_give_ascending_times() -> None:
    times = times_of_packets(packets(0, 30, 10, 20, 60, 40, 50), clock())
    assert times is not None
    assert times.seconds == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert times.keyframes == pytest.approx([0, 0.2, 0.5])


@pytest.mark.parametrize(
    "unclear",
    [
        packets(0, None, 20),
        packets(0, 10, 10),
        [PacketStamps(0, 0, True), PacketStamps(10, 1, False), PacketStamps(5, 0, False)],
    ],
    ids=["no stamp", "twice", "anew"],
)
def test_packets_that_do_not_tell_give_no_times(unclear: list[PacketStamps]) -> None:
    assert times_of_packets(unclear, clock()) is None


def test_no_packets_have_no_times() -> None:
    assert times_of_packets([], clock()) == ([], [])
