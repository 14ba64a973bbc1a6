"""A small archive of videos of all kinds: codecs, containers, orientations, clocks, lies.

archive = write_archive(tmp_path)      # tmp_path / "archive", in folders that are labels
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.support.media import make_video, rotate_mp4
from tests.support.odd_media import announce_hours, make_resolution_switch, make_tagged
from tests.support.streams import discard_frames, make_coded, without_sync_samples


def widen(stream: Any, frame: Any) -> None:
    if frame is None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)


def write_archive(folder: Path) -> Path:
    """Videos of all kinds that a build takes, in folders that are their labels."""
    root = folder / "archive"
    for place in ("dog", "cat", "odd"):
        (root / place).mkdir(parents=True)
    make_coded(root / "dog" / "b-frames.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12"}, count=50)
    make_coded(root / "dog" / "cut-up.ts", "libx264", count=30)
    make_coded(root / "cat" / "late.mkv", "mpeg4", {"bf": "2"}, count=30, start=31, size=(48, 80))
    make_coded(root / "cat" / "no-order.avi", "libx264", count=30)
    make_coded(root / "cat" / "vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, count=26)
    rotate_mp4(make_video(root / "odd" / "rotated.mp4", 24, fps=12), (0, 1, -1, 0))
    rotate_mp4(make_video(root / "odd" / "mirrored.mp4", 24, fps=12), (-1, 0, 0, 1))
    make_tagged(root / "odd" / "wide.mkv", 20, widen)
    make_video(root / "odd" / "uneven.mkv", 7, times=[0.5, 0.6, 0.7, 1.7, 1.8, 2.5, 2.51])
    discard_frames(make_coded(root / "odd" / "discarded.mp4", "libx264", count=40), 5)
    without_sync_samples(make_coded(root / "odd" / "no-keys.mp4", "mpeg4", count=30))
    announce_hours(make_video(root / "odd" / "hours.mkv", 20), 2.0)
    make_resolution_switch(root / "odd" / "switch.ts")
    make_video(root / "odd" / "one.mp4", 1)
    make_video(root / "odd" / "moving.gif", 12, codec="gif", pixel_format="rgb8")
    make_video(root / "odd" / "program.mpg", 20, codec="mpeg2video", fps=25)
    return root
