"""A span that begins anywhere has the frames that decoding the whole file gives, in any container."""

from itertools import islice
from pathlib import Path

import av
import pytest

from mae3d.video.reader import open_video
from tests.support.media import make_video

FRAMES, GOP = 30, 8


def pixels(frame: av.VideoFrame) -> bytes:
    return frame.to_ndarray(format="gray").tobytes()


@pytest.mark.parametrize(
    "name",
    [
        *("mpeg4.ts", "mpeg2video.ts", "libx264.ts", "mpeg4.mpg", "mpeg1video.mpg", "mpeg4.nut", "mpeg4.avi"),
        *("wmv2.asf", "flv.flv", "h263.3gp", "libx264.mkv", "libvpx.ogv", "mpeg4.wtv", "msmpeg4v2.avi"),
    ],
)
def test_fault_12_a_span_that_begins_amid_a_group_has_the_frames_of_the_whole(tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / name, FRAMES, codec=name.partition(".")[0], fps=25, size=(128, 96), gop=GOP)
    with open_video(path) as video:
        whole = [(seconds, pixels(frame)) for seconds, frame in video.frames()]
    assert len(whole) == FRAMES
    for number in range(1, FRAMES, 3):
        with open_video(path) as video:
            start_s = whole[number][0]
            span = [pair for pair in islice(video.frames(start_s, start_s + 0.1), 4) if pair[0] >= start_s]
        expected = whole[number : number + len(span)]
        assert [pair[0] for pair in span] == pytest.approx([pair[0] for pair in expected])
        assert [pixels(frame) for _, frame in span] == [shown for _, shown in expected], number
