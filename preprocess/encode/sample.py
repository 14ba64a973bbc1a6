"""A planned sample becomes stored frames: a row of the plan in, JPEGs or groups of H.264 to a sink and `Facts` out.

    with root.local(media_files(row, settings)) as files:
        facts = encode_sample(row, files, settings=settings, sink=writer.add)

Frames of one sample have one size: the first frame's, its short side scaled down to `short_side`, never up. Every
stored frame was decoded once, strictly: a frame that is damaged costs its sample (frame folders; see
`preprocess.encode.images`), or itself (videos; see `mae3d.video.reader`). Nothing larger than a frame is held in
memory.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av

from mae3d.video.errors import MediaError, raise_unless_of_the_file
from mae3d.video.reader import Video, effective_fps, open_video
from mae3d.video.stacks import open_stack
from preprocess.encode.frame_store import FrameStore, frame_store
from preprocess.encode.hooked import encode_hooked
from preprocess.encode.images import GREY_MODES, announced_size, jpeg_header, natural_size, picture_header, scaled_size
from preprocess.encode.pixels import deep_picture
from preprocess.encode.video_frames import kind_of_video
from preprocess.encode.video_properties import Looks, mixed_sizes
from preprocess.plan.samples import HOOK, RATE_SLACK, Facts, Kind, PlannedSample, kept_numbers
from preprocess.plan.settings import Settings

T = TypeVar("T")

_BYTES_A_PIXEL = 8  # of an image file at most: four channels of 16 bits that did not compress


def encode_sample(
    row: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    sink: Callable[[bytes], None],
    opened: Callable[..., AbstractContextManager[Video]] = open_video,
    progress: Callable[[str], None] = lambda position: None,
) -> Facts:
    """Read one sample and hand its frames to `sink`, in time order.

    Args:
        row: what to read.
        files: paths on this machine of what `media_files` names.
        settings: sizes, rates, quality and limits.
        sink: takes the bytes of one part: a JPEG, or a group of H.264.
        opened: opens videos, as `open_video` does.
        progress: called with the position, often.

    Raises:
        MediaError: the sample cannot be had; what the sink was given is to be forgotten.
        OSError: the disk of the source has gone.
    """
    if row.kind == HOOK:
        return encode_hooked(row, settings=settings, sink=sink, progress=progress)
    store = frame_store(settings, sink)
    if row.kind in ("frames", "image"):
        return _encode_files(row, files, settings=settings, store=store, progress=progress)
    if row.kind == "stack":
        return _encode_stack(row, files, settings=settings, store=store, progress=progress)
    try:
        with opened(files[0], max_pixels=settings.max_pixels, progress=progress) as video:
            return _encode_video(video, row, settings=settings, store=store)
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", str(error.strerror)) from error


def pixel_kind(file: Path, kind: Kind, settings: Settings) -> tuple[int, int]:
    """Return channels and bits of the frames of a sample's first file; 0 bits need a window.

    Raises:
        MediaError: it cannot be opened.
    """
    if kind == "stack":
        with open_stack(file, max_pixels=settings.max_pixels) as stack:
            return stack.facts.channels, stack.facts.bits
    if kind == "video":
        with open_video(file, max_pixels=settings.max_pixels) as video:
            first = next(video.frames(), None)
            if first is None:
                raise MediaError("no_frames", "no frame in it")
            return kind_of_video(first[1].format)
    try:
        data = _read(file, -1, limit=_BYTES_A_PIXEL * settings.max_pixels)
        header = jpeg_header(data)
        if not header and (deep := deep_picture(data, channels=settings.channels)):
            return deep.channels, deep.bits
        picture = picture_header(data)
    except ValueError as error:
        raise MediaError("bad_frame", f"{file.name}: {error}") from error
    if picture is None:
        raise MediaError("bad_frame", f"{file.name}: not an image")
    return 1 if picture.mode in GREY_MODES else 3, 8


def _encode_files(
    row: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    store: FrameStore,
    progress: Callable[[str], None],
) -> Facts:
    keep = kept_numbers(row, settings)
    size: tuple[int, int] | None = None
    num_other = 0
    for number, file in zip(keep, files, strict=True):
        progress(file.name)
        try:
            data = _read(file, number, limit=_BYTES_A_PIXEL * settings.max_pixels)
            header = jpeg_header(data)
            deep = store.deep(data, header)
            width, height = (deep.width, deep.height) if deep else announced_size(data, header)
            if width * height > settings.max_pixels:
                message = f"{file.name}: {width}x{height} pixels, --max-pixels {settings.max_pixels} are allowed"
                raise MediaError("too_large", message, frame=number)
            if size is None:
                natural = (width, height) if deep else natural_size(data, header)
                size = scaled_size(*natural, settings.short_side)
            if deep:
                store.add_deep(deep, size)
                natural = deep.width, deep.height
            else:
                natural = store.add_picture(data, header, size)
            num_other += scaled_size(*natural, settings.short_side) != size
        except ValueError as error:
            raise MediaError("bad_frame", f"{file.name}: {error}", frame=number) from error
    store.finish()
    assert size is not None, "a planned sample has frames"
    source_fps = (settings.source_fps or math.nan) / row.stride
    faster = len(keep) < len(row.numbers)
    fps = settings.fps if faster and settings.fps else source_fps
    remark = joined_remarks([mixed_sizes(num_other, len(keep), size), _filled(row, keep)])
    return Facts(len(keep), row.first, keep[-1] + 1, fps, row.start_s, *size, remark)


def _encode_stack(
    row: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    store: FrameStore,
    progress: Callable[[str], None],
) -> Facts:
    """Read the frames of one file of many, or of many files of one each."""
    keep = kept_numbers(row, settings)
    size: tuple[int, int] | None = None
    num_other = 0
    burned_in = False
    for file, numbers in zip(files, [[0]] * len(keep) if row.files else [keep], strict=True):
        with open_stack(file, max_pixels=settings.max_pixels) as stack:
            burned_in |= stack.facts.has_burned_in
            window = settings.window if stack.facts.bits != 8 else None
            frames = stack.frames(numbers, window=window, bits=settings.stored_bits)
            for number, pixels in zip(numbers, frames, strict=True):
                progress(f"{file.name}, frame {number}")
                natural = scaled_size(pixels.shape[1], pixels.shape[0], settings.short_side)
                size = size or natural
                num_other += natural != size
                try:
                    store.add_pixels(pixels, size)
                except ValueError as error:
                    raise MediaError("other_pixels", str(error), frame=number) from error
    store.finish()
    assert size is not None, "a planned sample has frames"
    fps = settings.fps if settings.fps and len(keep) < len(row.numbers) else row.rate
    texts = ("burned_in", "it announces texts in its pixels, which are stored as they are") if burned_in else None
    remark = joined_remarks([mixed_sizes(num_other, len(keep), size), texts])
    return Facts(len(keep), row.first, keep[-1] + 1, fps, row.start_s, *size, remark)


def _filled(row: PlannedSample, keep: Sequence[int]) -> tuple[str, str] | None:
    filled = sum(number in row.gaps for number in keep)
    return ("filled_gaps", f"{filled} missing frames are the ones before them") if filled else None


def _read(file: Path, number: int, *, limit: int) -> bytes:
    try:
        with file.open("rb", buffering=0) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):  # a device has no end
                raise MediaError("unreadable", f"{file.name}: not a file", frame=number)
            data = opened.read() if status.st_size <= limit else b""
    except FileNotFoundError as error:
        raise MediaError("missing_frame", f"{file.name} is missing", frame=number) from error
    except OSError as error:
        raise_unless_of_the_file(error, file)
        raise MediaError("unreadable", f"{file.name}: {error.strerror}", frame=number) from error
    if status.st_size > limit:
        raise MediaError("too_large", f"{file.name}: more than {limit / 1e6:.0f} MB", frame=number)
    return data


def _encode_video(video: Video, row: PlannedSample, *, settings: Settings, store: FrameStore) -> Facts:
    declared = video.facts.fps
    looks = Looks(pixel_aspect=video.pixel_aspect)
    first_s = last_s = math.nan
    size = (0, 0)
    for seconds, frame in chosen_frames(video.frames(row.start_s, row.stop_s), row, settings, declared=declared):
        if looks.num_frames == 0:
            first_s = seconds
            size = scaled_size(*video.upright_size(frame), settings.short_side)
        last_s = seconds
        store.add_frame(frame, size)
        looks.add(frame, same_size=scaled_size(*video.upright_size(frame), settings.short_side) == size)
    store.finish()
    damage = video.damage
    if looks.num_frames == 0 and damage:
        raise MediaError("undecodable", str(damage))
    remark = joined_remarks([("damaged", str(damage)) if damage else None, *looks.remarks(size)])
    clock = Clocked(looks.num_frames, first_s, last_s, declared, has_gaps=bool(damage))
    return video_facts(clock, row, settings, size=size, remark=remark)


def chosen_frames(
    frames: Iterator[tuple[float, T]], row: PlannedSample, settings: Settings, *, declared: float
) -> Iterator[tuple[float, T]]:
    """Yield the frames of a video that are stored, with the times that they get.

    Args:
        frames: the frames of the sample's span, the last one before it and the first one after, by their times.
        row: the sample.
        settings: the rate.
        declared: the rate that the video announces; NaN = none.
    """
    start_s, stop_s = row.start_s, row.stop_s
    if is_resampled(settings, declared=declared):
        assert settings.fps is not None
        return _on_grid(frames, start_s, stop_s, settings.fps, shown_s=1 / (declared if declared > 0 else settings.fps))
    return (pair for pair in frames if start_s <= max(pair[0], 0.0) and pair[0] < stop_s)


def is_resampled(settings: Settings, *, declared: float) -> bool:
    """Return whether frames are chosen on a grid of time: unless the video is known not to be faster."""
    return settings.fps is not None and not declared <= settings.fps * RATE_SLACK


@dataclass(frozen=True)
class Clocked:
    """When the stored frames of a video are shown."""

    num_frames: int
    first_s: float
    last_s: float
    declared: float  # frames per second that the video announces; NaN = none
    has_gaps: bool = False  # frames are missing between them: gaps would pass for a lower rate


def video_facts(
    clock: Clocked, row: PlannedSample, settings: Settings, *, size: tuple[int, int], remark: tuple[str, str] | None
) -> Facts:
    """Return the properties of a stored sample of a video; raise MediaError if it has no frame."""
    start_s, stop_s, declared = row.start_s, row.stop_s, clock.declared
    if clock.num_frames == 0:
        span = f"between {start_s:g} s and {stop_s:g} s" if math.isfinite(stop_s) or start_s > 0 else "in it"
        raise MediaError("no_frames", f"no frame {span}")
    first_s, last_s = clock.first_s, clock.last_s
    if is_resampled(settings, declared=declared) and settings.fps is not None:
        fps = settings.fps
    else:
        has_rate = clock.has_gaps and declared > 0
        fps = declared if has_rate else effective_fps((first_s, last_s), clock.num_frames, declared)
    rate = declared if declared > 0 else fps
    first, last = (0, clock.num_frames - 1) if math.isnan(rate) else (round(first_s * rate), round(last_s * rate))
    return Facts(clock.num_frames, max(first, 0), max(last, 0) + 1, fps, max(first_s, 0.0), *size, remark)


def joined_remarks(remarks: Sequence[tuple[str, str] | None]) -> tuple[str, str] | None:
    """Join remarks: `damaged+hdr`."""
    kept = [remark for remark in remarks if remark]
    return ("+".join(reason for reason, _ in kept), "; ".join(message for _, message in kept)) if kept else None


def _on_grid(
    frames: Iterator[tuple[float, T]], start_s: float, stop_s: float, fps: float, *, shown_s: float
) -> Iterator[tuple[float, T]]:
    """Yield for each k with start_s <= k/fps < stop_s the frame nearest in time, up to the end of the video.

    The last frame is shown for `shown_s` seconds, as long as the others.
    """
    k = max(0, math.ceil(start_s * fps - 1e-6))
    previous: tuple[float, T] | None = None
    for pair in frames:
        while previous is not None and k / fps < stop_s and k / fps <= (previous[0] + pair[0]) / 2:
            yield max(k / fps, 0.0), previous[1]
            k += 1
        previous = pair
    while previous is not None and k / fps < min(stop_s, previous[0] + shown_s - 1e-6):
        yield k / fps, previous[1]
        k += 1
