"""One planned sample ─► its JPEG frames: a row of the plan in, encoded frames to a sink and `Facts` out.

    with root.local(media_files(row, settings)) as files:
        facts = encode_sample(row, files, settings=settings, sink=writer.add)

Frames of one sample have one size: the first frame's, its short side scaled down to `short_side`, never up. Every
stored frame was decoded once, strictly: a frame that is damaged costs its sample (frame folders; see
`preprocess.stills`), or itself (videos; see `preprocess.videos`). Nothing larger than a frame is held in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from preprocess.folders import frame_name
from preprocess.plan import PlannedSample, Settings
from preprocess.problems import MediaError
from preprocess.stills import encode_jpeg, jpeg_header, natural_size, scaled_size, stored_frame
from preprocess.videos import Video, effective_fps, open_video

_RATE_SLACK = 1.001  # 30 is not faster than 29.97


@dataclass(frozen=True)
class Facts:
    """What became of a sample; `remark` is (reason, message) if it is kept, but not as it was."""

    num_frames: int
    first: int  # number of the first frame in the source
    stop: int  # one more than the number of the last
    fps: float  # of the stored frames; NaN = unknown
    start_s: float  # NaN = unknown
    width: int
    height: int
    remark: tuple[str, str] | None = None


def media_files(row: PlannedSample, settings: Settings) -> list[str]:
    """The files that a sample is made of, below its root: one, or those of the frames that are to be stored."""
    if row.kind != "frames":
        return [row.path]
    keep = kept_frames(row.stop - row.first, source_fps=settings.source_fps, fps=settings.fps)
    return [f"{row.path}/{frame_name(row.prefix, row.digits, row.suffix, row.first + number)}" for number in keep]


def encode_sample(
    row: PlannedSample, files: Sequence[Path], *, settings: Settings, sink: Callable[[bytes], None]
) -> Facts:
    """Reads one sample and hands its frames to `sink`, in time order.

    Args:
        row: what to read.
        files: paths on this machine of what `media_files` names.
        settings: sizes, rates and quality.
        sink: takes the bytes of one JPEG.

    Raises:
        MediaError: the sample cannot be had; what the sink was given is to be forgotten.
    """
    if row.kind in ("frames", "image"):
        return _encode_files(row, files, settings=settings, sink=sink)
    try:
        with open_video(files[0]) as video:
            return _encode_video(video, row, settings=settings, sink=sink)
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", str(error.strerror)) from error


def kept_frames(num_frames: int, *, source_fps: float | None, fps: float | None) -> list[int]:
    """Which of `num_frames` frames at `source_fps` remain at `fps`: all, unless the source is faster."""
    if not source_fps or not fps or source_fps <= fps * _RATE_SLACK:
        return list(range(num_frames))
    step = source_fps / fps
    return [round(k * step) for k in range(math.ceil(num_frames / step)) if round(k * step) < num_frames]


def _encode_files(
    row: PlannedSample, files: Sequence[Path], *, settings: Settings, sink: Callable[[bytes], None]
) -> Facts:
    keep = kept_frames(row.stop - row.first, source_fps=settings.source_fps, fps=settings.fps)
    size: tuple[int, int] | None = None
    num_other = 0
    for number, file in zip(keep, files, strict=True):
        try:
            data = _read(file, row.first + number)
            header = jpeg_header(data)
            if size is None:
                size = scaled_size(*natural_size(data, header), settings.short_side)
            stored, natural = stored_frame(data, header, size, settings.quality)
            num_other += scaled_size(*natural, settings.short_side) != size
            sink(stored)
        except ValueError as error:
            raise MediaError("bad_frame", f"{file.name}: {error}", frame=row.first + number) from error
    assert size is not None, "a planned sample has frames"
    source_fps = settings.source_fps or math.nan
    faster = len(keep) < row.stop - row.first
    fps = settings.fps if faster and settings.fps else source_fps
    remark = None
    if num_other:
        told = f"{num_other} of {len(keep)} frames are not of the first one's size; scaled to {size[0]}x{size[1]}"
        remark = ("mixed_sizes", told)
    return Facts(len(keep), row.first, row.first + keep[-1] + 1, fps, row.start_s, *size, remark)


def _read(file: Path, number: int) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise MediaError("missing_frame", f"{file.name} is missing", frame=number) from error
    except OSError as error:
        raise MediaError("unreadable", f"{file.name}: {error.strerror}", frame=number) from error


def _encode_video(video: Video, row: PlannedSample, *, settings: Settings, sink: Callable[[bytes], None]) -> Facts:
    declared = video.facts.fps
    resample = settings.fps is not None and not declared <= settings.fps * _RATE_SLACK
    start_s, stop_s = row.start_s, row.stop_s
    if resample:
        assert settings.fps is not None
        chosen = _on_grid(video, start_s, stop_s, settings.fps)
    else:
        chosen = (pair for pair in video.frames(start_s, stop_s) if pair[0] >= start_s or start_s <= 0)
    num_frames = 0
    first_s = last_s = math.nan
    size = (0, 0)
    for seconds, frame in chosen:
        if num_frames == 0:
            first_s = seconds
            size = scaled_size(*video.upright_size(frame), settings.short_side)
        last_s = seconds
        sink(encode_jpeg(video.picture(frame, width=size[0], height=size[1]), settings.quality))
        num_frames += 1
    damage = video.damage
    if num_frames == 0:
        if damage:
            raise MediaError("undecodable", str(damage))
        raise MediaError("no_frames", f"no frame between {start_s:g} s and {stop_s:g} s")
    if resample and settings.fps is not None:
        fps = settings.fps
    else:
        # Gaps would pass for a lower rate.
        fps = declared if damage and declared > 0 else effective_fps((first_s, last_s), num_frames, declared)
    rate = declared if declared > 0 else fps
    first, last = (0, num_frames - 1) if math.isnan(rate) else (round(first_s * rate), round(last_s * rate))
    remark = ("damaged", str(damage)) if damage else None
    return Facts(num_frames, max(first, 0), max(last, 0) + 1, fps, max(first_s, 0.0), *size, remark)


def _on_grid(video: Video, start_s: float, stop_s: float, fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """For each k with start_s <= k/fps < stop_s the frame nearest in time, up to the end of the video."""
    k = max(0, math.ceil(start_s * fps - 1e-6))
    previous: tuple[float, av.VideoFrame] | None = None
    for pair in video.frames(start_s, stop_s + 1 / fps):
        while previous is not None and k / fps < stop_s and k / fps <= (previous[0] + pair[0]) / 2:
            yield max(k / fps, 0.0), previous[1]
            k += 1
        previous = pair
    # The last frame is shown for as long as the others.
    shown_s = 1 / video.facts.fps if video.facts.fps > 0 else 1 / fps
    while previous is not None and k / fps < min(stop_s, previous[0] + shown_s - 1e-6):
        yield k / fps, previous[1]
        k += 1
