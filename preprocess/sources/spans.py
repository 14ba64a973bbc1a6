"""The spans in lists are compared with their videos: frames ─► seconds, and what can be read in two ways.

facts = {(0, "a.mp4"): VideoFacts(...)}         # of candidates by root and path
check_units(candidates, facts)                  # raises if `start` and `end` look like frames
settled(candidate, facts[0, "a.mp4"])           # Request with a span in seconds
notes = span_notes(candidates, facts)           # what the spans and the videos disagree on
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from preprocess.plan.samples import Request
from preprocess.sources.columns import MAX_FRAME
from preprocess.sources.list_records import LedgerError
from preprocess.sources.probing import Probed
from preprocess.sources.video_listing import VideoCandidate

_ROUNDING_S = 1.0  # by which published spans miss the ends of their videos

Facts = Mapping[tuple[int, str], Probed]


def settled(one: VideoCandidate, known: VideoFacts, *, source_fps: float | None = None) -> Request:
    """Return the request with its span in seconds; without, if the file is shorter: then it is the span, already cut.

    Args:
        one: the request.
        known: what the video announces.
        source_fps: the rate of the frame numbers in lists; None = that of the video.

    Raises:
        MediaError: the span is in frames, and the video announces no rate.
    """
    if one.frames:
        rate = source_fps or known.fps
        if not rate > 0:
            raise MediaError("no_rate", "its span is in frames and it announces no frame rate: give --source-fps")
        start_s, stop_s = span_of(one.frames, rate)
        return replace(one.request, start_s=start_s, stop_s=stop_s)
    duration_s, span_s = known.duration_s, one.request.stop_s - one.request.start_s
    if one.loose and math.isfinite(one.request.stop_s):
        cut_out = not duration_s >= one.request.stop_s - _ROUNDING_S or duration_s <= span_s + _ROUNDING_S
        if cut_out:
            return replace(one.request, start_s=0.0, stop_s=math.inf)
    return one.request


def span_of(frames: tuple[int, int], fps: float) -> tuple[float, float]:
    """Return a half-open span of frames in seconds.

    It is half a frame early, as pieces are cut: the time of a frame must not depend on rounding.
    """
    start_s, stop_s = ((number - 0.5) / fps for number in frames)
    return max(0.0, start_s), math.inf if frames[1] == MAX_FRAME else stop_s


def check_units(candidates: Sequence[VideoCandidate], facts: Facts) -> None:
    """Raise LedgerError if whole numbers without a unit lie beyond the ends of most videos: they may be frames."""
    open_units = [(one, known) for one, known in _known(candidates, facts) if one.without_unit]
    beyond = [(one, known) for one, known in open_units if _is_beyond(one, known)]
    if 2 * len(beyond) <= len(open_units):
        return
    one, known = beyond[0]
    names, request = one.without_unit, one.request
    frames, seconds = (
        " ".join(f"{role}={name}" for role, name in zip(roles, names, strict=False))
        for roles in (("start_frame", "end_frame"), ("start", "end"))
    )
    raise LedgerError(
        f"{request.file}: in {len(beyond)} of {len(open_units)} rows the span ends after the video (line "
        f"{request.line}: {request.start_s:g} to {request.stop_s:g}, and {request.name} has {known.duration_s:.1f} s): "
        f"{' and '.join(names)} may count frames, as --columns {frames} says, or seconds, as --columns {seconds} says"
    )


def check_rates(candidates: Sequence[VideoCandidate], facts: Facts) -> None:
    """Raise LedgerError if labels of all frames of a video end before its middle, or at twice its length, in most.

    Then the numbers of the frames count another rate than the video's: that of a copy that was thinned out.
    """
    lists: dict[str, tuple[Request, int, VideoFacts]] = {}
    for one, known in _known(candidates, facts):
        if one.labels_all and one.frames and known.fps > 0 and known.duration_s > 0:
            last = max(one.frames[1], lists[one.request.file][1] if one.request.file in lists else 0)
            lists[one.request.file] = one.request, last, known
    apart = [
        (request, last, known)
        for request, last, known in lists.values()
        if not 0.5 <= last / known.fps / known.duration_s <= 2
    ]
    if 2 * len(apart) <= len(lists):
        return
    request, last, known = apart[0]
    raise LedgerError(
        f"{request.file}: its last label is that of frame {last - 1}, which is at {last / known.fps:.1f} s of "
        f"{request.path}, and that has {known.duration_s:.1f} s at {known.fps:g} frames per second; if the numbers "
        f"count another rate, give that as --source-fps; if it is right, give --source-fps {known.fps:g}"
    )


def span_notes(candidates: Sequence[VideoCandidate], facts: Facts, *, source_fps: float | None = None) -> list[str]:
    """Return notes on spans that end after their video, and on frames that disagree with the seconds beside them."""
    known = list(_known(candidates, facts))
    beyond = [one for one, file in known if not one.loose and not one.frames and _is_beyond(one, file)]
    notes = []
    if beyond:
        request = beyond[0].request
        first = f"{request.file}, line {request.line}"
        notes.append(f"warning: {len(beyond)} spans end more than a second after their video, and end with it: {first}")
    apart = [one for one, file in known if one.frames_too and _disagrees(one, source_fps or file.fps)]
    if apart:
        request = apart[0].request
        frames = "frames disagree with the seconds beside them, which are taken"
        notes.append(f"warning: in {len(apart)} rows the {frames}: {request.file}, line {request.line}")
    return notes


def _known(candidates: Sequence[VideoCandidate], facts: Facts) -> Iterator[tuple[VideoCandidate, VideoFacts]]:
    for one in candidates:
        known = facts.get((one.request.root, one.request.path))
        if isinstance(known, VideoFacts):
            yield one, known


def _is_beyond(one: VideoCandidate, known: VideoFacts) -> bool:
    last_s = one.request.stop_s if math.isfinite(one.request.stop_s) else one.request.start_s
    return last_s > known.duration_s + _ROUNDING_S


def _disagrees(one: VideoCandidate, fps: float) -> bool:
    """Return whether frames and seconds of a span are more than a second apart; not where a rate is unknown."""
    assert one.frames_too is not None, "frames beside seconds"
    first, stop = one.frames_too
    pairs = [(first, one.request.start_s), (stop, one.request.stop_s)]
    known = [(frame, second) for frame, second in pairs if frame != MAX_FRAME and math.isfinite(second)]
    return fps > 0 and any(abs(frame / fps - second) > _ROUNDING_S for frame, second in known)
