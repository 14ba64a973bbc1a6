"""The time between events becomes samples of a background label, and videos without events are listed.

add_unnamed(root, entries, reading, collected)                  # videos that no list names
add_gaps(collected, facts, roots, settings, reading)            # the time between the events of the others
gaps([(1, 2), (1.5, 3)], 10)                                    # [(0.0, 1), (3, inf)]

Without a label for it, only videos are listed. A video of which a row cannot be used has no background, because the
event of that row would be part of it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.list_records import ends_as_video
from preprocess.sources.list_tables import ListRow
from preprocess.sources.listed_videos import ListedVideos
from preprocess.sources.roots import Root
from preprocess.sources.source import Reading, shortened, staying
from preprocess.sources.spans import Facts, settled
from preprocess.sources.video_listing import Collected, Given, VideoCandidate


def add_unnamed(root: Root, entries: Sequence[Given], reading: Reading, collected: Collected) -> None:
    """Add the videos below a root that no list of events names: whole as background, or else as problems.

    Args:
        root: the folder of the videos, that of `--videos`.
        entries: the lists.
        reading: the label of the background; "" = none.
        collected: is added to; what the lists name is in it.
    """
    listing = root.files(follow=reading.allow_outside)
    names, refused = staying(listing, [name for name in listing.names if ends_as_video(name)], reading)
    collected.problems += refused
    for entry in entries:
        collected.unclear |= _unclear(entry, ListedVideos(root, reading.allow_outside))
    named = {one.request.path for one in collected.candidates} | collected.unclear
    unnamed = [name for name in names if name not in named]
    label = reading.background
    for name in unnamed:
        if label:
            collected.candidates.append(VideoCandidate(Request("video", 0, name, name, (label,), name, -1)))
        else:
            message = "no event names it; --background LABEL takes such videos, too"
            collected.problems.append(Problem("no_event", message, name, expected=True))
    if unnamed:
        taken = f"and are {label!r} as a whole" if label else "and are left out (--background LABEL takes them)"
        collected.note(f"{len(unnamed)} of {len(names)} videos have no event, {taken}{shortened(unnamed)}")


def _unclear(entry: Given, videos: ListedVideos) -> set[str]:
    """Return the videos of which a row cannot be read, so that it is not known where all their events are."""
    read = entry.read
    bad = [problem for problem in read.problems if problem.reason == "bad_row"] if read else []
    if not read or not bad:
        return set()
    rows = read.rows[:1] if read.labels_all else [ListRow(one.line, one.name, stems=(one.name,)) for one in bad]
    files = set()
    for row in rows:
        with suppress(MediaError):
            files.add(videos.find(row))
    return files


def add_gaps(
    collected: Collected, facts: Facts, roots: Sequence[Root], settings: Settings, reading: Reading
) -> list[VideoCandidate]:
    """Return the time between the events of every video as candidates, by the order in which lists name the videos.

    Args:
        collected: the events; gets a note.
        facts: what the videos announce.
        roots: the roots of the requests.
        settings: the rate of the frame numbers in lists.
        reading: the label, and the shortest gap.
    """
    events: dict[tuple[str, str], list[VideoCandidate]] = {}
    for one in collected.candidates:
        if one.request.line > 0:
            events.setdefault((roots[one.request.root].where, one.request.path), []).append(one)
    made: list[VideoCandidate] = []
    unclear = set(collected.unclear)
    endless: list[str] = []
    num_short = 0
    for (_, path), candidates in events.items():
        known = facts.get((candidates[0].request.root, path))
        spans = _spans(candidates, known, settings)
        if path in collected.unclear or spans is None or not isinstance(known, VideoFacts):
            unclear.add(path)
            continue
        if math.isnan(known.duration_s):
            endless.append(path)
        splits = {one.request.split for one in candidates}
        whole = replace(
            candidates[0].request,
            labels=(reading.background,),
            file=path,
            line=-1,
            split=splits.pop() if len(splits) == 1 else "",
        )
        for start_s, stop_s in gaps(spans, known.duration_s, frame_s=1 / known.fps if known.fps > 0 else 0.0):
            if min(stop_s, known.duration_s) - start_s < reading.background_seconds - 1e-6:
                num_short += 1
            else:
                made.append(VideoCandidate(replace(whole, start_s=start_s, stop_s=stop_s)))
    for note in _gap_notes(len(made), num_short, sorted(unclear), endless, reading):
        collected.note(note)
    return made


def _gap_notes(
    num_made: int, num_short: int, unclear: Sequence[str], endless: Sequence[str], reading: Reading
) -> Iterator[str]:
    """Yield a note on the gaps, and one on the videos that have none, or not all of theirs."""
    short = f"; {num_short} are shorter than {reading.background_seconds:g} s (--background-seconds) and left out"
    yield f"{num_made} gaps between events are {reading.background!r}{short if num_short else ''}"
    if unclear:
        what = f"{len(unclear)} videos have events that cannot be read, and so no background"
        yield f"warning: {what}{shortened(unclear)}"
    if endless:
        what = f"{len(endless)} videos announce no length: nothing after their last event is background"
        yield f"warning: {what}{shortened(endless)}"


def _spans(candidates: Sequence[VideoCandidate], known: object, settings: Settings) -> list[tuple[float, float]] | None:
    """Return the spans of a video's events in seconds; None if that of one is not known."""
    if not isinstance(known, VideoFacts):
        return None
    try:
        requests = [settled(one, known, source_fps=settings.source_fps) for one in candidates]
    except MediaError:
        return None
    return [(one.start_s, one.stop_s) for one in requests]


def gaps(spans: Iterable[tuple[float, float]], duration_s: float, *, frame_s: float = 0.0) -> list[tuple[float, float]]:
    """Return what spans leave of a video, in seconds, half-open; the last one without an end.

    Args:
        spans: in any order; they may overlap, and lie beyond the end.
        duration_s: the video's length; NaN = unknown: then there is nothing after the last span.
        frame_s: seconds per frame. Spans in frames end half a frame early, and no frame lies behind the last of them.
    """
    left: list[tuple[float, float]] = []
    end = 0.0
    for start, stop in sorted(spans):
        if start >= duration_s:
            continue
        if start > end:
            left.append((end, start))
        end = max(end, stop)
    if end < duration_s - 0.75 * frame_s:
        left.append((end, math.inf))
    return left
