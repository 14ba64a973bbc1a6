"""What is asked for ─► the plan: which sample is read from where and goes to which shard.

In: a ledger over frame folders, video files and lists of them, or images. Out: `Plan`, made once and kept as
plan.parquet; everything after it is a function of the plan and the settings, so that any worker, today or
after a crash, writes the same bytes.

    plan = make_plan(source.find(), source=source.list_name, settings=settings, asked={...})
    write_plan(plan, out / "plan.parquet")
    plan = read_plan(out / "plan.parquet")
    plan.shard(0)                                   # list[PlannedSample]

Samples are numbered in the order of the ledger, the list or the sorted folder; the number is the key. Long
sources are cut into even pieces (`segment_seconds`, `segment_frames`). Rows that cannot be used are kept as
problems.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.files import replace_file
from preprocess.index import DatasetError
from preprocess.problems import Problem, describe

_PLAN_FIELDS: list[Any] = [
    pa.field("number", pa.int64()),
    pa.field("shard", pa.int32()),
    pa.field("kind", pa.string()),  # "frames", "image" or "video"
    pa.field("root", pa.int32()),  # position among the roots given on the command line
    pa.field("path", pa.string()),  # below the root
    pa.field("name", pa.string()),
    pa.field("labels", pa.list_(pa.int32())),
    pa.field("split", pa.string()),
    pa.field("first", pa.int64()),  # frames: file numbers first <= i < stop; an image: 0 and 1
    pa.field("stop", pa.int64()),
    pa.field("start_s", pa.float64()),  # video: the span start_s <= t < stop_s; frames: the time of `first`
    pa.field("stop_s", pa.float64()),
    pa.field("prefix", pa.string()),  # frames: how the files are named
    pa.field("digits", pa.int32()),
    pa.field("suffix", pa.string()),
    pa.field("file", pa.string()),  # the ledger or list that asked for it; the video itself if no list did
    pa.field("line", pa.int32()),  # -1 = none
]
PLAN_SCHEMA = pa.schema(_PLAN_FIELDS)
_SHARDS_OF_A_SMALL_SET = 16
_SMALLEST_SHARD = 16


@dataclass(frozen=True)
class Settings:
    """What a build is asked for; two builds with equal settings and input write equal bytes."""

    short_side: int = 256
    quality: int = 90
    fps: float | None = None
    source_fps: float | None = None
    segment_seconds: float | None = None
    segment_frames: int | None = None
    shard_size: int | None = None  # samples; None = 1000, fewer for small sets, to get some 16 shards
    split: str = ""

    def __post_init__(self) -> None:
        for name in ("short_side", "fps", "source_fps", "segment_seconds", "segment_frames", "shard_size"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value} must be more than 0")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality = {self.quality} must be 1 to 100 (75 to 95 make sense)")
        if self.segment_seconds and self.segment_frames:
            raise ValueError("segment_seconds and segment_frames exclude each other; give one")


@dataclass(frozen=True)
class PlannedSample:
    """One row of the plan; the columns of PLAN_SCHEMA."""

    number: int
    shard: int
    kind: Literal["frames", "image", "video"]
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
    file: str = ""
    line: int = -1

    @property
    def key(self) -> str:
        """The sample's key in its shard: digits only, so that no reader can stumble over a name."""
        return f"{self.number:09d}"


@dataclass(frozen=True)
class Request:
    """A sample before it has a number: a planned sample's fields, labels still as words."""

    kind: Literal["frames", "image", "video"]
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


@dataclass(frozen=True)
class Found:
    """What a look at the input gave; `notes` are lines for the summary."""

    requests: list[Request]
    problems: list[Problem]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Plan:
    """All samples of a dataset, and what could not become one."""

    rows: pa.Table
    problems: tuple[Problem, ...]
    source: str  # file name of the ledger or list, for rejected.parquet; "" if there are several
    label_names: tuple[str, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_shards(self) -> int:
        return self.rows["shard"][-1].as_py() + 1 if len(self.rows) else 0

    def shard(self, number: int) -> list[PlannedSample]:
        """The samples of one shard, in order."""
        rows = self.rows.filter(pc.field("shard") == number)
        return [PlannedSample(**row) for row in rows.to_pylist()]


def make_plan(found: Found, *, source: str, settings: Settings, asked: dict[str, Any]) -> Plan:
    """Numbers the samples, gives words among the labels their ids, and deals the samples out to shards.

    Args:
        found: the requests, in the order that the dataset is to have, and what could not be requested.
        source: the name of the ledger or list.
        settings: of which the shard size and the split count here.
        asked: what makes two builds the same, for `settings` in dataset.json.

    Raises:
        DatasetError: no sample is left.
    """
    requests = found.requests
    if not requests:
        listed = "\n".join(describe(problem, source) for problem in found.problems[:20])
        raise DatasetError(f"{source or 'the input'}: no usable sample\n{listed}".rstrip())
    names, ids = _label_ids(requests)
    size = settings.shard_size or min(1000, max(_SMALLEST_SHARD, math.ceil(len(requests) / _SHARDS_OF_A_SMALL_SET)))
    rows = []
    for number, request in enumerate(requests):
        fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        fields |= {"number": number, "shard": number // size, "split": settings.split}
        rows.append(fields | {"labels": [ids(label) for label in request.labels]})
    table = pa.Table.from_pylist(rows, PLAN_SCHEMA)
    return Plan(table, tuple(found.problems), source, names, asked, tuple(found.notes))


def write_plan(plan: Plan, path: Path) -> None:
    """Writes plan.parquet: the rows, and in its metadata all else."""
    metadata = {
        "problems": json.dumps([dataclasses.asdict(problem) for problem in plan.problems]),
        "source": plan.source,
        "label_names": json.dumps(plan.label_names),
        "settings": json.dumps(plan.settings),
        "notes": json.dumps(plan.notes),
    }
    with replace_file(path) as aside:
        pq.write_table(plan.rows.replace_schema_metadata(metadata), aside)


def read_plan(path: Path) -> Plan:
    """Reads plan.parquet; DatasetError if it is not one."""
    try:
        rows = pq.read_table(path)
        metadata = {key.decode(): value.decode() for key, value in rows.schema.metadata.items()}
        problems = tuple(Problem(**problem) for problem in json.loads(metadata["problems"]))
        names, settings = tuple(json.loads(metadata["label_names"])), json.loads(metadata["settings"])
        notes = tuple(json.loads(metadata["notes"]))
        return Plan(rows.replace_schema_metadata(None), problems, metadata["source"], names, settings, notes)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: not a plan ({error}); use another --out, or --overwrite") from error


def even_pieces(length: float, longest: float) -> int:
    """Into how many equal pieces to cut `length` so that none is longer than `longest`: no short piece at the end."""
    return max(1, math.ceil(length / longest - 1e-9))


def _label_ids(requests: Sequence[Request]) -> tuple[tuple[str, ...], Callable[[str], int]]:
    """Names and ids of the labels: numbers stay what they are; if any is a word, all are names, in sorted order."""
    words = sorted({label for request in requests for label in request.labels})
    if all(word.isascii() and word.isdigit() for word in words):
        return (), int
    return tuple(words), {word: number for number, word in enumerate(words)}.__getitem__
