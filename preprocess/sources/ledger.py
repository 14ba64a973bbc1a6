"""The ledger of frame folders is parsed into rows: the frames of a folder that are a sample, and its labels.

In: a text file with one row a sample, `name first last [label ...]`, both frames included, as the seeds'
README shows it (spaces, no header) or as their code took it (commas, with or without a header); columns in another
order if a header or --columns names them; or `name total_frames [label ...]` for whole folders, and `name offset
total_frames [label ...]` for parts, as mmaction2 has them. Out: `LedgerRow`s with half-open ranges, and a `Problem` for
every row that is no such thing. Inclusive ranges exist in this file only.

    ledger = read_ledger(path.read_bytes(), "ledger.csv")
    print(ledger.dialect)       # ledger.csv: spaces, no header, 5 rows
    ledger.rows[0]              # LedgerRow(line=1, name='video_1', first=1, stop=3118, labels=('1',))
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from preprocess.dataset.label_cells import MAX_ID
from preprocess.problems import Problem
from preprocess.sources.column_names import plain, role_of
from preprocess.sources.columns import Columns, describe, read_columns
from preprocess.sources.folder_labels import split_of
from preprocess.sources.list_records import (
    DELIMITERS,
    Delimiter,
    Header,
    LedgerError,
    Record,
    decoded_lines,
    delimiter_name,
    ignoring_others,
    sniff_delimiter,
    split_line,
)

# What columns are called in ledgers that elsewhere would count seconds, or mean something else.
_ROLES = {
    **dict.fromkeys(("first", "start", "begin", "from", "onset"), "first"),
    **dict.fromkeys(("last", "stop", "end", "to", "offset"), "last"),
    **dict.fromkeys(("folder", "dir", "directory", "frame_dir", "frame_folder", "frames_dir", "frames_path"), "path"),
    **dict.fromkeys(("frame_offset", "offset_frames"), "offset"),
    **dict.fromkeys(("total_frames", "num_frames", "n_frames", "nframes", "frame_count", "frames"), "num_frames"),
}
_IN_ORDER = (("path", "video_id"), ("first",), ("last", "stop"))  # and labels after them
_CONTROL = re.compile(r"[\x00-\x1f]")
_LONGEST_NAME = 255  # bytes; a file system has an error for longer ones, not an answer
_MOST_DIGITS = 18  # of a frame's number


@dataclass(frozen=True)
class LedgerRow:
    """A sample: the frames first <= i < stop of a folder, or the first `total` of what it holds."""

    line: int
    name: str
    first: int
    stop: int
    labels: tuple[str, ...]
    split: str = ""
    total: int = 0  # frames; 0 = first and stop say which
    offset: int | None = None  # of the first of `total` from the folder's first frame; None = they are its first ones


@dataclass(frozen=True)
class Ledger:
    """A parsed ledger; `dialect` describes how it was understood."""

    rows: tuple[LedgerRow, ...]
    problems: tuple[Problem, ...]
    dialect: str
    width: int = 0  # fields of the longest row, if neither a header nor --columns has said what they are

    def columns_of(self, *roles: str) -> list[str]:
        """Return the --columns that read its first columns by these roles, and those after them as labels."""
        labels = ",".join(str(i + 1) for i in range(len(roles), self.width))
        named = [f"{role}={i + 1}" for i, role in enumerate(roles)]
        return [*named, *([f"label={labels}"] if labels else [])]


def read_ledger(
    data: bytes,
    source: str,
    *,
    delimiter: Delimiter = "auto",
    header: Header = "auto",
    columns: Sequence[str] = (),
    allow_outside: bool = False,
) -> Ledger:
    """Read a ledger in the dialect that its lines show, or in the one that is named.

    A comma (tab, semicolon) in the first row is the delimiter, else blanks are; a first row whose second and
    third fields are both words is a header. Byte-order mark, CRLF and empty lines are fine. Between blanks, a name
    that comes first ends before the first number; quotes protect any blanks.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        delimiter: between the fields.
        header: whether the first row is none.
        columns: what --columns says of the columns: role=NAME, or role=NUMBER without a header.
        allow_outside: whether names may leave the root (`../x`, `/x`).

    Raises:
        LedgerError: no text, no row in it, or columns that can be read in two ways.
    """
    lines = decoded_lines(data, source)
    character = DELIMITERS[delimiter] if delimiter != "auto" else sniff_delimiter(lines[0][1])
    records = [(number, split_line(text, character)) for number, text in lines]
    first = records[0][1]
    has_header = header == "yes" or (header == "auto" and _is_header(_with_name(first) if character == " " else first))
    if has_header:
        records = records[1:]
    if not records:
        raise LedgerError(f"{source}: no row, only a header; rows are `name first last label`")
    begins_with_name = _role(first[0]) in _IN_ORDER[0] if has_header else not columns or "path=1" in columns
    if character == " " and begins_with_name:
        records = [(line, _with_name(fields)) for line, fields in records]
    named = _named_columns(first if has_header else [], records, columns, source)
    rows: list[LedgerRow] = []
    problems: list[Problem] = []
    seen: dict[tuple[object, ...], int] = {}
    for line, fields in records:
        row = _named_row(line, fields, named, allow_outside) if named else _parse_row(line, fields, allow_outside)
        if isinstance(row, LedgerRow):
            earlier = seen.setdefault((row.name, row.first, row.stop, row.labels, row.total, row.offset), line)
            if earlier != line:
                row = Problem("duplicate_row", f"the same as line {earlier}", row.name, line)
        if isinstance(row, LedgerRow):
            rows.append(row)
        else:
            problems.append(row)
    said = f"{delimiter_name(character)}, {'a header' if has_header else 'no header'}, {len(records)} rows"
    if named:
        said += f", read as {describe({k: v for k, v in named.at.items() if k != 'ignore'}, named.names)}"
        said += f", ignored: {', '.join(named.ignored)}" if named.ignored else ""
    width = 0 if has_header or columns else max(len(fields) for _, fields in records)
    return Ledger(tuple(rows), tuple(problems), f"{PurePosixPath(source).name}: {said}", width)


def _is_header(first: Sequence[str]) -> bool:
    if len(first) == 2:
        return all(map(_role, first))
    return len(first) > 2 and not any(_is_number(field) for field in first[1:3])


def _with_name(fields: list[str]) -> list[str]:
    """Return a row's fields with the words before the first number as one: a name that holds blanks."""
    count = next((i for i, field in enumerate(fields) if i > 0 and _is_number(field)), 1)
    return [" ".join(fields[:count]), *fields[count:]]


def _role(name: str) -> str | None:
    return _ROLES.get(plain(name)) or role_of(name)


def _named_columns(
    header: Sequence[str], records: Sequence[Record], given: Sequence[str], source: str
) -> Columns | None:
    """Return the columns by role; None if they are `name first last label ...`, in that order.

    Raises:
        LedgerError: the folder or its frames are not among them, or one could mean something and is not understood.
    """
    roles = list(map(_role, header))
    labels = roles[len(_IN_ORDER) :]
    in_order = all(role is None or role in known for role, known in zip(roles, _IN_ORDER, strict=False))
    if not given and in_order and (set(labels) <= {"label"} or not any(labels)):
        return None
    width = max(len(fields) for _, fields in records)
    names = list(header) or [str(i + 1) for i in range(width)]
    said = given if header else [*given, *ignoring_others(given, width)]
    known = _ROLES
    if "num_frames" in roles and "first" not in roles:  # beside an onset, the offset is the end
        known = _ROLES | {"offset": "offset"}
    columns = read_columns(names, said, source=source, records=records, other_names=known)
    at = columns.at
    understood = f"understood: {describe(at, names)}"
    if not at.keys() & {"path", "video_id"}:
        raise LedgerError(f"{source}: no column names the folder; {understood}. Name it as in --columns path=COLUMN")
    if not ("first" in at and at.keys() & {"last", "stop"}) and "num_frames" not in at:
        raise LedgerError(
            f"{source}: a ledger counts frames, and no columns say which; {understood}. Name them as in --columns "
            "first=COLUMN last=COLUMN (both included), total_frames=COLUMN for whole folders, or offset=COLUMN "
            "total_frames=COLUMN for parts of them"
        )
    return columns


def _named_row(line: int, fields: list[str], columns: Columns, allow_outside: bool) -> LedgerRow | Problem:
    """Return the row of a record whose columns have names."""
    one = {role: columns.one(role, fields) for role in columns.at}
    name = one.get("path") or one.get("video_id", "")
    first, last = one.get("first", ""), one.get("last") or one.get("stop", "")
    if first or last or "num_frames" not in one:
        row = _parse_row(line, [name, first, last, *columns.all("label", fields)], allow_outside)
    else:
        row = _parse_row(line, [name, "0", one["num_frames"], *columns.all("label", fields)], allow_outside)
        offset = one.get("offset", "0")
        if isinstance(row, LedgerRow) and row.stop == 1:
            row = Problem("bad_row", "0 frames", name, line)
        elif not _is_number(offset) or int(offset) < 0:
            row = Problem("bad_row", f"offset {offset!r} is not a whole number from 0", name, line)
        elif isinstance(row, LedgerRow):
            row = replace(row, stop=0, total=row.stop - 1, offset=int(offset) if "offset" in one else None)
    return replace(row, split=split_of(one.get("split", ""))) if isinstance(row, LedgerRow) else row


def has_control(name: str) -> bool:
    """Return whether a name holds a line break, a NUL or another control character."""
    return _CONTROL.search(name) is not None


def unsafe(name: str, *, allow_outside: bool = False) -> str | None:
    """Return why a name must not be joined to a root, or None if it may."""
    if not name:
        return "empty name"
    if has_control(name):
        return "control character in the name"
    if not allow_outside and (name.startswith("/") or ".." in name.split("/")):
        return "leaves the root (--allow-outside permits it)"
    if any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in name.split("/")):
        return f"longer than {_LONGEST_NAME} bytes, as no file's name is"
    return None


def _parse_row(line: int, fields: list[str], allow_outside: bool) -> LedgerRow | Problem:
    while fields and not fields[-1]:
        fields = fields[:-1]
    if len(fields) < 3:
        columns = f"{len(fields)} columns in {' '.join(fields)!r}"
        return Problem("bad_row", f"{columns}, expected `name first last [label ...]`", line=line)
    name, start, end, *labels = fields
    if why := unsafe(name, allow_outside=allow_outside):
        return Problem("unsafe_name", f"{name!r}: {why}", name, line)
    for what, value in (("first", start), ("last", end)):
        if not _is_number(value):
            return Problem("bad_row", f"{what} frame {value!r} is not a whole number", name, line)
        if len(value) > _MOST_DIGITS:
            return Problem("bad_row", f"{what} frame {value} is too large for a frame's number", name, line)
    first, last = int(start), int(end)
    if first < 0 or last < first:
        return Problem("bad_row", f"frames {first} to {last} of {name!r}: negative or reversed", name, line)
    for label in labels:
        if _is_number(label) and not -1 <= int(label) <= MAX_ID:
            return Problem("bad_row", f"label {label} is out of range; leave it out, or give -1 for none", name, line)
    return LedgerRow(line, name, first, last + 1, tuple(label for label in labels if label))


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-").removeprefix("+")
    return digits.isascii() and digits.isdigit()
