"""Lists as datasets publish them become rows: Something-Something, ActivityNet, AVA, HMDB51, Cholec80.

Kinetics', EPIC-Kitchens', Charades' and UCF101's lists are tables whose columns `preprocess.sources.columns` knows, or
plain rows of paths and labels.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from preprocess.problems import Problem
from preprocess.sources.column_names import VIDEO_ROLES, plain, role_of
from preprocess.sources.folder_labels import split_of
from preprocess.sources.list_records import Record
from preprocess.sources.list_tables import ListRow

_BRACKETS = str.maketrans("", "", "[]")
_HMDB = re.compile(r"(.+)_test_split[123]\.txt")
_HMDB_SPLITS = {"0": "", "1": "train", "2": "test"}
_OF_VIDEO = re.compile(r"(.+?)[-_](?:phases?|tools?|steps?)\.txt", re.IGNORECASE)
_FRAME_NAMES = {"frame", "frames", "frame_number", "frame_no", "frame_id", "frame_idx", "frame_index"}
_KEYFRAME_S = 0.5  # AVA annotates one frame a second; the second around it is the sample


Rows = tuple[list[ListRow], list[Problem], str]


def something_something(entries: Sequence[Any]) -> Rows:
    """Parse [{"id": "78687", "label": "...", "template": "Holding [something]"}, ...]; a test set has ids only.

    The label is the template without brackets, as the published file of labels has it.
    """
    rows: list[ListRow] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int) or f"{entry['id']}" == "":
            problems.append(Problem("bad_row", f"entry {number} has no id", "", number))
            continue
        label = str(entry.get("template") or entry.get("label") or "").translate(_BRACKETS)
        name = str(entry["id"])
        rows.append(ListRow(number, "", (label,) if label else (), stems=(name,), name=name))
    return rows, problems, "Something-Something's json"


def activity_net(database: dict[str, Any]) -> Rows:
    """Parse ActivityNet's {video: {"subset": ..., "annotations": [{"segment": [s, s], "label": ...}]}}.

    Kinetics' json has one annotation in place of the list.
    """
    rows: list[ListRow] = []
    problems: list[Problem] = []
    for number, (name, video) in enumerate(database.items(), start=1):
        stems = (f"v_{name}", name)
        try:
            split = split_of(str(video.get("subset", "")))
            annotations = video.get("annotations") or ()
            listed = [annotations] if isinstance(annotations, dict) else annotations
            segments = [(str(one["label"]), one["segment"]) for one in listed]
            spans = [(label, float(start), float(stop)) for label, (start, stop) in segments]
        except (AttributeError, KeyError, TypeError, ValueError):
            problems.append(Problem("bad_row", "its annotations are no [{segment: [start, end], label}]", name, number))
            continue
        for label, start, stop in spans:
            rows.append(ListRow(number, "", (label,), start, stop, split, stems, name))
        if not spans:
            rows.append(ListRow(number, "", split=split, stems=stems, name=name))
    return rows, problems, "ActivityNet's json"


def is_ava(fields: Sequence[str]) -> bool:
    """Return whether a row is AVA's: video, second, a box of four numbers from 0 to 1, action, person."""
    try:
        second, *box, action = map(float, fields[1:7])
    except ValueError:
        return False
    return len(fields) in (7, 8) and second >= 0 and all(0 <= edge <= 1 for edge in box) and action % 1 == 0


def ava(records: Sequence[tuple[int, list[str]]]) -> Rows:
    """Parse AVA's rows: the second around a key frame is a sample, with the actions of all people in it."""
    rows: dict[tuple[str, float], ListRow] = {}
    problems: list[Problem] = []
    for line, fields in records:
        if not is_ava(fields):
            problems.append(Problem("bad_row", "not video, second, box, action, person", fields[0], line))
            continue
        second = float(fields[1])
        span = max(0.0, second - _KEYFRAME_S), second + _KEYFRAME_S
        row = rows.setdefault(
            (fields[0], second), ListRow(line, "", (), *span, stems=(fields[0],), name=f"{fields[0]} at {second:g} s")
        )
        if fields[6] not in row.labels:
            row.labels = tuple(sorted((*row.labels, fields[6]), key=float))
    return list(rows.values()), problems, "AVA's csv, one sample per key frame, boxes are not used"


def hmdb_class(source: str) -> str:
    """Return the class of HMDB51's brush_hair_test_split1.txt; empty for any other name."""
    match = _HMDB.fullmatch(PurePosixPath(source).name)
    return match[1] if match else ""


def hmdb(records: Sequence[tuple[int, list[str]]], label: str) -> Rows:
    """Parse HMDB51's rows `file 1`: 1 is train, 2 is test, 0 is left out."""
    rows: list[ListRow] = []
    problems: list[Problem] = []
    for line, fields in records:
        path, part = " ".join(fields[:-1]), fields[-1]
        if part not in _HMDB_SPLITS or not path:
            problems.append(Problem("bad_row", f"{part!r}: 1 is train, 2 is test, 0 is neither", path, line))
        elif part == "0":
            problems.append(Problem("not_in_split", "0: in neither part of this split", path, line, expected=True))
        else:
            stem = PurePosixPath(path).stem
            rows.append(ListRow(line, "", (label,), split=_HMDB_SPLITS[part], stems=(stem,), name=path))
    return rows, problems, f"HMDB51's split of {label}"


def labelled_video(source: str) -> str:
    """Return the video of Cholec80's video01-phase.txt or video01-tool.txt; empty for any other name."""
    match = _OF_VIDEO.fullmatch(PurePosixPath(source).name)
    return match[1] if match else ""


def is_frame_labels(records: Sequence[Record]) -> bool:
    """Return whether a table has a row per frame of one video: its number, and a label or columns of 0 and 1."""
    (_, header), rows = records[0], [fields for _, fields in records[1:4]]
    if plain(header[0]) not in _FRAME_NAMES or len(header) < 2 or role_of(header[1]) in VIDEO_ROLES:
        return False
    if not rows or not all(row[0].isdecimal() and len(row) == len(header) for row in rows):
        return False
    return len(header) == 2 or all(value in ("0", "1") for row in rows for value in row[1:])


def frame_labels(records: Sequence[Record], source: str) -> Rows:
    """Parse rows of a video's frames; consecutive ones of equal labels are one row. The video has the list's name."""
    header = records[0][1]
    stem = PurePosixPath(source).stem
    stems = tuple(dict.fromkeys((labelled_video(source) or stem, stem)))
    frames: list[tuple[int, int, tuple[str, ...]]] = []  # line, number, labels
    problems: list[Problem] = []
    for line, fields in records[1:]:
        if len(fields) != len(header) or not fields[0].isdecimal():
            problems.append(Problem("bad_row", f"not {', '.join(header)}", fields[0], line))
        elif len(header) > 2 and not {*fields[1:]} <= {"0", "1"}:
            problems.append(Problem("bad_row", f"not 0 or 1 in each of {', '.join(header[1:])}", fields[0], line))
        elif frames and int(fields[0]) <= frames[-1][1]:
            problems.append(Problem("bad_row", f"frame {fields[0]} after frame {frames[-1][1]}", fields[0], line))
        elif len(header) > 2:
            named = zip(header[1:], fields[1:], strict=True)
            frames.append((line, int(fields[0]), tuple(name for name, value in named if value == "1")))
        else:
            frames.append((line, int(fields[0]), tuple(filter(None, fields[1:]))))
    step = min((later[1] - earlier[1] for earlier, later in pairwise(frames)), default=1)
    base = int(step == 1 and bool(frames) and frames[0][1] == 1)  # the number of the video's first frame
    rows: list[ListRow] = []
    for line, number, labels in frames:
        begin, end = number - base, number - base + step
        latest = rows[-1] if rows else None
        if latest and latest.labels == labels and latest.frames and latest.frames[1] == begin:
            latest.frames = latest.frames[0], end
        else:
            rows.append(ListRow(line, "", labels, stems=stems, name=stems[0], frames=(begin, end)))
    every = "every frame" if step == 1 else f"every frame of {step}"
    return rows, problems, f"labels of {every} of {stems[0]} in {len(rows)} spans, frames from {base}"
