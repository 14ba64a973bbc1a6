"""Samples before and after they are encoded, and the files that hold them: plain data, as plans and decoders share it.

A request becomes a `PlannedSample` once it has a number (`preprocess.plan.plan`); `media_files` names what it is read
from; `Facts` are what was stored of it.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from preprocess.plan.settings import Settings

HOOK: Literal["hook"] = "hook"  # the kind of a sample that a source of the user's reads
RATE_SLACK = 1.001  # 30 is not faster than 29.97
NOT_IN_RANGES = "not_in_ranges"  # a remark; for a file behind a URL the reason of a reject
Kind = Literal["frames", "image", "video", "stack", "hook"]


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """A row of the plan; the columns of PLAN_SCHEMA, the stride of frame numbers, and files of a stack."""

    number: int
    shard: int
    kind: Kind
    root: int
    path: str
    name: str
    labels: list[int]
    split: str
    first: int = 0
    stop: int = 0
    start_s: float = 0.0
    stop_s: float = math.inf
    prefix: str = ""
    digits: int = 1
    suffix: str = ""
    gaps: list[int] = field(default_factory=list)
    length_s: float = math.nan
    rate: float = math.nan
    group: str = ""
    file: str = ""
    line: int = -1
    stride: int = 1
    files: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> range:
        """Return the numbers of the frames, before any is thinned out."""
        return range(self.first, self.stop, self.stride)

    @property
    def key(self) -> str:
        """Return the sample's key in its shard: digits only, so that no reader can stumble over a name."""
        return f"{self.number:09d}"


@dataclass(slots=True)
class Request:
    """A sample before it has a number: a planned sample's fields, labels still as words."""

    kind: Kind
    root: int
    path: str
    name: str
    labels: tuple[str, ...]
    file: str
    line: int
    first: int = 0
    stop: int = 0
    start_s: float = 0.0
    stop_s: float = math.inf
    prefix: str = ""
    digits: int = 1
    suffix: str = ""
    gaps: tuple[int, ...] = ()
    length_s: float = math.nan
    rate: float = math.nan
    split: str = ""
    group: str = ""
    stride: int = 1
    files: tuple[str, ...] = ()

    def planned(self) -> PlannedSample:
        """Return the sample without number, shard and labels, to be looked at before there is a plan."""
        names = {field.name for field in dataclasses.fields(self)} - {"labels", "files"}
        fields: dict[str, Any] = {name: getattr(self, name) for name in names} | {"gaps": list(self.gaps)}
        return PlannedSample(number=0, shard=0, labels=[], files=list(self.files), **fields)


@dataclass(frozen=True)
class Facts:
    """The properties of a stored sample; `remark` is (reason, message) if it was not stored as it was."""

    num_frames: int
    first: int  # number of the first frame in the source
    stop: int  # one more than the number of the last
    fps: float  # of the stored frames; NaN = unknown
    start_s: float  # NaN = unknown
    width: int
    height: int
    remark: tuple[str, str] | None = None


def frame_name(prefix: str, digits: int, suffix: str, number: int) -> str:
    """Return the file name of frame `number` in a folder with this template."""
    return f"{prefix}{number:0{digits}d}{suffix}"


def media_files(row: PlannedSample, settings: Settings) -> list[str]:
    """Return the files of a sample, below its root: one, or those of the frames to be stored."""
    if row.files:
        return [row.files[k - row.first] for k in kept_numbers(row, settings)]
    if row.kind != "frames":
        return [row.path]
    folder = f"{row.path}/" if row.path else ""
    numbers = kept_numbers(row, settings)
    if row.gaps:
        gaps = set(row.gaps)
        numbers = [_before(number, gaps, row.stride) for number in numbers]
    return [folder + frame_name(row.prefix, row.digits, row.suffix, number) for number in numbers]


def kept_numbers(row: PlannedSample, settings: Settings) -> list[int]:
    """Return the numbers of the frames to be stored."""
    rate = row.rate if row.kind == "stack" else settings.source_fps and settings.source_fps / row.stride
    return [row.numbers[k] for k in kept_frames(len(row.numbers), source_fps=rate, fps=settings.fps)]


def _before(number: int, gaps: set[int], stride: int) -> int:
    """Return the frame that replaces a missing one."""
    while number in gaps:
        number -= stride
    return number


def kept_frames(num_frames: int, *, source_fps: float | None, fps: float | None) -> list[int]:
    """Return which of `num_frames` frames at `source_fps` remain at `fps`: all, unless the source is faster."""
    if not source_fps or not fps or not source_fps > fps * RATE_SLACK:
        return list(range(num_frames))
    step = source_fps / fps
    return [round(k * step) for k in range(math.ceil(num_frames / step)) if round(k * step) < num_frames]
