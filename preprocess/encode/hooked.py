"""Frames of a source of the user's are stored: arrays and encoded pictures in, parts of the store and `Facts` out.

    facts = encode_hooked(row, settings=settings, store=frame_store(settings, sink), progress=progress)

It runs in the decoder process of a worker: an error in the user's code costs its sample, a module that is not there
stops the build.
"""

import errno
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import av
import numpy as np

from mae3d.io.hooks import Hook, HookError, load
from mae3d.video.errors import MediaError
from preprocess.encode.frame_store import FrameStore, Size
from preprocess.encode.images import announced_size, jpeg_header, natural_size, scaled_size
from preprocess.encode.video_properties import mixed_sizes
from preprocess.plan.plan import Facts, PlannedSample
from preprocess.plan.settings import Settings

_RATE_SLACK = 1.001  # 30 is not faster than 29.97


def encode_hooked(
    row: PlannedSample, *, settings: Settings, store: FrameStore, progress: Callable[[str], None]
) -> Facts:
    """Read the frames of a sample by its name, and store those that its rate needs.

    Raises:
        MediaError: the source fails over this sample, or gives something that is no frame.
        OSError: the source cannot be loaded here.
    """
    try:
        hook = load(row.prefix, "sources")
    except (ValueError, HookError) as error:
        raise OSError(errno.ENOPKG, str(error), row.prefix) from error
    size: Size | None = None
    count = last = num_other = 0
    for number, frame in _thinned(_frames(hook, row), row, settings):
        progress(f"{row.name}, frame {number}")
        try:
            natural, size = _store(frame, size, settings=settings, store=store)
        except ValueError as error:
            raise MediaError("bad_frame", f"frame {number}: {error}", frame=number) from error
        num_other += scaled_size(*natural, settings.short_side) != size
        count, last = count + 1, number
    if size is None:
        raise MediaError("no_frames", f"{row.prefix} gave no frame")
    store.finish()
    fps = settings.fps if settings.fps is not None and _is_faster(row.rate, settings) else row.rate
    start_s = math.nan if math.isnan(fps) else 0.0
    return Facts(count, 0, last + 1, fps, start_s, *size, mixed_sizes(num_other, count, size))


def _frames(hook: Hook, row: PlannedSample) -> Iterator[Any]:
    """Yield the sample's frames; MediaError for an error in the user's code."""
    try:
        frames = hook.guarded(lambda: iter(hook.target.frames(row.path)))
        end = object()
        while (frame := hook.guarded(next, frames, end)) is not end:
            yield frame
    except HookError as error:
        raise MediaError("unreadable", str(error)) from error


def _is_faster(rate: float, settings: Settings) -> bool:
    return settings.fps is not None and rate > settings.fps * _RATE_SLACK


def _thinned(frames: Iterator[Any], row: PlannedSample, settings: Settings) -> Iterator[tuple[int, Any]]:
    """Yield the frames that remain at the rate of the dataset, with their numbers."""
    step = row.rate / settings.fps if settings.fps and _is_faster(row.rate, settings) else 1.0
    kept = 0
    for number, frame in enumerate(islice(frames, row.stop or None)):
        if number == round(kept * step):
            kept += 1
            yield number, frame


def _store(frame: Any, size: Size | None, *, settings: Settings, store: FrameStore) -> tuple[Size, Size]:
    """Store a frame; return the size that it had, and that of all frames of the sample.

    Raises:
        ValueError: it is neither uint8 (H, W, 3) or (H, W), nor a picture file.
        MediaError: it is too large.
    """
    if isinstance(frame, bytes):
        header = jpeg_header(frame)
        _limit(announced_size(frame, header), settings)
        size = size or scaled_size(*natural_size(frame, header), settings.short_side)
        return store.add_picture(frame, header, size), size
    pixels = np.asarray(frame)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"{type(frame).__name__} of {pixels.dtype} {pixels.shape}: give uint8 (H, W, 3) or (H, W), or the bytes of "
            "a picture file"
        )
    natural = pixels.shape[1], pixels.shape[0]
    _limit(natural, settings)
    size = size or scaled_size(*natural, settings.short_side)
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    store.add_frame(av.VideoFrame.from_ndarray(np.ascontiguousarray(colour), format="rgb24"), size)
    return natural, size


def _limit(size: Size, settings: Settings) -> None:
    """Refuse a frame of no pixels, or of too many."""
    width, height = size
    if not 0 < width * height <= settings.max_pixels:
        message = f"{width}x{height} pixels, --max-pixels {settings.max_pixels} are allowed"
        raise MediaError("too_large" if width * height else "bad_frame", message)
