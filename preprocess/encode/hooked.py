"""Frames of a source of the user's are stored: arrays and encoded pictures in, parts to a sink and `Facts` out.

    facts = encode_hooked(row, settings=settings, sink=tar.add, progress=progress)

It runs in the decoder process of a worker: an error in the user's code costs its sample, a module that is not there
stops the build.
"""

import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from mae3d.io.hooks import Hook, HookError, load
from mae3d.video.errors import MediaError
from preprocess.encode.given_frames import encode_given
from preprocess.plan.samples import RATE_SLACK, Facts, PlannedSample
from preprocess.plan.settings import Settings


def encode_hooked(
    row: PlannedSample, *, settings: Settings, sink: Callable[[bytes], None], progress: Callable[[str], None]
) -> Facts:
    """Read the frames of a sample by its name, and hand those that its rate needs to `sink`.

    Raises:
        MediaError: the source fails over this sample, or gives something that is no frame.
        OSError: the source cannot be loaded here.
    """
    try:
        hook = load(row.prefix, "sources")
    except (ValueError, HookError) as error:
        raise OSError(errno.ENOPKG, str(error), row.prefix) from error
    numbers: list[int] = []

    def kept() -> Iterator[Any]:
        for number, frame in _thinned(_frames(hook, row), row, settings):
            progress(f"{row.name}, frame {number}")
            numbers.append(number)
            yield frame

    fps = settings.fps if settings.fps is not None and _is_faster(row.rate, settings) else row.rate
    start_s = math.nan if math.isnan(fps) else 0.0
    try:
        facts = encode_given(kept(), settings=settings, sink=sink, fps=fps, start_s=start_s)
    except ValueError as error:
        raise MediaError("bad_frame", f"frame {numbers[-1]}: {error}", frame=numbers[-1]) from error
    return replace(facts, stop=numbers[-1] + 1)


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
    return settings.fps is not None and rate > settings.fps * RATE_SLACK


def _thinned(frames: Iterator[Any], row: PlannedSample, settings: Settings) -> Iterator[tuple[int, Any]]:
    """Yield the frames that remain at the rate of the dataset, with their numbers."""
    step = row.rate / settings.fps if settings.fps and _is_faster(row.rate, settings) else 1.0
    kept = 0
    for number, frame in enumerate(islice(frames, row.stop or None)):
        if number == round(kept * step):
            kept += 1
            yield number, frame
