"""The ledger of frame folders is parsed into rows: the frames of a folder that are a sample, and its labels.

In: a text file with one row a sample, `name first last [label ...]`, both frames included, as the seeds'
README shows it (spaces, no header) or as their code took it (commas, with or without a header). Out:
`LedgerRow`s with half-open ranges, and a `Problem` for every row that is no such thing. Inclusive ranges
exist in this file only.

    ledger = read_ledger(path.read_bytes(), "ledger.csv")
    print(ledger.dialect)       # ledger.csv: spaces, no header, 5 rows
    ledger.rows[0]              # LedgerRow(line=1, name='video_1', first=1, stop=3118, labels=('1',))
"""

import csv
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from preprocess.plan.label_ids import MAX_ID
from preprocess.problems import Problem

Delimiter = Literal["auto", "comma", "space", "tab", "semicolon"]
Header = Literal["auto", "yes", "no"]

DELIMITERS = {"comma": ",", "space": " ", "tab": "\t", "semicolon": ";"}
_NAMES = {",": "commas", " ": "spaces", "\t": "tabs", ";": "semicolons"}
_CONTROL = re.compile(r"[\x00-\x1f]")


class LedgerError(ValueError):
    """A list or ledger that cannot be read at all; names the file, the line and the remedy."""


@dataclass(frozen=True)
class LedgerRow:
    """A sample: the frames first <= i < stop of a folder."""

    line: int
    name: str
    first: int
    stop: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Ledger:
    """A parsed ledger; `dialect` describes how it was understood."""

    rows: tuple[LedgerRow, ...]
    problems: tuple[Problem, ...]
    dialect: str
    counted: tuple["CountedRow", ...] = ()  # the same rows read as mmaction2's; empty if a row cannot be


@dataclass(frozen=True)
class CountedRow:
    """A row `name total_frames label ...` of mmaction2's lists of raw frames."""

    line: int
    name: str
    total: int
    labels: tuple[str, ...]


def read_ledger(
    data: bytes, source: str, *, delimiter: Delimiter = "auto", header: Header = "auto", allow_outside: bool = False
) -> Ledger:
    """Read a ledger in the dialect that its lines show, or in the one that is named.

    A comma (tab, semicolon) in the first row is the delimiter, else blanks are; a first row whose second and
    third fields are both words is a header. Byte-order mark, CRLF and empty lines are fine; quotes protect
    blanks.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        delimiter: between the fields.
        header: whether the first row is none.
        allow_outside: whether names may leave the root (`../x`, `/x`).

    Raises:
        LedgerError: not UTF-8, or no row in it.
    """
    lines = decoded_lines(data, source)
    character = DELIMITERS[delimiter] if delimiter != "auto" else sniff_delimiter(lines[0][1])
    records = [(number, split_line(text, character)) for number, text in lines]
    first = records[0][1]
    has_header = header == "yes" or (
        header == "auto" and len(first) >= 3 and not any(_is_number(field) for field in first[1:3])
    )
    if has_header:
        records = records[1:]
    rows: list[LedgerRow] = []
    problems: list[Problem] = []
    seen: dict[tuple[object, ...], int] = {}
    for line, fields in records:
        row = _parse_row(line, fields, allow_outside)
        if isinstance(row, LedgerRow):
            earlier = seen.setdefault((row.name, row.first, row.stop, row.labels), line)
            if earlier != line:
                row = Problem("duplicate_row", f"the same as line {earlier}", row.name, line)
        if isinstance(row, LedgerRow):
            rows.append(row)
        else:
            problems.append(row)
    if not records:
        raise LedgerError(f"{source}: no row, only a header; rows are `name first last label`")
    said = f"{delimiter_name(character)}, {'a header' if has_header else 'no header'}, {len(records)} rows"
    counted = [_counted_row(line, fields, allow_outside) for line, fields in records]
    as_counted = tuple(row for row in counted if row) if all(counted) else ()
    return Ledger(tuple(rows), tuple(problems), f"{PurePosixPath(source).name}: {said}", as_counted)


def decoded_lines(data: bytes, source: str) -> list[tuple[int, str]]:
    """Return the non-empty lines of a UTF-8 text with their 1-based numbers, at least one.

    Raises:
        LedgerError: not UTF-8, or nothing in it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LedgerError(f"{source}, line {line}: not UTF-8; save the file as UTF-8") from error
    # Not splitlines: it also splits at characters that names may hold.
    numbered = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if not lines:
        raise LedgerError(f"{source}, line 1: the file is empty")
    return lines


def delimiter_name(character: str) -> str:
    """Return a delimiter's name."""
    return _NAMES[character]


def sniff_delimiter(line: str) -> str:
    """Return the character between the fields of a line."""
    return next((character for character in (",", "\t", ";") if character in line), " ")


def split_line(line: str, delimiter: str) -> list[str]:
    """Split one line into fields, stripped; consecutive blanks count as one."""
    if delimiter == " ":
        line = line.replace("\t", " ")
    if '"' in line:
        (fields,) = csv.reader([line], delimiter=delimiter)
    else:
        fields = line.split(delimiter)
    fields = [field.strip() for field in fields]
    return [field for field in fields if field] if delimiter == " " else fields


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
    first, last = int(start), int(end)
    if first < 0 or last < first:
        return Problem("bad_row", f"frames {first} to {last}: negative or reversed", name, line)
    for label in labels:
        if _is_number(label) and not -1 <= int(label) <= MAX_ID:
            return Problem("bad_row", f"label {label} is out of range; leave it out, or give -1 for none", name, line)
    return LedgerRow(line, name, first, last + 1, tuple(label for label in labels if label))


def _counted_row(line: int, fields: list[str], allow_outside: bool) -> CountedRow | None:
    if len(fields) < 3 or unsafe(fields[0], allow_outside=allow_outside) or not all(map(_is_number, fields[1:3])):
        return None
    return CountedRow(line, fields[0], int(fields[1]), tuple(filter(None, fields[2:])))


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-").removeprefix("+")
    return digits.isascii() and digits.isdigit()
