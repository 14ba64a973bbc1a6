"""The bytes of a list become records, in any form: text, JSON, JSON lines or Parquet ─► fields as words.

records = list(text_records(decoded_lines(data, "train.csv"), ","))       # [(line, ["a.mp4", "cut"]), ...]
table = parquet_table(data, "train.parquet")                              # header, records
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mae3d.video.container import VIDEO_SUFFIXES
from preprocess.sources.ledger import LedgerError, split_line

ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BETWEEN = "\x1f"  # between the labels of a list in JSON or Parquet, in the one field that they become
_QUOTED_LINES = 100  # most lines that one row with line breaks in quotes may take

Record = tuple[int, list[str]]  # a row's first line, and its fields


@dataclass(frozen=True)
class Table:
    """Records below a header; `kind` describes the form."""

    header: list[str]
    records: list[Record]
    kind: str


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


def json_entries(text: str) -> Any:
    """Return the value of a JSON text, or the list of those of JSON lines; ValueError if it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


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
    return _BETWEEN.join(map(value_text, value)) if isinstance(value, list) else str(value)


def separate_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels with those apart that one field holds: a list of JSON, or numbers such as 1;2 and 1|2."""
    apart: list[str] = []
    for label in labels:
        parts = [part.strip() for part in label.replace("|", ";").split(";")]
        apart += label.split(_BETWEEN) if _BETWEEN in label else parts if all(map(str.isdecimal, parts)) else [label]
    return tuple(filter(None, apart))
