"""A list of events is read for other programs: any list of spans that `--events` takes ─► seconds and labels.

events = read_events(Path("events.csv"))                    # [Event(name="a.mp4", start_s=2.0, end_s=3.5, ...), ...]
events = [one.in_seconds(25) for one in read_events(Path("video01-phase.txt"))]
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.problems import describe
from preprocess.sources.archives import unpacked
from preprocess.sources.list_records import LedgerError
from preprocess.sources.spans import span_of
from preprocess.sources.video_lists import read_list

# Columns of which the first that is there is the label; EPIC-Kitchens' verbs by their class, since spellings differ.
LABEL_ORDER = ("label", "action", "action_class", "verb_class", "verb")


@dataclass(frozen=True)
class Event:
    """A span of a video, half-open, with a label.

    Attributes:
        name: The video's name as the list has it: a path below a root, or the file's name, with or without suffix.
        start_s: Its beginning, in seconds of the video; NaN if the list counts frames, until `in_seconds`.
        end_s: Its end; infinite = the video's end.
        label: The label's name; "" = none.
        line: Number of the list's line, from 1.
        frames: Its first frame and the one after its last, from 0, if the list counts frames.
    """

    name: str
    start_s: float
    end_s: float
    label: str
    line: int = 0
    frames: tuple[int, int] | None = None

    def in_seconds(self, fps: float) -> "Event":
        """Return the event in seconds of a video with `fps` frames per second; as it is if the list has seconds."""
        if self.frames is None:
            return self
        start_s, end_s = span_of(self.frames, fps)
        return replace(self, start_s=start_s, end_s=end_s, frames=None)


def read_events(path: Path, *, label: str = "") -> list[Event]:
    """Return the events of a list, in its order; a row with more than one label is an event per label.

    Args:
        path: a list in any form that `preprocess.sources.video_lists` reads.
        label: the column of the labels; "" = the first that is there of LABEL_ORDER, or the only one.

    Raises:
        ValueError: A row cannot be read; the message names the file, the line and the value.
    """
    columns = [f"label={label}"] if label else []
    read = read_list(unpacked(path.read_bytes(), path.name), path.name, columns=columns, label_order=LABEL_ORDER)
    if faults := [problem for problem in read.problems if not problem.expected]:
        more = f" ({len(faults) - 1} more rows cannot be read)" if len(faults) > 1 else ""
        raise LedgerError(f"{describe(replace(faults[0], file=str(path)), str(path))}{more}")
    events: list[Event] = []
    for row in read.rows:
        start_s, end_s = (math.nan, math.nan) if row.frames else (row.start_s, row.stop_s)
        name = row.path or (row.name if row.name in row.stems else row.stems[0])
        events += [Event(name, start_s, end_s, one, row.line, row.frames) for one in row.labels or ("",)]
    return events
