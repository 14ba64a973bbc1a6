"""Long sources are cut into even pieces: hours of footage become samples of bounded size.

    for piece in video_pieces(request, facts, settings): ...
    for piece in frame_pieces(request, folder, settings): ...

Without a setting, what is longer than a minute or than 1,800 stored frames is cut into even pieces of at most that;
`segment_seconds` or `segment_frames` say otherwise, `whole` cuts nothing. No piece is much shorter than the others.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.sources.frame_names import FrameFolder

LONG_SECONDS, LONG_FRAMES = 60.0, 1800


def even_pieces(length: float, longest: float) -> int:
    """Return the number of equal pieces of `length`, none longer than `longest`: no short piece at the end."""
    return max(1, math.ceil(length / longest - 1e-9))


def num_pieces(seconds: float, frames: float, settings: Settings) -> int:
    """Return the number of pieces of a source.

    Args:
        seconds: its length; NaN = unknown.
        frames: how many would be stored of it; NaN = unknown.
        settings: the cut.

    Raises:
        MediaError: the cut needs what is unknown.
    """
    if settings.whole:
        return 1
    if settings.segment_seconds:
        if math.isnan(seconds):
            raise MediaError("no_duration", "how long it is is not known: cut it with --segment-frames, or --whole")
        return even_pieces(seconds, settings.segment_seconds)
    if settings.segment_frames:
        if math.isnan(frames):
            raise MediaError("no_rate", "no frame rate announced: cut it with --segment-seconds, or --whole")
        return even_pieces(frames, settings.segment_frames)
    by_time = even_pieces(seconds, LONG_SECONDS) if seconds > 0 else 1
    by_count = even_pieces(frames, LONG_FRAMES) if frames > 0 else 1
    return max(by_time, by_count)


def frame_pieces(whole: Request, folder: FrameFolder, settings: Settings) -> Iterator[Request]:
    """Cut a row of frames into pieces, counted in stored frames."""
    count = len(range(whole.first, whole.stop, folder.stride))
    clock = settings.source_fps or math.nan  # of the numbers
    rate = clock / folder.stride
    pieces = min(count, num_pieces(count / rate, count / thinning(rate, settings), settings))
    cuts = [whole.first + folder.stride * (count * piece // pieces) for piece in range(pieces)] + [whole.stop]
    for begin, end in pairwise(cuts):
        yield replace(
            whole,
            first=begin,
            stop=end,
            start_s=(begin - int(folder.numbers[0])) / clock,
            stop_s=math.nan,
            prefix=folder.prefix,
            digits=folder.digits,
            suffix=folder.suffix,
            gaps=tuple(number for number in whole.gaps if begin <= number < end),
            length_s=len(range(begin, end, folder.stride)) / rate,
            rate=rate,
            stride=folder.stride,
        )


def video_pieces(whole: Request, facts: VideoFacts, settings: Settings) -> list[Request]:
    """Cut a video, or its requested span, into pieces.

    Raises:
        MediaError: the span lies behind the end, or the cut needs a length that the file does not announce.
    """
    begin, end = whole.start_s, min(whole.stop_s, facts.duration_s)  # NaN if the duration is not known
    if begin >= facts.duration_s:
        raise MediaError("no_frames", f"it is {facts.duration_s:.2f} s long, {begin:g} s on were requested")
    if math.isnan(facts.duration_s):
        end = whole.stop_s if math.isfinite(whole.stop_s) else math.nan
    seconds = end - begin
    pieces = num_pieces(seconds, seconds * facts.fps / thinning(facts.fps, settings), settings)
    # Half a frame early: a frame that lies on a cut must not depend on rounding.
    early = 0.5 / facts.fps if facts.fps > 0 else 0.0
    inner = [begin + seconds * piece / pieces - early for piece in range(1, pieces)]
    cuts = pairwise([begin, *inner, whole.stop_s])
    return [
        replace(whole, start_s=start, stop_s=stop, length_s=seconds / pieces, rate=facts.fps) for start, stop in cuts
    ]


def thinning(rate: float, settings: Settings) -> float:
    """Return the source frames per stored frame; 1 if the rate is not known."""
    return max(1.0, rate / settings.fps) if settings.fps and rate > 0 else 1.0
