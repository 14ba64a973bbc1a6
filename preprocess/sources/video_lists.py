"""Lists of videos are parsed into rows: the file, the part of it, its labels and split.

    read = read_list(data, "train.csv")
    print(read.dialect)         # train.csv: commas, a header (path, label), 7 rows
    read.rows[0]                # ListRow(line=2, path='a.mp4', labels=('cat',))

Understood are rows `path`, `path label ...`, `path,label` or `label path`, quoted or not; tables whose header names the
columns (`preprocess.sources.columns`), as text, JSON, JSON lines or Parquet; and lists in the forms in which datasets
publish them (`preprocess.sources.published_lists`), some of whose rows name a video, not a file: `stems` are the names,
without suffix, that its file may have.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from preprocess.problems import Problem
from preprocess.sources.archives import list_name
from preprocess.sources.column_names import VIDEO_ROLES, plain, role_of
from preprocess.sources.list_records import (
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
    sniff_delimiter,
    split_line,
    text_records,
    value_text,
)
from preprocess.sources.list_tables import ListRow, VideoList, bare_list, named_list
from preprocess.sources.published_lists import (
    activity_net,
    ava,
    frame_labels,
    hmdb,
    hmdb_class,
    is_ava,
    is_frame_labels,
    something_something,
)


def read_list(
    data: bytes,
    source: str,
    *,
    delimiter: Delimiter = "auto",
    header: Header = "auto",
    columns: Sequence[str] = (),
    label_order: Sequence[str] = (),
) -> VideoList:
    """Read a list in the dialect that its lines show.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        delimiter: between the fields; by default what the first row shows.
        header: whether the first row names the columns; by default if it has a column that is called path or the like.
        columns: what --columns says of the columns: role=NAME, or role=NUMBER in a list without a header.
        label_order: columns of which the first that a header has is the label, unless `columns` says so.

    Raises:
        LedgerError: it is no list, or a column of it can be read in two ways.
        ValueError: `columns` has no such form.
    """
    if data[:4] == b"PAR1":
        return named_list(parquet_table(data, source), source, columns, label_order=label_order)
    if (entries := _json(decoded_text(data, source), source)) is not None:
        return _json_list(entries, source, columns, label_order)
    lines = decoded_lines(data, source)
    num_comments = sum(_is_comment(text) for _, text in lines)
    lines = [(number, text) for number, text in lines if not _is_comment(text)]
    if not lines:
        raise LedgerError(f"{source}: only comments; rows are `path label`")
    character = DELIMITERS[delimiter] if delimiter != "auto" else sniff_delimiter(lines[0][1])
    records = list(text_records(lines, character))
    comments = f", {num_comments} comments" if num_comments else ""
    name = list_name(source)
    if label := hmdb_class(name):
        return _finished(hmdb(records, label), source, len(records))
    if header != "yes" and character == "," and not columns and all(is_ava(fields) for _, fields in records[:3]):
        return _finished(ava(records), source, len(records))
    if header != "no" and not columns and is_frame_labels(records):
        return replace(_finished(frame_labels(records, name), source, len(records) - 1), labels_all=True)
    if _has_header(records, header, columns):
        if character == " ":  # blanks lie within paths as well: columns cannot be distinguished
            names = [plain(name) for name in records[0][1]]
            if columns or names[:1] != ["path"] or set(names[1:]) - {"label"}:
                raise LedgerError(f"{source}, line 1: columns between blanks are ambiguous; separate them by commas")
            kind = f"spaces, a header ({', '.join(names)}){comments}"
            return bare_list([blank_record(one) for one in lines[1:]], source, kind)
        table = Table(records[0][1], records[1:], f"{delimiter_name(character)}{comments}")
        return named_list(table, source, columns, label_order=label_order)
    kind = f"{delimiter_name(character)}, no header{comments}"
    if columns:
        width = max(len(fields) for _, fields in records)
        numbered = Table([str(i + 1) for i in range(width)], records, kind)
        return named_list(numbered, source, [*columns, *ignoring_others(columns, width)], shown=False)
    if character == " ":
        records = [blank_record(one) for one in lines]
    return bare_list(records, source, kind)


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


def _json_list(entries: Any, source: str, columns: Sequence[str], label_order: Sequence[str]) -> VideoList:
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
        return bare_list(list(enumerate(rows, start=1)), source, "JSON")
    objects = [entry for entry in entries if isinstance(entry, dict)]
    names = list(dict.fromkeys(name for entry in objects for name in entry))
    if not columns and not {*VIDEO_ROLES}.intersection(map(role_of, names)) and "id" in names:
        return _finished(something_something(entries), source, len(entries))
    records = [
        (number, [value_text(entry.get(name)) if isinstance(entry, dict) else "" for name in names])
        for number, entry in enumerate(entries, start=1)
    ]
    return named_list(Table(names, records, "JSON"), source, columns, label_order=label_order)
