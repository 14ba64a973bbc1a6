"""The columns of a list get roles, and its rows spans: a header and what --columns says ─► path, label, start, stop.

    columns = read_columns(["video_path", "start_sec", "end_sec", "label", "fps"], [], source="train.csv")
    columns.at["start_s"], columns.ignored              # [1], ["fps"]
    span = columns.span_s(["a.mp4", "0:01.5", "3", "cut", "25"])

A column that is not understood and could mean something is an error that lists what is understood; `--columns` says
what it is. One that cannot (`preprocess.sources.column_names`) is ignored, and named in the line about the list.
"""

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from preprocess.sources.column_names import (
    EXAMPLES,
    ROLES,
    STARTS,
    STOPS,
    VIDEO_ROLES,
    could_mean,
    increases,
    is_without_unit,
    pair_of,
    plain,
    role_of,
    says_nothing,
    seconds_of,
)
from preprocess.sources.list_records import LedgerError, Record

_SPELLED = {"start": "start_s", "end": "stop_s", "end_s": "stop_s", "end_ms": "stop_ms", "duration": "duration_s"}
_SPELLED |= {"id": "video_id", "start_frame": "first", "end_frame": "stop", "stop_frame": "stop", "last_frame": "last"}
_SPELLED |= {"first_frame": "first", "total_frames": "num_frames", "stop": "stop_s"}
_LOOKED_AT = 1000  # rows whose values show what a column could be
_FRAME_ROLES = {"first", "stop", "last", "num_frames"}
_SECOND_ROLES = {"start_s", "start_ms", "stop_s", "stop_ms", "duration_s", "span"}


@dataclass(frozen=True)
class Columns:
    """The positions of the columns by role, and the names of those that are ignored."""

    at: dict[str, list[int]]
    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    without_unit: bool = False  # times may be seconds, as they are read, or frames

    def one(self, role: str, fields: Sequence[str]) -> str:
        """Return a row's field of a role; empty if there is none."""
        return next((fields[i] for i in self.at.get(role, ()) if i < len(fields) and fields[i]), "")

    def all(self, role: str, fields: Sequence[str]) -> list[str]:
        """Return a row's fields of a role that are not empty."""
        return [fields[i] for i in self.at.get(role, ()) if i < len(fields) and fields[i]]

    def has_seconds(self, fields: Sequence[str]) -> bool:
        """Return whether a row says in seconds where its span is: then its frames are not needed."""
        return any(self.one(role, fields) for role in _SECOND_ROLES)

    def span_s(self, fields: Sequence[str]) -> tuple[float, float]:
        """Return a row's start and stop in seconds; ValueError with the fields if they are none."""
        start, stop = self.one("start_s", fields), self.one("stop_s", fields)
        if span := self.one("span", fields):
            if (pair := pair_of(span)) is None:
                raise ValueError(f"{span!r}: not two times in seconds, as 0.5-2")
            start, stop = pair
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
        """Return a row's first frame and the one after its last; None if it has none of them."""
        first, stop, last, count = (self.one(role, fields) for role in ("first", "stop", "last", "num_frames"))
        if not (first or stop or last or count):
            return None
        begin = frame_of(first) if first else 0
        if last or stop:
            end = frame_of(last) + 1 if last else frame_of(stop)
        else:
            end = begin + frame_of(count) if count else MAX_FRAME
        if begin == end and stop:
            raise ValueError(f"frames {begin} to {end}, the end not included: none (--columns last_frame includes it)")
        if not begin < end:
            raise ValueError(f"frames {begin} to {end}: reversed")
        return begin, end


MAX_FRAME = 2**31 - 1  # the end of any video


def frame_of(text: str) -> int:
    """Return the number of a frame, 12 or 12.0; ValueError for anything else."""
    number = re.fullmatch(r"(\d+)(\.0*)?", text)
    if not number:
        raise ValueError(f"{text!r}: not the number of a frame")
    return int(number[1])


def given_roles(given: Sequence[str], known: Collection[str] = ROLES) -> dict[str, list[str]]:
    """Return the columns of every role that --columns names: role=NAME or role=NUMBER, several with commas.

    Args:
        given: what --columns says.
        known: the roles that there are.

    Raises:
        ValueError: one of them has no such form, or there is no such role.
    """
    roles: dict[str, list[str]] = {}
    for one in given:
        role, _, names = one.partition("=")
        role = _SPELLED.get(plain(role), plain(role))
        if role not in known or not names:
            listed = ", ".join(sorted({*known, *_SPELLED}))
            raise ValueError(f"--columns {one}: give ROLE=COLUMN, as in start=start_sec; roles: {listed}")
        roles.setdefault(role, []).extend(names.split(","))
    return roles


def read_columns(
    header: Sequence[str],
    given: Sequence[str],
    *,
    source: str,
    records: Sequence[Record] = (),
    other_names: Mapping[str, str] = MappingProxyType({}),
    label_order: Sequence[str] = (),
) -> Columns:
    """Return the roles of the columns that a header names.

    Args:
        header: the names.
        given: what --columns says.
        source: the list, for messages.
        records: the rows below; what their values look like decides where names say nothing.
        other_names: the roles of names that mean something else here.
        label_order: the columns of which the first that is there is the label; empty = by their roles.

    Raises:
        LedgerError: a column could mean something and is not understood, or two could be the same.
        ValueError: --columns names a column that is not there.
    """
    names = [plain(name) for name in header]
    at: dict[str, list[int]] = {}
    settled: set[int] = set()
    for role, columns in given_roles(given, {*ROLES, *other_names.values()}).items():
        for column in columns:
            if (position := _position(column, header)) is None:
                raise LedgerError(f"{source}: --columns {role}={column}: no such column; there are {_listed(header)}")
            settled.add(position)
            at.setdefault(role, []).append(position)
    if "label" not in at and (first := next((name for name in label_order if name in names), "")):
        at["label"] = [i for i, name in enumerate(names) if name == first and i not in settled]
        settled.update(at["label"])
    chosen = set(at)
    for i, name in enumerate(header):
        known = other_names.get(plain(name)) or role_of(name)
        if i not in settled and known and not _is_settled(known, chosen):
            at.setdefault(known, []).append(i)
            settled.add(i)
        elif known and i not in settled:
            settled.add(i)
            at.setdefault("ignore", []).append(i)
    if not set(VIDEO_ROLES).intersection(at) and "id" in names:
        at["video_id"] = [names.index("id")]
        settled.add(names.index("id"))
    _check_one_meaning(at, chosen, names, header, source)
    _check_units(at, header, source)
    open_columns = [i for i in range(len(names)) if i not in settled]
    _check_understood(open_columns, at, header, records, source)
    ignored = [header[i] for i in range(len(names)) if i in open_columns or i in at.get("ignore", ())]
    times = [header[i] for role in ("start_s", "stop_s") if role not in chosen for i in at.get(role, ())]
    return Columns(at, tuple(header), tuple(ignored), bool(times) and all(map(is_without_unit, times)))


def _position(column: str, header: Sequence[str]) -> int | None:
    """Return the position of the column that --columns names: as it is written, by its plain name, or by its number."""
    if column in header:
        return header.index(column)
    names = [plain(name) for name in header]
    if plain(column) in names:
        return names.index(plain(column))
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1
    return None


def _is_settled(role: str, chosen: set[str]) -> bool:
    """Return whether --columns has settled what a column of this role would say."""
    for group in (STARTS, STOPS, ("path", "video_id")):
        if role in group:
            return bool(chosen.intersection(group))
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
        spelled = {"start_s": "start", "stop_s": "end", "video_id": "id"}.get(role, role)
        raise LedgerError(
            f"{source}: {names_of_role} could each be the {spelled}; say which, as in "
            f"{option(spelled, [header[positions[0]]])}"
        )


def _check_units(at: dict[str, list[int]], header: Sequence[str], source: str) -> None:
    """Raise LedgerError if the starts are in frames and the ends in seconds, or reversed: then one would be lost."""
    starts, stops = set(at).intersection(STARTS), set(at).intersection(STOPS)
    for unit in (_FRAME_ROLES, _SECOND_ROLES):
        if starts and stops and starts <= unit and not stops & unit:
            one, other = ("frames", "seconds") if unit is _FRAME_ROLES else ("seconds", "frames")
            raise LedgerError(
                f"{source}: the start is in {one} and the end in {other}. Understood: {describe(at, header)}. Name the "
                "columns as in --columns start=COLUMN end=COLUMN, or start_frame=COLUMN end_frame=COLUMN"
            )


def _check_understood(
    open_columns: Sequence[int],
    at: dict[str, list[int]],
    header: Sequence[str],
    records: Sequence[Record],
    source: str,
) -> None:
    """Raise LedgerError for columns without a role that could mean something, by their names or values."""
    fields = [row for _, row in records[:_LOOKED_AT]]
    values = {i: [row[i] if i < len(row) else "" for row in fields] for i in open_columns}
    meanings = {i: could_mean(plain(header[i]), values[i], at) for i in open_columns}
    unnamed = [i for i in open_columns if not says_nothing(header[i])]
    for i in [] if set(at).intersection((*STARTS, *STOPS)) else unnamed:
        if i + 1 in unnamed and increases(values[i], values[i + 1]):
            meanings[i] = meanings[i + 1] = "a span"
    unclear = {header[i]: meaning for i, meaning in meanings.items() if meaning}
    if not unclear:
        return
    (name, meaning), *others = unclear.items()
    more = "".join(f"; {other!r} could be {what}" for other, what in others)
    examples: dict[str, str] = {}
    for one, what in unclear.items():
        role = EXAMPLES[what]
        examples.setdefault("end" if role == "start" and role in examples else role, one)
    options = " ".join(shlex.quote(f"{role}={one}") for role, one in examples.items())
    nameless = "" if set(VIDEO_ROLES).intersection(at) else "no column is called path; "
    raise LedgerError(
        f"{source}: {nameless}the column {name!r} is not understood, and could be {meaning}{more}. Understood: "
        f"{describe(at, header)}. Say what it is, as in --columns {options}, or {option('ignore', list(unclear))}"
    )


def option(role: str, columns: Sequence[str]) -> str:
    """Return --columns as a shell takes it."""
    return "--columns " + shlex.quote(f"{role}=" + ",".join(columns))


def describe(at: dict[str, list[int]], header: Sequence[str]) -> str:
    """Return the columns with their roles, for messages."""
    return ", ".join(f"{role} = {_listed([header[i] for i in positions])}" for role, positions in at.items()) or "none"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
