"""A list of events becomes rows: spans of videos, each with a label.

events = read_events(Path("events.csv"))      # name,start_s,end_s,label
"""

import csv
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("name", "start_s", "end_s", "label")


@dataclass(frozen=True)
class Event:
    """A span of a video, half-open, with a label.

    Attributes:
        name: The video's name as the list has it: a path below a root, or the file's name, with or without suffix.
        start_s: Its beginning, in seconds of the video.
        end_s: Its end.
        label: The label's name.
        line: Number of the list's line, from 1.
    """

    name: str
    start_s: float
    end_s: float
    label: str
    line: int = 0


def read_events(path: Path) -> list[Event]:
    """Return the events of a list, in its order.

    Raises:
        ValueError: A row cannot be read; the message names the file, the line and the value.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"{path}: line 1: no column {', '.join(missing)}: give {','.join(COLUMNS)}")
        return [
            Event(row["name"], float(row["start_s"]), float(row["end_s"]), row["label"], rows.line_num) for row in rows
        ]
