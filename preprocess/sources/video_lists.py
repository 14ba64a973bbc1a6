"""Lists of videos are parsed into rows: the file, the part of it, its labels and split.

    read = read_list(data, "train.csv")
    print(read.dialect)         # train.csv: commas, a header (path, label), 7 rows
    read.rows[0]                # ListRow(line=2, path='a.mp4', labels=('cat',))

Understood are rows `path`, `path label ...`, `path,label` or `path, label`, quoted or not; columns that a header names
(path, label, start, end, split, in any order); and two lists as they are published: Kinetics' csv and
Something-Something's json, whose rows name a video, not a file: `stems` are the names, without suffix, that its file
may have.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mae3d.video.container import VIDEO_SUFFIXES
from preprocess.problems import Problem
from preprocess.sources.folder_labels import split_of
from preprocess.sources.ledger import (
    DELIMITERS,
    Delimiter,
    Header,
    LedgerError,
    decoded_lines,
    delimiter_name,
    has_control,
    sniff_delimiter,
    split_line,
)

_COLUMNS = {  # what a header may call them
    **dict.fromkeys(
        ("path", "video", "file", "filename", "file_name", "name", "video_path", "video_name", "url"), "path"
    ),
    **dict.fromkeys(("label", "labels", "class", "category", "target", "label_name"), "label"),
    **dict.fromkeys(("start", "start_s", "start_time", "time_start", "start_seconds", "begin"), "start"),
    **dict.fromkeys(("stop", "end", "stop_s", "end_s", "end_time", "time_end", "end_seconds"), "stop"),
    **dict.fromkeys(("split", "subset", "partition"), "split"),
    "youtube_id": "youtube_id",
}
_PUBLISHED_LABEL = str.maketrans("", "", "[]")


@dataclass(slots=True)
class ListRow:
    """A row; `path` is empty if the row names a video: its file is the first that exists of `stems`."""

    line: int
    path: str
    labels: tuple[str, ...] = ()
    start_s: float = 0.0
    stop_s: float = math.inf
    split: str = ""
    stems: tuple[str, ...] = ()
    name: str = ""  # for messages, where there is no path


@dataclass(frozen=True)
class VideoList:
    """A parsed list; `dialect` describes how it was understood."""

    rows: list[ListRow]
    problems: list[Problem]
    dialect: str
    published: bool = False  # Kinetics: many of its videos are gone, and files may be cut to the row's span already


def read_list(data: bytes, source: str, *, delimiter: Delimiter = "auto", header: Header = "auto") -> VideoList:
    """Read a list in the dialect that its lines show.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        delimiter: between the fields; by default what the first row shows.
        header: whether the first row names the columns; by default if it has a column that is called path or the like.

    Raises:
        LedgerError: not UTF-8, not JSON though it begins so, or empty.
    """
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        return _something_something(data, source)
    lines = decoded_lines(data, source)
    character = DELIMITERS[delimiter] if delimiter != "auto" else sniff_delimiter(lines[0][1])
    first = [field.lower() for field in split_line(lines[0][1], character)]
    columns = [_COLUMNS.get(field, field) for field in first]
    known = {"path", "youtube_id"}.intersection(columns)
    parse: Callable[[int, str], ListRow | Problem] = lambda line, text: _bare_row(line, text, character)  # noqa: E731
    has_header = header == "yes" or (header == "auto" and bool(known))
    published = False
    if has_header:
        lines = lines[1:]
        if not known:
            raise LedgerError(f"{source}, line 1: no column is called path; name it, or give --header no")
        published = {"youtube_id", "start", "stop"}.issubset(columns)
        if character == " ":  # blanks lie within paths as well: columns cannot be distinguished
            if columns[:1] != ["path"] or set(columns[1:]) - {"label"}:
                raise LedgerError(f"{source}, line 1: columns between blanks are ambiguous; separate them by commas")
        else:
            parse = lambda line, text: _named_row(line, split_line(text, character), columns)  # noqa: E731
    rows: list[ListRow] = []
    problems: list[Problem] = []
    seen: dict[tuple[object, ...], int] = {}
    for line, text in lines:
        row = parse(line, text)
        if isinstance(row, ListRow):
            identity = (row.path or row.name, row.labels, row.start_s, row.stop_s)
            earlier = seen.setdefault(identity, line)
            if earlier != line:
                row = Problem("duplicate_row", f"the same as line {earlier}", row.path or row.name, line, source)
        if isinstance(row, ListRow):
            rows.append(row)
        else:
            problems.append(row)
    if not lines:
        raise LedgerError(f"{source}: no row, only a header; rows are `path label`")
    shown = f"a header ({', '.join(first)})" if has_header else "no header"
    kind = "Kinetics' csv, " if published else f"{delimiter_name(character)}, {shown}, "
    return VideoList(rows, problems, f"{source}: {kind}{len(lines)} rows", published)


def _bare_row(line: int, text: str, delimiter: str) -> ListRow | Problem:
    fields = split_line(text, delimiter)
    if delimiter == " ":
        # Blanks in a path: up to the last word that ends as a video does.
        ends = (i for i in range(len(fields), 0, -1) if _ends_as_video(fields[i - 1]))
        count = next(ends, 1)
        fields = [" ".join(fields[:count]), *fields[count:]]
    return _row(line, fields[0], fields[1:])


def _ends_as_video(word: str) -> bool:
    return word[max(word.rfind("."), 0) :].lower() in VIDEO_SUFFIXES


def _named_row(line: int, fields: Sequence[str], columns: Sequence[str]) -> ListRow | Problem:
    if len(fields) > len(columns):
        return Problem("bad_row", f"{len(fields)} columns, the header has {len(columns)}", fields[0], line)
    pairs = list(zip(columns, fields, strict=False))
    one = {column: field for column, field in reversed(pairs) if field}
    labels = [field for column, field in pairs if column == "label"]
    start, stop = one.get("start", "0"), one.get("stop", "inf")
    try:
        span = float(start), float(stop)
    except ValueError:
        return Problem("bad_row", f"{start!r} to {stop!r}: not seconds", one.get("path", ""), line)
    if not 0 <= span[0] < span[1]:
        return Problem("bad_row", f"{start} s to {stop} s: negative or reversed", one.get("path", ""), line)
    split = split_of(one.get("split", ""))
    if "youtube_id" not in columns:
        return _row(line, one.get("path", ""), labels, span, split)
    youtube_id = one.get("youtube_id", "")
    if not youtube_id:
        return Problem("bad_row", "no youtube_id", line=line)
    cut = f"{youtube_id}_{span[0]:06.0f}_{span[1]:06.0f}" if math.isfinite(span[1]) else youtube_id
    return ListRow(line, "", tuple(filter(None, labels)), *span, split, (cut, youtube_id), cut)


def _row(
    line: int, path: str, labels: Sequence[str], span: tuple[float, float] = (0.0, math.inf), split: str = ""
) -> ListRow | Problem:
    if not path or has_control(path):
        return Problem("unsafe_name", f"{path!r} names no file", path, line)
    return ListRow(line, path, tuple(filter(None, labels)), *span, split)


def _something_something(data: bytes, source: str) -> VideoList:
    """Parse [{"id": "78687", "label": "...", "template": "Holding [something]"}, ...]; a test set has ids only.

    The label is the template without brackets, as the published file of labels has it.
    """
    try:
        entries = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise LedgerError(f"{source}: not JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise LedgerError(f"{source}: not a list of videos; expected [{{'id': ..., 'template': ...}}, ...]")
    rows: list[ListRow] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int) or f"{entry['id']}" == "":
            problems.append(Problem("bad_row", f"entry {number} has no id", "", number))
            continue
        label = str(entry.get("template") or entry.get("label") or "").translate(_PUBLISHED_LABEL)
        name = str(entry["id"])
        rows.append(ListRow(number, "", (label,) if label else (), stems=(name,), name=name))
    return VideoList(rows, problems, f"{source}: Something-Something's json, {len(entries)} rows")
