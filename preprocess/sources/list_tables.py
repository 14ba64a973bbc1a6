"""Records of lists become rows: by the names of their columns, or by their places: the path, then labels.

    read = named_list(Table(["path", "label"], [(2, ["a.mp4", "cat"])], "commas"), "train.csv", [])
    read.rows[0]                # ListRow(line=2, path='a.mp4', labels=('cat',))

What could be a label as well as a time or a row's number is an error that shows both readings.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from preprocess.problems import Problem
from preprocess.sources.column_names import VIDEO_ROLES, increases, is_between, plain
from preprocess.sources.columns import Columns, describe, read_columns
from preprocess.sources.folder_labels import split_of
from preprocess.sources.ledger import has_control
from preprocess.sources.list_records import LedgerError, Record, Table, ends_as_video, separate_labels

_LOOKED_AT = 1000  # rows that show whether fields could be a span


@dataclass(slots=True)
class ListRow:
    """A row of any list; `path` is empty if the row names a video: its file is the first that exists of `stems`."""

    line: int
    path: str
    labels: tuple[str, ...] = ()
    start_s: float = 0.0
    stop_s: float = math.inf
    split: str = ""
    stems: tuple[str, ...] = ()
    name: str = ""  # for messages, where there is no path
    frames: tuple[int, int] | None = None  # instead of seconds: the first frame, and the one after the last
    frames_too: tuple[int, int] | None = None  # the same beside seconds, which are taken


@dataclass(frozen=True)
class VideoList:
    """A parsed list; `dialect` describes how it was understood."""

    rows: list[ListRow]
    problems: list[Problem]
    dialect: str
    published: bool = False  # Kinetics: many of its videos are gone, and files may be cut to the row's span already
    labels_all: bool = False  # of one video, from its first frame to its last
    without_unit: tuple[str, ...] = ()  # columns of times that are read as seconds, and may be frames


def named_list(
    table: Table, source: str, given: Sequence[str], *, shown: bool = True, label_order: Sequence[str] = ()
) -> VideoList:
    """Return the rows of a table whose header names the columns."""
    columns = read_columns(table.header, given, source=source, records=table.records, label_order=label_order)
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
    dialect = f"{source}: {said}, {len(table.records)} rows"
    return VideoList(rows, problems, dialect, published, without_unit=without_unit)


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
    return _charades_actions(listed, line, lambda label, start, stop: row((label,), start, stop))  # type: ignore[arg-type, return-value]


def _charades_actions(text: str, line: int, row: Callable[[str, float, float], ListRow]) -> list[ListRow | Problem]:
    """Parse Charades' `c092 11.90 21.20;c147 0.00 12.60` into one row per action."""
    parsed: list[ListRow | Problem] = []
    for action in filter(None, map(str.strip, text.split(";"))):
        try:
            label, start, stop = action.split()
            parsed.append(row(label, float(start), float(stop)))
        except ValueError:
            parsed.append(Problem("bad_row", f"{action!r}: not a class and two times", line=line))
    return parsed or [Problem("no_action", "no action in it", line=line, expected=True)]


def bare_list(records: Sequence[Record], source: str, kind: str) -> VideoList:
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
