"""Lists in the forms in which datasets publish them become rows: Something-Something, ActivityNet, AVA, HMDB51.

Kinetics', EPIC-Kitchens', Charades' and UCF101's lists are tables whose columns `preprocess.sources.columns` knows, or
plain rows of paths and labels.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from preprocess.problems import Problem
from preprocess.sources.folder_labels import split_of

_BRACKETS = str.maketrans("", "", "[]")
_HMDB = re.compile(r"(.+)_test_split[123]\.txt")
_HMDB_SPLITS = {"0": "", "1": "train", "2": "test"}
_KEYFRAME_S = 0.5  # AVA annotates one frame a second; the second around it is the sample


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


def charades_actions(text: str, line: int, row: Callable[[str, float, float], ListRow]) -> list[ListRow | Problem]:
    """Parse Charades' `c092 11.90 21.20;c147 0.00 12.60` into one row per action."""
    parsed: list[ListRow | Problem] = []
    for action in filter(None, map(str.strip, text.split(";"))):
        try:
            label, start, stop = action.split()
            parsed.append(row(label, float(start), float(stop)))
        except ValueError:
            parsed.append(Problem("bad_row", f"{action!r}: not a class and two times", line=line))
    return parsed or [Problem("no_action", "no action in it", line=line, expected=True)]
