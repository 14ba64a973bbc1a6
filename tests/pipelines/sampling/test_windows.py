"""Which frames a clip takes: the upstream's golden windows, and properties over all lengths and strides."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.sampling.windows import (
    clip_stride,
    regular_starts,
    segment_window,
    segments_are_short,
    strided_is_short,
    strided_window,
    strided_windows,
    window_from,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "segment_sampling_test_mode.json").read_text())
DRAWS = (0.0, 0.25, 0.5, 0.999999999)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['start_frame']}-{case['end_frame']}")
def test_segments_in_test_mode_take_the_upstream_frames(case: dict) -> None:
    length = case["end_frame"] - case["start_frame"] + 1
    frames = segment_window(length, num_segments=case["num_segments"], frames_per_segment=case["frames_per_segment"])
    assert (frames + case["start_frame"]).tolist() == case["frames"]


@pytest.mark.parametrize(
    ("length", "stride"),
    [(16, 1.0), (17, 1.0), (16, 0.5), (61, 3.996), (61, 4.0), (62, 4.0), (300, 0.5), (300, 3.996), (300, 4.0)],
)
def test_strided_windows_keep_their_stride_and_stay_inside(length: int, stride: float) -> None:
    assert not strided_is_short(length, num_frames=16, stride=stride)
    for draw in DRAWS:
        frames = strided_window(length, num_frames=16, stride=stride, start_draw=draw)
        assert frames[0] >= 0
        assert frames[-1] < length
        assert np.abs(np.diff(frames) - stride).max() < 1
    first = strided_window(length, num_frames=16, stride=stride, start_draw=0.0)
    last = strided_window(length, num_frames=16, stride=stride, start_draw=DRAWS[-1])
    assert first[0] == 0
    assert last[-1] == length - 1  # every window can be drawn, up to the last


def test_uniform_starts_reach_every_start_equally() -> None:
    starts = [strided_window(20, num_frames=4, stride=4, start_draw=draw)[0] for draw in (np.arange(800) + 0.5) / 800]
    assert np.bincount(starts).tolist() == [100] * 8


def test_test_clips_are_spread_from_the_first_frame_to_the_last() -> None:
    clips = strided_windows(100, num_frames=4, stride=4, num_clips=3)
    assert clips[:, 0].tolist() == [0, 43, 87]
    assert clips[-1, -1] == 99
    assert strided_windows(100, num_frames=4, stride=4, num_clips=1)[0, 0] == 43


@pytest.mark.parametrize(("short", "expected"), [("loop", [0, 2, 4, 1, 3, 0]), ("pad", [0, 2, 4, 4, 4, 4])])
def test_short_samples_loop_or_pad(short: str, expected: list[int]) -> None:
    assert strided_is_short(5, num_frames=6, stride=2)
    assert strided_window(5, num_frames=6, stride=2, start_draw=0.9, short=short).tolist() == expected  # type: ignore[arg-type]
    assert strided_windows(5, num_frames=6, stride=2, num_clips=2, short=short).tolist() == [expected] * 2  # type: ignore[arg-type]


def test_a_single_frame_becomes_a_clip() -> None:
    for frames in (
        strided_window(1, num_frames=4, stride=4, start_draw=0.5),
        segment_window(1, num_segments=2, frames_per_segment=2, start_draws=np.array([0.5, 0.5])),
    ):
        assert frames.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("length", [4, 5, 16, 33, 200])
def test_training_segments_start_inside_their_own_stretch(length: int) -> None:
    for draw in DRAWS:
        frames = segment_window(length, num_segments=4, frames_per_segment=2, start_draws=np.full(4, draw)).reshape(
            4, 2
        )
        assert frames.max() < length
        if not segments_are_short(length, num_segments=4, frames_per_segment=2):
            room = (length - 1) // 4
            assert np.array_equal(frames[:, 0] // room, np.arange(4))
            assert (np.diff(frames, axis=1) == 1).all()


def test_each_segments_draw_moves_its_own_run_only() -> None:
    settings = {"num_segments": 4, "frames_per_segment": 2}
    room = 199 // 4
    starts = segment_window(200, **settings, start_draws=np.array([0.1, 0.9, 0.5, 0.0]))[::2]
    assert (starts - room * np.arange(4)).tolist() == [int(0.1 * room), int(0.9 * room), int(0.5 * room), 0]
    for segment in range(4):
        draws = np.full(4, 0.25)
        still = segment_window(200, **settings, start_draws=draws).reshape(4, 2)
        draws[segment] = 0.75
        moved = segment_window(200, **settings, start_draws=draws).reshape(4, 2)
        assert (moved != still).any(axis=1).tolist() == [other == segment for other in range(4)]


def test_stride_follows_the_frame_rate() -> None:
    assert clip_stride(7.5, sampling_rate=4, target_fps=30) == 1.0
    assert clip_stride(60.0, sampling_rate=4, target_fps=30) == 8.0
    assert clip_stride(float("nan"), sampling_rate=4, target_fps=30) == 4


@pytest.mark.parametrize("length", [1, 7, 8, 30, 301])
@pytest.mark.parametrize("spacing", [0.7, 1.0, 7.5, 100.0])
def test_regular_starts_are_all_multiples_whose_clip_ends_within(length: int, spacing: float) -> None:
    starts = regular_starts(length, num_frames=4, stride=2.5, spacing=spacing)
    fitting = [i for i in range(1000) if i * spacing <= length - 1 - 3 * 2.5 + 1e-9]
    assert starts.tolist() == ([int(i * spacing + 1e-9) for i in fitting] or [0])
    for start in starts.tolist():
        frames = window_from(start, length, num_frames=4, stride=2.5)
        whole = [start, start + 2, start + 5, start + 7]
        assert frames.tolist() == ([frame % length for frame in whole] if length < 9 else whole)
