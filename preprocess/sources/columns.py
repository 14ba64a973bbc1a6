"""The columns of a list get roles: names as lists in use have them ─► path, label, span, split.

    columns = read_columns(["video_path", "start_sec", "end_sec", "label", "fps"], [])
    columns.at["start_s"], columns.ignored              # [1], ["fps"]
    span = columns.span(["a.mp4", "0:01.5", "3", "cut", "25"])

A column that is not understood and could mean something is an error that lists what is understood; `--columns` says
what it is. One that cannot is ignored, and named in the line about the list.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from preprocess.sources.ledger import LedgerError

# Role ─► the names that lists give to such a column, with _ for blanks, hyphens and dots.
_NAMES = {
    "path": "path video file filename file_name name video_path video_name url filepath file_path video_file clip_path "
    "clip_name relative_path rel_path",
    "video_id": "video_id vid vid_id clip_id video_uid",
    "youtube_id": "youtube_id",
    "label": "label labels class category target label_name class_name action activity class_id label_id action_id "
    "action_label activity_label class_label verb_class noun_class action_class category_id category_name label_idx "
    "class_index label_index phase gesture",
    "start_s": "start start_s start_sec start_secs start_second start_seconds start_time time_start start_timestamp "
    "t_start tstart start_t begin begin_s begin_sec begin_seconds begin_time time_begin from onset segment_start "
    "clip_start",
    "stop_s": "stop end stop_s end_s stop_sec end_sec stop_secs end_secs end_second end_seconds stop_seconds end_time "
    "stop_time time_end time_stop stop_timestamp end_timestamp t_end t_stop tend end_t stop_t to segment_end clip_end",
    "start_ms": "start_ms begin_ms start_msec start_millis start_milliseconds",
    "stop_ms": "stop_ms end_ms end_msec stop_msec end_millis end_milliseconds",
    "first": "start_frame frame_start first_frame begin_frame frame_begin start_f startframe start_frame_index",
    "stop": "end_frame frame_end stop_frame frame_stop end_f endframe end_frame_index",  # the frame after the last
    "last": "last_frame frame_last",
    "actions": "actions",  # Charades: c092 11.90 21.20;c147 0.00 12.60
    "split": "split subset partition set",
}
ROLES = (*_NAMES, "duration_s", "ignore")
_ROLE = {name: role for role, names in _NAMES.items() for name in names.split()}
_SPELLED = {"start": "start_s", "end": "stop_s", "end_s": "stop_s", "end_ms": "stop_ms", "duration": "duration_s"}
_SPELLED |= {"id": "video_id", "start_frame": "first", "end_frame": "stop", "stop_frame": "stop", "last_frame": "last"}
_STARTS, _STOPS = ("start_s", "start_ms", "first"), ("stop_s", "stop_ms", "stop", "last", "duration_s")
_COULD_MEAN = {
    "a span": re.compile(
        r"start|begin|stop|onset|timestamp|timecode|(^|_)(end|from|to|offset|frames?|secs?|seconds?|times?|span|"
        r"interval|segments?|t0|t1)(_|$)"
    ),
    "a label": re.compile(r"label|class|categor|action|activit|target|verb|noun|phase|gesture"),
    "a split": re.compile(r"split|subset|fold|partition"),
}
_EXAMPLE = {"a span": "start", "a label": "label", "a split": "split", "a duration": "duration"}
# Columns of lists in use that say nothing about where a sample is or what it shows.
_NOTHING = re.compile(
    r"|unnamed.*|(is_|has_|num_|n_|total_).*|n?frames|frame_(count|rate)|fps|index|idx|row|no|nr|length|duration(_s)?"
    r"|narration.*|description|.*_count"
)
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


@dataclass(frozen=True)
class Columns:
    """The positions of the columns by role, and the names of those that are ignored."""

    at: dict[str, list[int]]
    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def one(self, role: str, fields: Sequence[str]) -> str:
        """Return a row's field of a role; empty if there is none."""
        return next((fields[i] for i in self.at.get(role, ()) if i < len(fields) and fields[i]), "")

    def all(self, role: str, fields: Sequence[str]) -> list[str]:
        """Return a row's fields of a role that are not empty."""
        return [fields[i] for i in self.at.get(role, ()) if i < len(fields) and fields[i]]

    def span_s(self, fields: Sequence[str]) -> tuple[float, float]:
        """Return a row's start and stop in seconds; ValueError with the fields if they are none."""
        start, stop = self.one("start_s", fields), self.one("stop_s", fields)
        if not start and (given := self.one("start_ms", fields)):
            start = str(seconds_of(given) / 1000)
        if not stop and (given := self.one("stop_ms", fields)):
            stop = str(seconds_of(given) / 1000)
        begin = seconds_of(start) if start else 0.0
        end = seconds_of(stop) if stop else math.inf
        if not stop and (given := self.one("duration_s", fields)):
            end = begin + seconds_of(given)
        if not 0 <= begin < end:
            raise ValueError(f"{begin:g} s to {end:g} s: negative or reversed")
        return begin, end

    def frames(self, fields: Sequence[str]) -> tuple[int, int] | None:
        """Return a row's first frame and the one after its last; None without such columns, or if seconds are given."""
        if any(self.one(role, fields) for role in ("start_s", "stop_s", "start_ms", "stop_ms")):
            return None
        first, stop, last = (self.one(role, fields) for role in ("first", "stop", "last"))
        if not (first or stop or last):
            return None
        begin = frame_of(first) if first else 0
        end = frame_of(last) + 1 if last else frame_of(stop) if stop else MAX_FRAME
        if not begin < end:
            raise ValueError(f"frames {begin} to {end}: reversed")
        return begin, end


MAX_FRAME = 2**31 - 1  # the end of any video


def seconds_of(text: str) -> float:
    """Return the seconds of 12.5, 00:12.5 or 00:00:12.500; ValueError for anything else."""
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = match.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r}: not seconds, nor HH:MM:SS") from None


def frame_of(text: str) -> int:
    """Return the number of a frame, 12 or 12.0; ValueError for anything else."""
    number = re.fullmatch(r"(\d+)(\.0*)?", text)
    if not number:
        raise ValueError(f"{text!r}: not the number of a frame")
    return int(number[1])


def plain(name: str) -> str:
    """Return a column's name as it is looked up."""
    return re.sub(r"[\s.-]+", "_", name.strip().lower())


def is_known(name: str, *, path: bool = False) -> bool:
    """Return whether lists give this name to a column; with `path` to one that names the video."""
    role = _ROLE.get(plain(name))
    return role in ("path", "video_id", "youtube_id") if path else role is not None


def given_roles(given: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of every role that --columns names: role=NAME or role=NUMBER, several with commas.

    Raises:
        ValueError: one of them has no such form, or there is no such role.
    """
    roles: dict[str, list[str]] = {}
    for one in given:
        role, _, names = one.partition("=")
        role = _SPELLED.get(plain(role), {"stop": "stop_s"}.get(plain(role), plain(role)))
        if role not in ROLES or not names:
            known = ", ".join(sorted({*ROLES, *_SPELLED}))
            raise ValueError(f"--columns {one}: give ROLE=COLUMN, as in start=start_sec; roles: {known}")
        roles.setdefault(role, []).extend(names.split(","))
    return roles


def read_columns(header: Sequence[str], given: Sequence[str], *, source: str) -> Columns:
    """Return the roles of the columns that a header names.

    Args:
        header: the names.
        given: what --columns says.
        source: the list, for messages.

    Raises:
        LedgerError: a column could mean something and is not understood, or two could be the same.
        ValueError: --columns names a column that is not there.
    """
    names = [plain(name) for name in header]
    at: dict[str, list[int]] = {}
    settled: set[int] = set()
    for role, columns in given_roles(given).items():
        for column in columns:
            if (position := _position(column, names)) is None:
                raise LedgerError(f"{source}: --columns {role}={column}: no such column; there are {_listed(header)}")
            settled.add(position)
            at.setdefault(role, []).append(position)
    chosen = set(at)
    for i, name in enumerate(names):
        known = _ROLE.get(name)
        if i not in settled and known and not _is_settled(known, chosen):
            at.setdefault(known, []).append(i)
            settled.add(i)
    if not {"path", "video_id", "youtube_id"}.intersection(at) and "id" in names:
        at["video_id"] = [names.index("id")]
        settled.add(names.index("id"))
    _check_one_meaning(at, chosen, names, header, source)
    open_columns = [i for i in range(len(names)) if i not in settled]
    for i in open_columns:
        if (meaning := _meaning(names[i], at)) is not None:
            raise LedgerError(
                f"{source}: the column {header[i]!r} is not understood, and could be {meaning}. Understood: "
                f"{describe(at, header)}. Say what it is, as in --columns {_EXAMPLE[meaning]}={header[i]}, or "
                f"--columns ignore={header[i]}"
            )
    ignored = [header[i] for i in range(len(names)) if i in open_columns or i in at.get("ignore", ())]
    return Columns(at, tuple(header), tuple(ignored))


def _position(column: str, names: Sequence[str]) -> int | None:
    if plain(column) in names:
        return names.index(plain(column))
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1
    return None


def _is_settled(role: str, chosen: set[str]) -> bool:
    """Return whether --columns has settled what a column of this role would say."""
    if role in _STARTS:
        return bool(chosen.intersection(_STARTS))
    if role in _STOPS:
        return bool(chosen.intersection(_STOPS))
    if role in ("path", "video_id"):
        return bool(chosen.intersection(("path", "video_id")))
    return role in chosen


def _check_one_meaning(
    at: dict[str, list[int]], chosen: set[str], names: Sequence[str], header: Sequence[str], source: str
) -> None:
    """Raise LedgerError if columns of different names could have one role; equal names are several labels."""
    for role, positions in at.items():
        if role in chosen or role == "ignore" or len({names[i] for i in positions}) < 2:
            continue
        if role == "path" and "path" in (names[i] for i in positions):
            at[role] = [i for i in positions if names[i] == "path"]
            continue
        names_of_role = _listed([header[i] for i in positions])
        spelled = {"start_s": "start", "stop_s": "end"}.get(role, role)
        raise LedgerError(
            f"{source}: {names_of_role} could each be the {spelled}; say which, as in --columns "
            f"{spelled}={header[positions[0]]}"
        )


def _meaning(name: str, at: dict[str, list[int]]) -> str | None:
    """Return what a column that has no role could be and no other is; None if nothing."""
    has_start, has_stop = bool(set(at).intersection(_STARTS)), bool(set(at).intersection(_STOPS))
    if name in ("duration", "duration_s", "length") and has_start and not has_stop:
        return "a duration"
    if _NOTHING.fullmatch(name):
        return None
    missing = {
        "a span": not has_start or not has_stop,
        "a label": not set(at).intersection(("label", "actions")),
        "a split": "split" not in at,
    }
    return next((what for what, words in _COULD_MEAN.items() if missing[what] and words.search(name)), None)


def describe(at: dict[str, list[int]], header: Sequence[str]) -> str:
    """Return the columns with their roles, for messages."""
    return ", ".join(f"{role} = {_listed([header[i] for i in positions])}" for role, positions in at.items()) or "none"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
