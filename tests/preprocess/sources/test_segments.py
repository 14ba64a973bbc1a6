import math

import numpy as np
import pytest

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.sources.frame_names import FrameFolder
from preprocess.sources.segments import even_pieces, frame_pieces, num_pieces, video_pieces


def test_pieces_are_even_and_never_too_long() -> None:
    for length in (1, 9, 10, 11, 99.5):
        pieces = even_pieces(length, 10)
        assert length / pieces <= 10
        assert pieces == 1 or length / (pieces - 1) > 10


@pytest.mark.parametrize(
    ("seconds", "frames", "settings", "pieces"),
    [
        (60, 1800, Settings(), 1),
        (61, 1, Settings(), 2),
        (60, 1801, Settings(), 2),  # at 60 fps a minute is twice as many frames as is good
        (600, 36_000, Settings(), 20),
        (7200, 7200, Settings(), 120),
        (math.nan, 1801, Settings(), 2),
        (61, math.nan, Settings(), 2),
        (math.nan, math.nan, Settings(), 1),
        (7200, 1e6, Settings(whole=True), 1),
        (7200, 1e6, Settings(segment_seconds=3600), 2),
        (7200, 1000, Settings(segment_frames=1000), 1),
    ],
)
def test_what_is_longer_than_a_minute_or_1800_frames_is_cut(
    seconds: float, frames: float, settings: Settings, pieces: int
) -> None:
    assert num_pieces(seconds, frames, settings) == pieces


def test_a_cut_that_needs_what_is_not_known_is_told() -> None:
    with pytest.raises(MediaError, match="--segment-frames"):
        num_pieces(math.nan, 10, Settings(segment_seconds=1))
    with pytest.raises(MediaError, match="--segment-seconds"):
        num_pieces(10, math.nan, Settings(segment_frames=1))


def test_frames_are_in_exactly_one_piece_with_their_gaps() -> None:
    folder = FrameFolder("img_", 5, ".jpg", np.arange(1, 5001))
    whole = Request("frames", 0, "v", "v", (), "l", 1, 1, 5001, gaps=(3, 1667, 1668, 5000))
    pieces = list(frame_pieces(whole, folder, Settings()))
    assert [number for piece in pieces for number in range(piece.first, piece.stop)] == list(range(1, 5001))
    assert len(pieces) == 3
    assert [(piece.first, piece.gaps) for piece in pieces] == [(1, (3,)), (1667, (1667, 1668)), (3334, (5000,))]
    assert math.isnan(pieces[0].length_s)
    timed = list(frame_pieces(whole, folder, Settings(source_fps=25.0)))
    assert sum(piece.length_s for piece in timed) == pytest.approx(200)
    # Counted in stored frames: at a fifth of the rate five times as many fit a piece, and the minute decides.
    assert len(list(frame_pieces(whole, folder, Settings(source_fps=25.0, fps=5.0)))) == 4


def test_videos_are_cut_without_gap_or_overlap() -> None:
    whole = Request("video", 0, "v", "v", (), "l", 1)
    pieces = video_pieces(whole, VideoFacts(60.0, 100.0, 64, 48), Settings())
    assert len(pieces) == 4  # 6,000 frames
    assert (pieces[0].start_s, pieces[-1].stop_s) == (0, math.inf)
    assert [one.stop_s for one in pieces[:-1]] == [one.start_s for one in pieces[1:]]
    assert all(one.length_s == 25 and one.rate == 60 for one in pieces)
    assert len(video_pieces(whole, VideoFacts(60.0, 100.0, 64, 48), Settings(fps=15.0))) == 2
    unknown = VideoFacts(math.nan, math.nan, 64, 48)
    assert video_pieces(whole, unknown, Settings())[0].stop_s == math.inf
