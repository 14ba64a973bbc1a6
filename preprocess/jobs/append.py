"""A plan that grew: the samples that were found later, after those that were there, in shards of their own.

    plan = begun(make_plan(...), source, asked)          # a plan of one part
    more = extended(plan, source, found, settings=settings, asked=asked)      # None: nothing new

A part is what one call asked for; plan.parquet keeps them in its settings. Old samples keep their numbers, shards and
label ids, so that nothing that was written changes. A sample is new if no part has the same span of the same file
below a root of the same name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.dataset.schema import DatasetError
from preprocess.plan.plan import Found, Plan, Settings, make_plan
from preprocess.sources.source import Source

# What may differ from part to part: of the sources, not of the dataset.
OF_SOURCES = frozenset({"sources", "split", "source_fps", "shard_size"})


@dataclass(frozen=True)
class Part:
    """What one call added to a plan."""

    asked: dict[str, Any]  # settings and sources
    roots: list[str]  # names of the roots that its rows count in
    num_samples: int
    num_shards: int
    num_problems: int  # what could not become a sample


def begun(plan: Plan, source: Source, asked: dict[str, Any]) -> Plan:
    """A new plan, with its first part noted."""
    return _with_parts(plan, [_part(plan, source, asked)])


def parts_of(plan: Plan) -> list[Part]:
    """The parts of a plan that was read."""
    return [Part(**part) for part in plan.settings["parts"]]


def shards_of(parts: Sequence[Part], number: int) -> range:
    """The numbers of a part's shards."""
    start = sum(part.num_shards for part in parts[:number])
    return range(start, start + parts[number].num_shards)


def dataset_settings(plan: Plan) -> dict[str, Any]:
    """What dataset.json says was asked for."""
    first, *later = parts_of(plan)
    return first.asked | ({"appended": [part.asked["sources"] for part in later]} if later else {})


def extended(plan: Plan, source: Source, found: Found, *, settings: Settings, asked: dict[str, Any]) -> Plan | None:
    """The plan with the samples among `found` that it does not have; None if it has all of them.

    Raises:
        DatasetError: settings that hold for the whole dataset differ, or the labels do not fit.
    """
    parts = parts_of(plan)
    if differing := differences(parts[0].asked, asked, but=OF_SOURCES):
        raise DatasetError(f"--append: {differing}; append with the same settings, or build another dataset")
    known = _known(plan, parts)
    names = [root.name for root in source.roots]
    new = [
        one
        for one in found.requests
        if _span(names[one.root], one.path, one.first, one.stop, one.start_s, one.stop_s) not in known
    ]
    if not new:
        return None
    told = set(plan.problems)
    found = replace(found, requests=new, problems=[problem for problem in found.problems if problem not in told])
    labelled = len(pc.list_flatten(plan.rows["labels"])) > 0
    label_names = plan.label_names if labelled else None
    more = make_plan(found, source=source.list_name, settings=settings, asked=asked, label_names=label_names)
    whole = replace(
        plan,
        rows=pa.concat_tables([plan.rows, _moved(more.rows, len(plan), plan.num_shards)]),
        problems=plan.problems + more.problems,
        source=plan.source if plan.source == more.source else "",
        label_names=more.label_names,
        notes=more.notes,
    )
    return _with_parts(whole, [*parts, _part(more, source, asked)])


def differences(there: dict[str, Any], asked: dict[str, Any], *, but: frozenset[str] = frozenset()) -> str:
    """Settings that are not the same, in words; "" if there are none."""
    keys = sorted(key for key in (there.keys() | asked.keys()) - but if there.get(key) != asked.get(key))
    return ", ".join(f"{key} = {there.get(key)} there, {asked.get(key)} asked for" for key in keys)


def _part(plan: Plan, source: Source, asked: dict[str, Any]) -> Part:
    return Part(asked, [root.name for root in source.roots], len(plan), plan.num_shards, len(plan.problems))


def _with_parts(plan: Plan, parts: list[Part]) -> Plan:
    return replace(plan, settings=parts[0].asked | {"parts": [vars(part) for part in parts]})


def _known(plan: Plan, parts: Sequence[Part]) -> set[tuple[Any, ...]]:
    """The spans of files that the plan has."""
    columns: list[list[Any]] = [
        plan.rows[name].to_pylist() for name in ("root", "path", "first", "stop", "start_s", "stop_s")
    ]
    known, start = set(), 0
    for part in parts:
        roots, *spans = (column[start : start + part.num_samples] for column in columns)
        known |= set(map(_span, (part.roots[root] for root in roots), *spans))
        start += part.num_samples
    return known


def _span(root: str, path: str, first: int, stop: int, start_s: float, stop_s: float) -> tuple[Any, ...]:
    """What is read of a file: frames by their numbers, where there are any; else by their time."""
    return (root, path, first, stop) if stop > first else (root, path, start_s, stop_s)


def _moved(rows: pa.Table, samples: int, shards: int) -> pa.Table:
    """The rows with their numbers and shards after those that are there."""
    for name, by in (("number", np.int64(samples)), ("shard", np.int32(shards))):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(name), pa.array(rows[name].to_numpy() + by))
    return rows
