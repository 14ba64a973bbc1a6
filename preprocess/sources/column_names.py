"""The names of columns get roles, and columns without one get what they could mean: by name, or by their values.

    role_of("Start (s)"), role_of("videoPath")          # "start_s", "path"
    could_mean("emotion", ["sad", "happy"], {"path"})   # "a label"

The names are those that lists in use have. A column that could mean nothing is one of width, codec, caption, ...
"""

import re
from collections.abc import Collection, Sequence

from preprocess.sources.list_records import BETWEEN, ends_as_video

# Role ─► the names that lists give to such a column; blanks, signs and capitals are of no importance.
_NAMES = {
    "path": "path video file filename file_name name video_path video_name url filepath file_path video_file clip_path "
    "clip_name relative_path rel_path video_filename full_path",
    "video_id": "video_id vid vid_id clip_id video_uid",
    "youtube_id": "youtube_id",
    "label": "label labels class category target label_name class_name action activity class_id label_id action_id "
    "action_label activity_label class_label verb_class noun_class action_class category_id category_name label_idx "
    "class_index label_index class_idx phase gesture",
    "start_s": "start start_s start_sec start_secs start_second start_seconds start_time time_start start_timestamp "
    "t_start tstart start_t start_time_s start_time_sec begin begin_s begin_sec begin_seconds begin_time time_begin "
    "from onset segment_start clip_start seg_start trim_start action_start event_start",
    "stop_s": "stop end stop_s end_s stop_sec end_sec stop_secs end_secs end_second end_seconds stop_seconds end_time "
    "stop_time time_end time_stop stop_timestamp end_timestamp t_end t_stop tend end_t stop_t to end_time_s "
    "end_time_sec segment_end clip_end seg_end trim_end action_end event_end",
    "start_ms": "start_ms begin_ms start_msec start_millis start_milliseconds start_time_ms",
    "stop_ms": "stop_ms end_ms end_msec stop_msec end_millis end_milliseconds end_time_ms",
    "first": "start_frame frame_start first_frame begin_frame frame_begin start_f start_frame_index start_frame_idx "
    "from_frame frame_from",
    "stop": "end_frame frame_end stop_frame frame_stop end_f end_frame_index end_frame_idx to_frame frame_to",
    "last": "last_frame frame_last",  # stop is the frame after the last
    "actions": "actions",  # Charades: c092 11.90 21.20;c147 0.00 12.60
    "split": "split subset partition set",
}
ROLES = (*_NAMES, "span", "duration_s", "num_frames", "ignore")
STARTS = ("start_s", "start_ms", "first", "span")
STOPS = ("stop_s", "stop_ms", "stop", "last", "duration_s", "num_frames", "span")
VIDEO_ROLES = ("path", "video_id", "youtube_id")
_ROLE = {name.replace("_", ""): role for role, names in _NAMES.items() for name in names.split()}
# Names that leave open whether they count seconds or frames.
_WITHOUT_UNIT = frozenset(("start", "stop", "begin", "end", "from", "to", "onset"))

EXAMPLES = {"a span": "start", "a label": "label", "a split": "split", "a duration": "duration", "a path": "path"}
EXAMPLES |= {"a number of frames": "num_frames", "a start and an end": "span"}
_COULD_MEAN = {
    "a span": re.compile(
        r"start|begin|stop|onset|timestamp|timecode|(^|_)(end|from|to|offset|frames?|secs?|seconds?|times?|span|"
        r"interval|segments?|t0|t1)(_|$)"
    ),
    "a label": re.compile(
        r"label|class|categor|action|activit|target|verb|noun|phase|gesture|emotion|(^|_)(y|gt|cls|tags?|gloss)(_|$)"
    ),
    "a split": re.compile(r"split|subset|fold|partition|(^|_)(train|training|val|valid|validation|test|testing)(_|$)"),
}
_COUNTS = re.compile(r"(num|n|total)_?frames|frame_?count|nframes|length_frames")
# Columns of lists in use that say nothing about where a sample is or what it shows.
_NOTHING = re.compile(
    r"|unnamed.*|(is|has|num|n|total)_.*|n?frames|frame_?(count|rate)|fps|index|idx|row|no|nr|length|duration(_s)?"
    r"|narration.*|descriptions?|captions?|text|title|sentences?|comments?|notes?|.*_count|width|height|w|h|size|bytes"
    r"|file_?size|resolution|aspect.*|bit_?rate|codec|format|quality|md5|sha\d*|checksum|license|date|.*_url|score"
    r"|confidence|subject|participant.*|person.*|camera.*|x\d?|y\d|views|likes"
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|[+-]?\.\d+")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")
_LONGEST_CLASS = 60  # letters
_FEW = 10  # rows in which every value may differ, and be a class still


def plain(name: str) -> str:
    """Return a column's name in small letters, its words with _ between them: startTime, Start time, start-time."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", words).strip("_").lower()


def role_of(name: str) -> str | None:
    """Return the role of a column by its name; None if no list is known that has it."""
    return _ROLE.get(plain(name).replace("_", ""))


def is_without_unit(name: str) -> bool:
    """Return whether a column of times leaves open if it counts seconds or frames."""
    return plain(name) in _WITHOUT_UNIT


def says_nothing(name: str) -> bool:
    """Return whether columns of this name say nothing about where a sample is or what it shows."""
    return bool(_NOTHING.fullmatch(plain(name)))


def seconds_of(text: str) -> float:
    """Return the seconds of 12.5, 00:12.5 or 00:00:12.500; ValueError for anything else."""
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = match.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r}: not seconds, nor HH:MM:SS") from None


def is_time(text: str) -> bool:
    """Return whether a field is a number or a clock."""
    return bool(_NUMBER.fullmatch(text) or _CLOCK.fullmatch(text))


def is_between(text: str) -> bool:
    """Return whether a field can be a time only, and no id: 1.5 or 0:01, but not 2.0."""
    return bool(_CLOCK.fullmatch(text)) or (bool(_NUMBER.fullmatch(text)) and float(text) % 1 != 0)


def increases(starts: Sequence[str], stops: Sequence[str]) -> bool:
    """Return whether two columns hold numbers or clocks, the second more than the first in every row that has both."""
    pairs = [pair for pair in zip(starts, stops, strict=False) if all(pair)]
    return bool(pairs) and all(
        is_time(start) and is_time(stop) and seconds_of(start) < seconds_of(stop) for start, stop in pairs
    )


def could_mean(name: str, values: Sequence[str], roles: Collection[str]) -> str | None:
    """Return what a column without a role could be and no other column is; None if nothing.

    Args:
        name: the plain name.
        values: its fields in some rows.
        roles: those that other columns have.
    """
    has_start, has_stop = bool(set(STARTS).intersection(roles)), bool(set(STOPS).intersection(roles))
    if has_start and not has_stop:
        if _COUNTS.fullmatch(name):
            return "a number of frames"
        if name in ("duration", "duration_s", "length"):
            return "a duration"
    missing = {
        "a span": not has_start or not has_stop,
        "a label": not {"label", "actions"}.intersection(roles),
        "a split": "split" not in roles,
    }
    if missing["a split"] and _COULD_MEAN["a split"].search(name):
        return "a split"
    if _NOTHING.fullmatch(name):
        return None
    given = [value for value in values if value]
    if not has_start and not has_stop and given and all(map(pair_of, given)):
        return "a start and an end"
    if named := next((what for what, words in _COULD_MEAN.items() if missing[what] and words.search(name)), None):
        return named
    if missing["a span"] and any(map(_CLOCK.fullmatch, given)):
        return "a span"
    if given and all(map(ends_as_video, given)):
        return "a path"
    return "a label" if missing["a label"] and _like_classes(given) else None


def pair_of(value: str) -> tuple[str, str] | None:
    """Return the two times of 0.5-2, 0:01 - 0:03, (0.5, 2) or a list of JSON; None for anything else."""
    times = [time for time in re.split(rf"[,;{BETWEEN}\s-]+", value.strip("[]() ")) if time]
    return (times[0], times[1]) if len(times) == 2 and increases(times[:1], times[1:]) else None


def _like_classes(values: Sequence[str]) -> bool:
    """Return whether values could be classes: short, no fractions, and repeated if there are many."""
    if not values or any(len(value) > _LONGEST_CLASS or is_between(value) for value in values):
        return False
    return len(values) <= _FEW or len(set(values)) <= len(values) // 2
