"""One reader: preprocessing and inference see the same frames of a file at the same times, whatever the container."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

from mae3d.model.config import EncoderConfig
from mae3d.video.clip import centred, clip_frames, frame_duration, read_clip
from mae3d.video.reader import open_video
from mae3d.video.windows import VideoClips, plan_windows
from tests.support.media import frame_number, make_video, rotate_mp4
from tests.support.odd_media import announce_hours, make_resolution_switch, numbers, store

SIZE, COUNT = 64, 24
CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=SIZE, num_frames=8, depth=1)


class Shown(NamedTuple):
    """One frame as a side sees it."""

    seconds: float
    picture: np.ndarray  # (H, W, 3) uint8


def preprocess_frames(path: Path) -> list[Shown]:
    """Return the frames that preprocessing stores, before they become JPEGs."""
    with open_video(path) as video:
        frames = [
            Shown(max(t, 0.0), centred(frame, SIZE, video.orientation(frame), VideoReformatter()))
            for t, frame in video.frames()
        ]
    assert len(frames) == len(store(path)[1])
    return frames


def inference_frames(path: Path, every_s: float) -> tuple[list[Shown], int]:
    """Return the frames that windows show, read one after the other, and how many stand in for damaged ones."""
    plan = plan_windows([str(path)], num_frames=1, step_s=every_s, every_s=every_s)
    clips = VideoClips(plan.windows, size=SIZE, batch_size=16)
    batches = list(clips)
    clips.close()
    assert not plan.unreadable
    assert not np.concatenate([batch.status for batch in batches]).any()
    replaced = np.concatenate([batch.replaced for batch in batches])
    pictures = np.concatenate([batch.clips[:, 0, 0] for batch in batches])
    shown: dict[int, Shown] = {}
    for window, picture, is_replaced in zip(plan.windows, pictures, replaced, strict=True):
        if not is_replaced:
            assert window.first_frame is not None
            assert window.start_s is not None
            shown[window.first_frame] = Shown(window.start_s, picture)
    return [shown[number] for number in sorted(shown)], int(replaced.sum())


def first_difference(path: Path) -> str:
    """Return where the two sides differ; "" if nowhere."""
    expected = preprocess_frames(path)
    seconds = [frame.seconds for frame in expected]
    gap_s = min(np.diff(seconds), default=0.04)
    shown, _ = inference_frames(path, gap_s / 2)
    for number, (one, other) in enumerate(zip(expected, shown, strict=False)):
        if not math.isclose(one.seconds, other.seconds, abs_tol=1e-9):
            return f"frame {number}: at {one.seconds} s in preprocessing, at {other.seconds} s in windows"
        if not np.array_equal(one.picture, other.picture):
            return f"frame {number}: another picture in windows"
    if len(expected) != len(shown):
        return f"{len(expected)} frames in preprocessing, {len(shown)} in windows"
    step_s = frame_duration(seconds, 0.04)
    clip = read_clip(path, CONFIG, sampling_rate=step_s, target_fps=1).numpy()[0]
    chosen = clip_frames(seconds, num_frames=CONFIG.num_frames, step_s=step_s)
    if not np.array_equal(clip, [expected[number].picture for number in chosen]):
        return "another clip in read_clip"
    return ""


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "mpg", "nut"])
def test_containers_that_hold_most_codecs(tmp_path: Path, codec: str, suffix: str) -> None:
    check_numbered(make_video(tmp_path / f"a.{suffix}", COUNT, codec=codec, fps=25, size=(SIZE, SIZE)))


@pytest.mark.parametrize(
    "name",
    [
        *("libvpx-vp9.webm", "libvpx.webm", "libvpx.ogv", "libvpx.ivf", "libx264.flv", "flv.flv", "libx264.3gp"),
        *("libx264.avi", "mpeg4.avi", "mjpeg.avi", "ffv1.avi", "wmv2.wmv", "libx264.wmv", "libx264.asf"),
        *("mpeg2video.mxf", "libx264.mxf", "libx264.m4v", "libx264.wtv", "libx264.m2ts", "libx264.vob"),
        *("libx264.h264", "libx265.h265", "mpeg1video.m1v", "mpeg2video.m2v", "mjpeg.mjpeg", "rawvideo.y4m"),
        *("gif.gif", "apng.apng", "prores.mov", "ffv1.mkv", "libx265.mp4"),
    ],
)
def test_containers_of_some_codecs(tmp_path: Path, name: str) -> None:
    codec = name.partition(".")[0]
    pixel_format = {"gif": "rgb8", "mjpeg": "yuvj420p", "prores": "yuv422p10le", "apng": "rgb24"}.get(codec, "yuv420p")
    path = tmp_path / name
    check_numbered(make_video(path, COUNT, codec=codec, fps=25, size=(SIZE, SIZE), pixel_format=pixel_format))


def check_numbered(path: Path) -> None:
    assert first_difference(path) == ""
    shown, num_replaced = inference_frames(path, 0.02)
    seen = [frame_number(Image.fromarray(frame.picture)) for frame in shown]
    assert (numbers(store(path)[1]), seen, num_replaced) == (list(range(COUNT)), list(range(COUNT)), 0)


def write_late(path: Path) -> None:
    make_video(path, 6, size=(SIZE, SIZE), times=[0.5, 0.6, 0.7, 1.7, 1.8, 2.5])


def write_hours(path: Path) -> None:
    announce_hours(make_video(path, 30, size=(SIZE, SIZE)), 3.0)


def write_mirrored(path: Path) -> None:
    make_video(path, 12, size=(SIZE, 48))
    rotate_mp4(path, (-1, 0, 0, 1))


def write_transposed(path: Path) -> None:
    make_video(path, 12, size=(SIZE, 48))
    rotate_mp4(path, (0, 1, 1, 0))


def write_cut_short(path: Path) -> None:
    make_video(path, 60, codec="libx264", gop=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_without_its_start(path: Path) -> None:
    """Write a recording that begins amid a group of pictures."""
    make_video(path, 60, codec="libx264", gop=20)
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 // 5 * 188 :])


def write_one_frame(path: Path) -> None:
    make_video(path, 1)


def write_restarting_clock(path: Path) -> None:
    make_resolution_switch(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("late.mp4", write_late),
        ("variable.mkv", write_late),
        ("hours.mkv", write_hours),
        ("mirrored.mp4", write_mirrored),
        ("transposed.mp4", write_transposed),
        ("cut_short.mkv", write_cut_short),
        ("cut_short.ts", write_cut_short),
        ("without_its_start.ts", write_without_its_start),
        ("one_frame.mp4", write_one_frame),
        ("one_frame.gif", lambda path: make_video(path, 1, codec="gif", pixel_format="rgb8")),
        ("restarting_clock.ts", write_restarting_clock),
    ],
)
def test_odd_files(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    assert first_difference(tmp_path / name) == ""


@pytest.mark.slow
def test_odd_real_files(media: Path) -> None:
    """Edit lists, ten bits, variable rates, rotations, damage."""
    odd = sorted((media / "videos" / "odd").iterdir())
    assert {path.name: difference for path in odd if (difference := first_difference(path))} == {}
