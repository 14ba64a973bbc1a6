"""Packets of a video: where decoding begins for the frames in them, and which of them are needed."""

import numpy as np
import pytest

from mae3d.video.packets import KEYFRAME, UNREFERENCED, Packets

# Decoding order, as a stream with open groups has it: the frames of packets 5 and 6 are shown before keyframe 4.
RANKS = [0, 3, 1, 2, 7, 5, 6, 9, 8]
KEYS, FREE = (0, 4), (2, 3, 5, 6, 8)


def packets(keys: tuple[int, ...] = KEYS) -> Packets:
    flags = np.zeros(len(RANKS), np.uint8)
    flags[list(keys)] |= KEYFRAME
    flags[list(FREE)] |= UNREFERENCED
    nothing = np.zeros(len(RANKS), np.int64)
    return Packets(nothing, nothing.astype(np.int32), nothing.astype(np.uint32), np.array(RANKS, np.int32), flags)


def one_by_one(table: Packets, number: int) -> int:
    before = [key for key in np.flatnonzero(table.flags[: number + 1] & KEYFRAME) if table.rank[key] <= RANKS[number]]
    return int(before[-1]) if before else 0


@pytest.mark.parametrize("keys", [KEYS, (4,), (0, 4, 7), ()])
def test_decoding_begins_at_the_last_keyframe_that_is_shown_and_stored_before(keys: tuple[int, ...]) -> None:
    table = packets(keys)
    starts = table.starts_of(range(len(RANKS))).tolist()
    assert starts == [one_by_one(table, number) for number in range(len(RANKS))]


def test_what_nothing_refers_to_is_left_out_unless_it_is_requested() -> None:
    assert [run.tolist() for run in packets().needed([7])] == [[4, 7]]
    assert [run.tolist() for run in packets().needed([5, 8, 5])] == [[0, 1, 4, 5, 7, 8]]
    assert [run.tolist() for run in packets().needed([2, 8])] == [[0, 1, 2], [4, 7, 8]]
