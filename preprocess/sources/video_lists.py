"""Lists of videos are parsed into rows: the file, the part of it, its labels and split.

    read = read_list(data, "train.csv")
    print(read.dialect)         # train.csv: commas, a header (path, label), 7 rows
    read.rows[0]                # ListRow(line=2, path='a.mp4', labels=('cat',))

Understood are rows `path`, `path label ...`, `path,label` or `label path`, quoted or not; tables whose header names the
columns (`preprocess.sources.columns`), as text, JSON, JSON lines or Parquet; and lists in the forms in which datasets
publish them (`preprocess.sources.published_lists`), some of whose rows name a video, not a file: `stems` are the names,
without suffix, that its file may have.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from preprocess.problems import Problem
from preprocess.sources.column_names import VIDEO_ROLES, increases, is_between, plain, role_of
from preprocess.sources.columns import Columns, describe, read_columns
from preprocess.sources.folder_labels import split_of
from preprocess.sources.ledger import has_control
from preprocess.sources.list_records import (
    ARCHIVES,
    DELIMITERS,
    Delimiter,
    Header,
    LedgerError,
    Record,
    Table,
    blank_record,
    decoded_lines,
    decoded_text,
    delimiter_name,
    ends_as_video,
    ignoring_others,
    json_entries,
    parquet_table,
    separate_labels,
    sniff_delimiter,
    split_line,
    text_records,
    value_text,
)
from preprocess.sources.published_lists import (
    ListRow,
    activity_net,
    ava,
    charades_actions,
    hmdb,
    hmdb_class,
    is_ava,
    something_something,
)

_LOOKED_AT = 1000  # rows that show whether fields could be a span


@dataclass(frozen=True)
class VideoList:
    """A parsed list; `dialect` describes how it was understood."""

    rows: list[ListRow]
    problems: list[Problem]
    dialect: str
    published: bool = False  # Kinetics: many of its videos are gone, and files may be cut to the row's span already
    without_unit: tuple[str, ...] = ()  # columns of times that are read as seconds, and may be frames


def read_list(
    data: bytes,
    source: str,
    *,
    delimiter: Delimiter = "auto",
    header: Header = "auto",
    columns: Sequence[str] = (),
) -> VideoList:
    """Read a list in the dialect that its lines show.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        delimiter: between the fields; by default what the first row shows.
        header: whether the first row names the columns; by default if it has a column that is called path or the like.
        columns: what --columns says of the columns: role=NAME, or role=NUMBER in a list without a header.

    Raises:
        LedgerError: it is no list, or a column of it can be read in two ways.
        ValueError: `columns` has no such form.
    """
    if kind := next((name for magic, name in ARCHIVES.items() if data.startswith(magic)), ""):
        raise LedgerError(f"{source}: {kind} data; unpack it, and give the folder or the .tar that comes out")
    if data[:4] == b"PAR1":
        return _named_list(parquet_table(data, source), source, columns)
    if (entries := _json(decoded_text(data, source), source)) is not None:
        return _json_list(entries, source, columns)
    lines = decoded_lines(data, source)
    num_comments = sum(_is_comment(text) for _, text in lines)
    lines = [(number, text) for number, text in lines if not _is_comment(text)]
    if not lines:
        raise LedgerError(f"{source}: only comments; rows are `path label`")
    character = DELIMITERS[delimiter] if delimiter != "auto" else sniff_delimiter(lines[0][1])
    records = list(text_records(lines, character))
    comments = f", {num_comments} comments" if num_comments else ""
    if label := hmdb_class(source):
        return _finished(hmdb(records, label), source, len(records))
    if header != "yes" and character == "," and not columns and all(is_ava(fields) for _, fields in records[:3]):
        return _finished(ava(records), source, len(records))
    if _has_header(records, header, columns):
        if character == " ":  # blanks lie within paths as well: columns cannot be distinguished
            names = [plain(name) for name in records[0][1]]
            if columns or names[:1] != ["path"] or set(names[1:]) - {"label"}:
                raise LedgerError(f"{source}, line 1: columns between blanks are ambiguous; separate them by commas")
            kind = f"spaces, a header ({', '.join(names)}){comments}"
            return _bare_list([blank_record(one) for one in lines[1:]], source, kind)
        table = Table(records[0][1], records[1:], f"{delimiter_name(character)}{comments}")
        return _named_list(table, source, columns)
    kind = f"{delimiter_name(character)}, no header{comments}"
    if columns:
        width = max(len(fields) for _, fields in records)
        numbered = Table([str(i + 1) for i in range(width)], records, kind)
        return _named_list(numbered, source, [*columns, *ignoring_others(columns, width)], shown=False)
    if character == " ":
        records = [blank_record(one) for one in lines]
    return _bare_list(records, source, kind)


def _is_comment(text: str) -> bool:
    return text.startswith("#")


def _has_header(records: Sequence[Record], header: Header, columns: Sequence[str]) -> bool:
    """Return whether the first row names the columns: by a known name, or because a file is below it, and not in it."""
    first = records[0][1]
    if header != "auto":
        return header == "yes"
    if any(ends_as_video(field) for field in first):
        return False
    named = {name for one in columns for name in one.partition("=")[2].split(",") if not name.isdecimal()}
    if named.intersection(first):
        return True
    roles = list(map(role_of, first))
    if roles[0] in VIDEO_ROLES or (len(first) > 1 and any(roles)):
        return True
    second = records[1][1] if len(records) > 1 else []
    return len(first) == len(second) > 1 and any(map(ends_as_video, second))


def _named_list(table: Table, source: str, given: Sequence[str], *, shown: bool = True) -> VideoList:
    """Return the rows of a table whose header names the columns."""
    columns = read_columns(table.header, given, source=source, records=table.records)
    if not columns.at.keys() & set(VIDEO_ROLES):
        raise LedgerError(
            f"{source}, line 1: no column is called path; understood: {describe(columns.at, table.header)}. "
            "Name it as in --columns path=COLUMN, or give --header no"
        )
    published = {"youtube_id", "start_s", "stop_s"} <= columns.at.keys()
    parsed: list[ListRow | Problem] = []
    for line, fields in table.records:
        parsed += _named_rows(line, fields, columns)
    rows, problems = _distinct(parsed, source)
    said = f"{table.kind}, a header ({', '.join(map(plain, table.header))})" if shown else table.kind
    if published:
        said = "Kinetics' csv"
    if given or (columns.ignored and not published):
        said += f", read as {describe({k: v for k, v in columns.at.items() if k != 'ignore'}, table.header)}"
    if columns.ignored and not published:
        said += f", ignored: {', '.join(columns.ignored)}"
    if not table.records:
        raise LedgerError(f"{source}: no row, only a header; rows are `path label`")
    names = [table.header[columns.at[role][0]] for role in ("start_s", "stop_s") if role in columns.at]
    without_unit = tuple(names) if columns.without_unit and not published else ()
    return VideoList(rows, problems, f"{source}: {said}, {len(table.records)} rows", published, without_unit)


def _named_rows(line: int, fields: Sequence[str], columns: Columns) -> list[ListRow | Problem]:
    """Return the samples of one record: one, or one per action that it lists."""
    path, name = columns.one("path", fields), columns.one("video_id", fields)
    if len(fields) > len(columns.names):
        count = f"{len(fields)} columns, the header has {len(columns.names)}"
        return [Problem("bad_row", count, path or name or fields[0], line)]
    labels, split = separate_labels(columns.all("label", fields)), split_of(columns.one("split", fields))
    try:
        span, frames = columns.span_s(fields), columns.frames(fields)
    except ValueError as error:
        return [Problem("bad_row", str(error), path or name, line)]

    def row(labels: tuple[str, ...], start_s: float, stop_s: float) -> ListRow | Problem:
        if "youtube_id" in columns.at:
            youtube_id = columns.one("youtube_id", fields)
            if not youtube_id:
                return Problem("bad_row", "no youtube_id", line=line)
            cut = f"{youtube_id}_{span[0]:06.0f}_{span[1]:06.0f}" if math.isfinite(span[1]) else youtube_id
            return ListRow(line, "", labels, start_s, stop_s, split, (cut, youtube_id), cut)
        made = _row(line, path or name, labels, split)
        if isinstance(made, ListRow):
            made.start_s, made.stop_s = start_s, stop_s
            made.frames, made.frames_too = (None, frames) if columns.has_seconds(fields) else (frames, None)
        return made

    if "actions" not in columns.at:
        return [row(labels, *span)]
    listed = columns.one("actions", fields)
    return charades_actions(listed, line, lambda label, start, stop: row((label,), start, stop))  # type: ignore[arg-type, return-value]


def _bare_list(records: Sequence[Record], source: str, kind: str) -> VideoList:
    """Return the rows of a list without names for its columns: the path, then labels; or labels, then the path."""
    if not records:
        raise LedgerError(f"{source}: no row, only a header; rows are `path label`")
    position, first_label, said = _path_position(records, source)
    _check_labels(records, position, first_label, source)
    parsed: list[ListRow | Problem] = []
    for line, fields in records:
        path = fields[position] if position < len(fields) else ""
        labels = [field for i, field in enumerate(fields) if i >= first_label and i != position and field]
        parsed.append(_row(line, path, separate_labels(labels), ""))
    rows, problems = _distinct(parsed, source)
    return VideoList(rows, problems, f"{source}: {kind}{said}, {len(records)} rows")


def _path_position(records: Sequence[Record], source: str) -> tuple[int, int, str]:
    """Return the position of the path in every record, that of the first label, and a note if the path is not first.

    Raises:
        LedgerError: the field before the path could be a row's number or its label.
    """
    first = records[0][1]
    if ends_as_video(first[0]) or not any(map(ends_as_video, first)):
        return 0, 0, ""
    position = next(i for i, field in enumerate(first) if ends_as_video(field))
    counted = [fields[0] for _, fields in records]
    counts = [[str(begin + i) for i in range(len(records))] for begin in (0, 1)]
    if position == 1 and counted in counts and len(records) > 1:
        if len(first) == 2:
            raise LedgerError(
                f"{source}: the numbers before the paths count the rows, and could be labels as well; "
                "say which, as in --columns path=2 label=1, or --columns path=2"
            )
        return position, 1, ", an index before the path"
    return position, 0, ", the label before the path"


def _check_labels(records: Sequence[Record], position: int, first_label: int, source: str) -> None:
    """Raise LedgerError if fields in the place of labels are times, or could be the frames of a span."""
    shown = records[:_LOOKED_AT]
    width = len(shown[0][1])
    fields = [i for i in range(first_label, width) if i != position]
    steady = all(len(row) == width for _, row in shown)
    values = {i: [row[i] if i < len(row) else "" for _, row in shown] for i in fields}
    pairs = [i for i in fields[:-1] if i + 1 in values and increases(values[i], values[i + 1])]
    time = next(((i, field) for i in fields for field in values[i] if is_between(field)), None)
    if time is None and not (pairs and steady and len({row[position] for _, row in shown}) < len(shown)):
        return
    others = ",".join(str(i + 1) for i in fields if i not in (*pairs[:1], *(i + 1 for i in pairs[:1])))
    label = f" label={others}" if others else ""
    if time is None:
        unit = f"start_frame={pairs[0] + 1} end_frame={pairs[0] + 2}"
        reading = f"--columns path={position + 1} {unit}{label}, or as labels in --columns path={position + 1} label="
        raise LedgerError(
            f"{source}: fields {pairs[0] + 1} and {pairs[0] + 2} increase in every row of videos with several rows: "
            f"they could be a span, as in {reading}{','.join(str(i + 1) for i in fields)}"
        )
    ids = ",".join(str(i + 1) for i in fields if not any(map(is_between, values[i])))
    label = f" label={others if pairs else ids}" if (others if pairs else ids) else ""
    span = f" start={pairs[0] + 1} end={pairs[0] + 2}" if pairs else ""
    raise LedgerError(
        f"{source}: field {time[0] + 1}, {time[1]!r}, is no label; say what the fields are, as in --columns "
        f"path={position + 1}{span}{label} (those that are not named are ignored)"
    )


def _row(line: int, path: str, labels: tuple[str, ...], split: str) -> ListRow | Problem:
    if not path or has_control(path):
        return Problem("unsafe_name", f"{path!r} names no file", path, line)
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    # A name without a video's suffix may be a file as well: what exists decides.
    stem = path.replace("\\", "/").rstrip("/")
    stems = () if ends_as_video(path) else (stem,)
    return ListRow(line, path, labels, split=split, stems=stems)


def _distinct(parsed: Iterable[ListRow | Problem], source: str) -> tuple[list[ListRow], list[Problem]]:
    """Separate rows from problems; a row that is the same as an earlier one is a problem."""
    rows: list[ListRow] = []
    problems: list[Problem] = []
    seen: dict[tuple[object, ...], int] = {}
    for row in parsed:
        if isinstance(row, ListRow):
            earlier = seen.setdefault((row.path or row.name, row.labels, row.start_s, row.stop_s, row.frames), row.line)
            if earlier != row.line:
                row = Problem("duplicate_row", f"the same as line {earlier}", row.path or row.name, row.line, source)
        if isinstance(row, ListRow):
            rows.append(row)
        else:
            problems.append(row)
    return rows, problems


def _finished(parsed: tuple[list[ListRow], list[Problem], str], source: str, count: int) -> VideoList:
    rows, problems, kind = parsed
    return VideoList(rows, problems, f"{source}: {kind}, {count} rows")


def _json(text: str, source: str) -> Any:
    """Return the value of a list in JSON or JSON lines; None if it is another text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json_entries(text)
    except ValueError as error:
        line = next(filter(str.strip, text.splitlines()))
        if any(map(ends_as_video, split_line(line, sniff_delimiter(line)))):  # a file may be called [a] b.mp4
            return None
        raise LedgerError(f"{source}: not JSON ({error})") from error


def _json_list(entries: Any, source: str, columns: Sequence[str]) -> VideoList:
    """Parse a list of objects, paths or rows, {path: label}, Something-Something's list or ActivityNet's database."""
    if isinstance(entries, dict):
        database = entries.get("database", entries)
        values = list(database.values()) if isinstance(database, dict) else []
        if values and all(isinstance(one, dict) for one in values):
            if "database" in entries or all("annotations" in one for one in values):
                return _finished(activity_net(database), source, len(database))
            entries = [{"video_id": name, **one} for name, one in database.items()]
        elif values and all(map(ends_as_video, entries)):
            entries = [list(pair) for pair in entries.items()]
        else:
            entries = [entries]
    if not isinstance(entries, list) or not entries or entries == [{}]:
        raise LedgerError(f"{source}: not a list of videos; expected [{{'path': ..., 'label': ...}}, ...]")
    if all(isinstance(entry, str | list) and entry for entry in entries):
        rows = [[entry] if isinstance(entry, str) else list(map(value_text, entry)) for entry in entries]
        return _bare_list(list(enumerate(rows, start=1)), source, "JSON")
    objects = [entry for entry in entries if isinstance(entry, dict)]
    names = list(dict.fromkeys(name for entry in objects for name in entry))
    if not columns and not {*VIDEO_ROLES}.intersection(map(role_of, names)) and "id" in names:
        return _finished(something_something(entries), source, len(entries))
    records = [
        (number, [value_text(entry.get(name)) if isinstance(entry, dict) else "" for name in names])
        for number, entry in enumerate(entries, start=1)
    ]
    return _named_list(Table(names, records, "JSON"), source, columns)
