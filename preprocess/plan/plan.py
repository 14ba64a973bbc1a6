"""A build is planned: requested samples ─► numbers, label ids and shards.

In: a ledger over frame folders, video files and lists of them, or images. Out: `BuildPlan`, made once and kept as
plan.parquet; everything after it is a function of the plan and the settings, so that any worker, today or
after a crash, writes the same bytes.

    plan = make_plan(source.find(), source=source.list_name, settings=settings, identity={...})
    write_plan(plan, out / "plan.parquet")
    plan = read_plan(out / "plan.parquet")
    plan.shard(0)                                   # list[PlannedSample]

Samples are numbered in the order of the ledger, the list or the sorted folder; the number is the key. Long
sources are cut into even pieces (`preprocess.sources.segments`). Rows that cannot be used are kept as problems.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.files import replace_file
from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_ids import LabelIds, LabelKind, label_ids
from preprocess.plan.label_names import LabelNames
from preprocess.plan.samples import PlannedSample, Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem, describe

_PLAN_FIELDS: list[Any] = [
    pa.field("number", pa.int64()),
    pa.field("shard", pa.int32()),
    pa.field("kind", pa.string()),  # "frames", "image", "video", "stack" or "hook"
    pa.field("root", pa.int32()),  # position among the roots given on the command line
    pa.field("path", pa.string()),  # below the root
    pa.field("name", pa.string()),
    pa.field("labels", pa.list_(pa.int32())),
    pa.field("split", pa.string()),
    pa.field("first", pa.int64()),  # frames: file numbers first <= i < stop; an image: 0 and 1; a stack: its frames;
    # a hook: 0 and most
    pa.field("stop", pa.int64()),
    pa.field("start_s", pa.float64()),  # video: the span start_s <= t < stop_s; frames: the time of `first`
    pa.field("stop_s", pa.float64()),
    pa.field("prefix", pa.string()),  # frames: how the files are named; a hook: its text
    pa.field("digits", pa.int32()),
    pa.field("suffix", pa.string()),
    pa.field("gaps", pa.list_(pa.int64())),  # frames: numbers without a file, for which the one before is taken
    pa.field("length_s", pa.float64()),  # of this piece, as its source announces it; NaN = unknown
    pa.field("rate", pa.float64()),  # frames a second of its source, as announced; NaN = unknown
    pa.field("group", pa.string()),  # what `split` keeps on one side; "" = the recording, by its name
    pa.field("file", pa.string()),  # the ledger or list that requested it; the video itself if no list did
    pa.field("line", pa.int32()),  # -1 = none
]
PLAN_SCHEMA = pa.schema(_PLAN_FIELDS)
# Columns that are there only where a row needs them.
_STRIDE = pa.field("stride", pa.int64())  # frames: from one number to the next; 1 if there is no column
_FILES = pa.field("files", pa.list_(pa.string()))  # stack: the files of its frames, below the root; none = `path` alone
_THRIFT_BYTES = (1 << 31) - 1  # metadata may be large: millions of rows that cannot be used
_SHARDS_OF_A_SMALL_SET = 16
_SMALLEST_SHARD = 16


@dataclass(frozen=True)
class ScanResult:
    """The samples and problems that a scan of the input gave; `notes` are lines for the summary."""

    requests: list[Request]
    problems: list[Problem]
    notes: list[str]
    label_names: LabelNames | None = None  # those that the user gave
    label_kind: LabelKind = "auto"


@dataclass(frozen=True, eq=False)
class BuildPlan:
    """All samples of a dataset, and what could not become one."""

    rows: pa.Table
    problems: tuple[Problem, ...]
    source: str  # file name of the ledger or list, for rejected.parquet; "" if there are several
    label_names: tuple[str, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    split_rule: dict[str, Any] | None = None  # `preprocess.plan.splits`; None = splits are those of the rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_shards(self) -> int:
        return len(self._bounds) - 1

    def shard(self, number: int) -> list[PlannedSample]:
        """Return the samples of one shard, in order, in the same time for a plan of any length."""
        begin, end = self._bounds[number : number + 2].tolist()
        return planned_samples(self.rows.slice(begin, end - begin))

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Return the first row of each shard, and the end."""
        shards = self.rows["shard"].to_numpy()
        return np.searchsorted(shards, np.arange(int(shards[-1]) + 2 if len(shards) else 1))


def planned_samples(rows: pa.Table) -> list[PlannedSample]:
    """Return rows of a plan as samples; the stride is 1 where none is noted, and files are none."""
    return [
        PlannedSample(**row | {"stride": row.get("stride") or 1, "files": row.get("files") or []})
        for row in rows.to_pylist()
    ]


def make_plan(
    scan: ScanResult,
    *,
    source: str,
    settings: Settings,
    identity: dict[str, Any],
    label_names: Sequence[str] | None = None,
) -> BuildPlan:
    """Return the plan: samples get numbers and shards, words among their labels get ids.

    Args:
        scan: the requests, in the order of the dataset, and the problems.
        source: the name of the ledger or list.
        settings: give the shard size and the split; a split that is set wins over those of folders and lists.
        identity: settings and sources that two builds of the same dataset share, for `settings` in dataset.json.
        label_names: those of the dataset that this one continues: they keep their ids, new names come after. None if
            nothing is continued, or what is has no label; empty if its labels are numbers.

    Raises:
        DatasetError: no sample is left, or the labels do not go with those that are there.
    """
    requests, problems = scan.requests, list(scan.problems)

    def where(label: str) -> str:
        request = next(request for request in requests if label in request.labels)
        line = f"{request.file or source}, line {request.line}" if request.line > 0 else request.name
        return f"{label!r} ({line})"

    ids = label_ids(
        [request.labels for request in requests],
        fixed=scan.label_names,
        continued=label_names,
        kind=scan.label_kind,
        where=where,
    )
    if ids.unknown:
        for request in requests:
            if strange := [label for label in request.labels if label in ids.unknown]:
                message = f"label {', '.join(strange)} is not among the label names"
                problems.append(Problem("unknown_label", message, request.name, request.line, request.file))
        requests = [request for request in requests if not ids.unknown.intersection(request.labels)]
    if not requests:
        listed = "\n".join(describe(problem, source) for problem in problems[:20])
        raise DatasetError(f"{source or 'the input'}: no usable sample\n{listed}".rstrip())
    size = settings.shard_size or min(1000, max(_SMALLEST_SHARD, math.ceil(len(requests) / _SHARDS_OF_A_SMALL_SET)))
    table = _table(requests, ids, size, settings.split)
    notes = [*scan.notes, *([ids.note] if ids.note else [])]
    if ids.missing:
        count = sum(bool(ids.missing.intersection(request.labels)) for request in requests)
        notes.append(f"{count} samples have no label, for theirs is {' or '.join(map(repr, sorted(ids.missing)))}")
    if settings.split not in ("", "train") and ids.names and not scan.label_names and label_names is None:
        notes.append(
            f"warning: the labels of this {settings.split} set have ids of their own, in the order of their names; "
            "for the ids of another dataset give --label-names its dataset.json"
        )
    return BuildPlan(table, tuple(problems), source, ids.names, identity, tuple(notes))


def _table(requests: Sequence[Request], ids: LabelIds, shard_size: int, split: str) -> pa.Table:
    """Return the table of PLAN_SCHEMA, column by column."""
    count = len(requests)
    numbers = np.arange(count, dtype=np.int64)
    columns: dict[str, Any] = {"number": numbers, "shard": (numbers // shard_size).astype(np.int32)}
    if split:
        columns["split"] = pa.repeat(split, count)
    columns["labels"] = [
        [ids.number[label] for label in request.labels if label not in ids.missing] for request in requests
    ]
    schema = PLAN_SCHEMA if all(request.stride == 1 for request in requests) else PLAN_SCHEMA.append(_STRIDE)
    schema = schema.append(_FILES) if any(request.files for request in requests) else schema
    for column in schema:
        if column.name not in columns:
            columns[column.name] = list(map(attrgetter(column.name), requests))
        columns[column.name] = pa.array(columns[column.name], column.type)
    return pa.table(columns, schema)


def write_plan(plan: BuildPlan, path: Path) -> None:
    """Write plan.parquet: the rows, and in its metadata all else."""
    metadata = {
        "problems": json.dumps([dataclasses.asdict(problem) for problem in plan.problems]),
        "source": plan.source,
        "label_names": json.dumps(plan.label_names),
        "settings": json.dumps(plan.settings),
        "notes": json.dumps(plan.notes),
        "split_rule": json.dumps(plan.split_rule),
    }
    with replace_file(path) as aside:
        pq.write_table(plan.rows.replace_schema_metadata(metadata), aside, write_page_checksum=True)


def read_plan(path: Path) -> BuildPlan:
    """Read plan.parquet; raise DatasetError if it is not one."""
    try:
        rows = pq.read_table(path, thrift_string_size_limit=_THRIFT_BYTES, page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in rows.schema.metadata.items()}
        problems = tuple(Problem(**problem) for problem in json.loads(metadata["problems"]))
        names, settings = tuple(json.loads(metadata["label_names"])), json.loads(metadata["settings"])
        notes, rule = tuple(json.loads(metadata["notes"])), json.loads(metadata["split_rule"])
        return BuildPlan(rows.replace_schema_metadata(None), problems, metadata["source"], names, settings, notes, rule)
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
            raise
        raise DatasetError(f"{path}: not a plan ({error}); use another --out, or --overwrite") from error
