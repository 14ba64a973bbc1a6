"""The bytes of a list become records, in any form: text, JSON, JSON lines or Parquet ─► fields as words.

records = list(text_records(decoded_lines(data, "train.csv"), ","))       # [(line, ["a.mp4", "cut"]), ...]
table = parquet_table(data, "train.parquet")                              # header, records
"""

import ast
import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mae3d.video.facts import VIDEO_SUFFIXES

Delimiter = Literal["auto", "comma", "space", "tab", "semicolon"]
Header = Literal["auto", "yes", "no"]

DELIMITERS = {"comma": ",", "space": " ", "tab": "\t", "semicolon": ";"}
_NAMES = {",": "commas", " ": "spaces", "\t": "tabs", ";": "semicolons"}
_MARKS = {  # byte-order marks; that of UTF-16 begins as that of UTF-32 does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BETWEEN = "\x1f"  # between the labels of a list in JSON or Parquet, in the one field that they become
_QUOTED_LINES = 100  # most lines that one row with line breaks in quotes may take

Record = tuple[int, list[str]]  # a row's first line, and its fields


class LedgerError(ValueError):
    """A list or ledger that cannot be read at all; names the file, the line and the remedy."""


@dataclass(frozen=True)
class Table:
    """Records below a header; `kind` describes the form."""

    header: list[str]
    records: list[Record]
    kind: str


def decoded_text(data: bytes, source: str) -> str:
    """Return a text in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, without the mark.

    Raises:
        LedgerError: it is none of these.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
        if text.count("\0") > len(text) // 4:
            raise LedgerError(f"{source}: UTF-16 without a byte-order mark; convert it: iconv -f UTF-16LE -t UTF-8")
        return text
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "save it as UTF-8, or convert it: iconv -f LATIN1 -t UTF-8 (or -f CP1252, -f UTF-16LE, ...)"
        raise LedgerError(f"{source}, line {line}: not {encoding.upper()}; {remedy}") from error


def decoded_lines(data: bytes, source: str) -> list[tuple[int, str]]:
    """Return the non-empty lines of a text with their 1-based numbers, at least one.

    Raises:
        LedgerError: it is no text, or empty.
    """
    # Not splitlines: it also splits at characters that names may hold.
    text = decoded_text(data, source).replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
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


def text_records(lines: Sequence[tuple[int, str]], delimiter: str) -> Iterator[Record]:
    """Split lines into fields; a quoted field may have line breaks."""
    at = 0
    while at < len(lines):
        number, text = lines[at]
        stop = at + 1
        if delimiter != " " and text.count('"') % 2:
            ends = (i for i in range(stop, min(len(lines), stop + _QUOTED_LINES)) if lines[i][1].count('"') % 2)
            stop = next(ends, at) + 1
        yield number, split_line("\n".join(line for _, line in lines[at:stop]), delimiter)
        at = stop


def blank_record(numbered: tuple[int, str]) -> Record:
    """Split a line at blanks that may also lie in its path: up to the last word that ends as a video does."""
    line, text = numbered
    fields = split_line(text, " ")
    begin = 0 if not any(map(ends_as_video, fields)) or not fields[0].lstrip("+-").isdecimal() else 1
    count = next((i for i in range(len(fields), 0, -1) if ends_as_video(fields[i - 1])), 1)
    begin = min(begin, count - 1)
    return line, [*fields[:begin], " ".join(fields[begin:count]), *fields[count:]]


def ends_as_video(word: str) -> bool:
    """Return whether a word ends with a video's suffix."""
    return word[max(word.rfind("."), 0) :].lower() in VIDEO_SUFFIXES


def ignoring_others(columns: Sequence[str], width: int) -> list[str]:
    """Return what ignores the columns of a list without header that --columns does not name."""
    named = {name for one in columns for name in one.partition("=")[2].split(",")}
    return [f"ignore={number}" for i in range(width) if (number := str(i + 1)) not in named]


def json_entries(text: str) -> Any:
    """Return the value of a JSON text, or the list of those of JSON lines; ValueError if it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        lines = re.split("\r\n?|\n", text)  # not splitlines, as in decoded_lines
        return [json.loads(line) for line in lines if line.strip()]


def parquet_table(data: bytes, source: str) -> Table:
    """Return the rows of a Parquet file, without the index of pandas.

    Raises:
        LedgerError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise LedgerError(f"{source}: not a Parquet file that can be read ({error})") from error
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    rows = zip(*(map(value_text, table[name].to_pylist()) for name in names), strict=True)
    return Table(names, [(number, list(row)) for number, row in enumerate(rows, start=1)], "Parquet")


def value_text(value: Any) -> str:
    """Return a value of JSON or Parquet as a list would spell it; nothing for null and NaN."""
    if value is None or value != value:
        return ""
    return BETWEEN.join(map(value_text, value)) if isinstance(value, list) else str(value)


def separate_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels with those apart that one field holds: a list of JSON or Python, or numbers as 1;2, 1|2 or 1,2."""
    apart: list[str] = []
    for label in labels:
        parts = [part.strip() for part in re.split("[;|,]", label)]
        if BETWEEN in label:
            apart += label.split(BETWEEN)
        elif label.startswith("[") and label.endswith("]") and (listed := _literal_list(label)) is not None:
            apart += listed
        else:
            apart += parts if all(map(str.isdecimal, parts)) else [label]
    return tuple(filter(None, apart))


def _literal_list(text: str) -> list[str] | None:
    """Return the words of a list as pandas writes it, ['cut', 'pour']; None if it is none, as [something] is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return [value_text(one) for one in value] if isinstance(value, list) else None
