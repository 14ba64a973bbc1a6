"""A plan is extended by the samples that its sources have now: new samples go to shards of their own, at the end.

    plan = start_plan(make_plan(...), source, identity)                                  # a plan of one part
    longer = extend_plan(plan, source, scan, settings=settings, identity=identity)       # None: nothing new

A part holds the samples of one call; plan.parquet keeps the list of parts in its settings. Old samples keep their
numbers, shards and label ids, so that no file that was written changes. A sample is new if no part has the same span
of the same file below a root of the same name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import BuildPlan, ScanResult, make_plan
from preprocess.plan.settings import Settings
from preprocess.sources.source import Source

# Settings that may differ from part to part, because they belong to the sources, not to the dataset.
OF_SOURCES = frozenset({"sources", "split", "source_fps", "shard_size"})


@dataclass(frozen=True)
class BuildPart:
    """The samples that one call added to a plan."""

    identity: dict[str, Any]  # settings and sources
    roots: list[str]  # names of the roots that its rows count in
    num_samples: int
    num_shards: int
    num_problems: int  # rows of the sources that could not become a sample


def build_identity(settings: Settings, sources: list[dict[str, str]]) -> dict[str, Any]:
    """Return the settings and sources that two builds of the same dataset share."""
    codec = {}
    if settings.layout == "video":
        from preprocess.encode.group_encoder import codec_version  # and with it PyAV, which nothing else needs here

        codec = {"codec_version": codec_version()}
    return {**settings.identity(), **codec, "sources": sources}


def start_plan(plan: BuildPlan, source: Source, identity: dict[str, Any]) -> BuildPlan:
    """Return a new plan with its first part recorded."""
    return with_parts(plan, [_part(plan, source, identity)])


def parts_of(plan: BuildPlan) -> list[BuildPart]:
    """Return the parts of a plan that was read."""
    return [BuildPart(part.pop("asked"), **part) for part in map(dict, plan.settings["parts"])]


def shards_of(parts: Sequence[BuildPart], number: int) -> range:
    """Return the numbers of a part's shards."""
    start = sum(part.num_shards for part in parts[:number])
    return range(start, start + parts[number].num_shards)


def dataset_settings(plan: BuildPlan) -> dict[str, Any]:
    """Return the settings that dataset.json records."""
    first, *later = parts_of(plan)
    return first.identity | ({"appended": [part.identity["sources"] for part in later]} if later else {})


def extend_plan(
    plan: BuildPlan, source: Source, scan: ScanResult, *, settings: Settings, identity: dict[str, Any]
) -> BuildPlan | None:
    """Return the plan with the scanned samples that it lacks at its end; None if it has all of them.

    Args:
        plan: the plan.
        source: the sources that were scanned.
        scan: their samples.
        settings: the settings of this call.
        identity: settings and sources, as `differences` compares them.

    Raises:
        DatasetError: settings that hold for the whole dataset differ, or the labels do not fit.
    """
    parts = parts_of(plan)
    if differing := differences(parts[0].identity, identity, but=OF_SOURCES):
        raise DatasetError(f"--append: {differing}; append with the same settings, or build another dataset")
    _check_label_base(parts, identity, scan.label_names)
    known = _known(plan, parts)
    names = [root.name for root in source.roots]
    new = [
        one
        for one in scan.requests
        if _span(names[one.root], one.path, one.first, one.stop, one.start_s, one.stop_s, one.prefix) not in known
    ]
    if not new:
        return None
    listed = set(plan.problems)
    scan = replace(scan, requests=new, problems=[problem for problem in scan.problems if problem not in listed])
    labelled = len(pc.list_flatten(plan.rows["labels"])) > 0
    label_names = plan.label_names if labelled else None
    more = make_plan(scan, source=source.list_name, settings=settings, identity=identity, label_names=label_names)
    longer = replace(
        plan,
        rows=pa.concat_tables([plan.rows, _moved(more.rows, len(plan), plan.num_shards)], promote_options="default"),
        problems=plan.problems + more.problems,
        source=plan.source if plan.source == more.source else "",
        label_names=more.label_names,
        notes=more.notes,
    )
    return with_parts(longer, [*parts, _part(more, source, identity)])


def _check_label_base(parts: Sequence[BuildPart], identity: dict[str, Any], names: LabelNames | None) -> None:
    """Raise DatasetError if the numbers of lists count from another base than those that the dataset was built from.

    Without --label-base the base is that of the file of names, which is known here if it is the same file.
    """
    if names is None:
        return
    given = _label_settings(identity)
    for settings in map(_label_settings, (part.identity for part in parts)):
        first = names.numbers[0] if names.numbers else 0
        base = settings.get("label_base", str(first) if settings.get("label_names") == given["label_names"] else None)
        if "label_names" in settings and base not in (None, str(names.first)):
            raise DatasetError(
                f"--append: the labels of the dataset count from {base} (--label-base {base}), those that are given "
                f"from {names.first} (--label-base {names.first}); append lists that count as those of the dataset"
            )


def _label_settings(identity: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a part's sources that differ from the defaults, of which the labels' are some."""
    return next((one for one in identity["sources"] if "label_names" in one), {})


def differences(planned: dict[str, Any], given: dict[str, Any], *, but: frozenset[str] = frozenset()) -> str:
    """Return the settings that differ between a plan and a call, in words; "" if there are none."""
    keys = sorted(key for key in (planned.keys() | given.keys()) - but if planned.get(key) != given.get(key))
    return ", ".join(f"{key} = {planned.get(key)} there, {given.get(key)} given" for key in keys)


def _part(plan: BuildPlan, source: Source, identity: dict[str, Any]) -> BuildPart:
    return BuildPart(identity, [root.name for root in source.roots], len(plan), plan.num_shards, len(plan.problems))


def with_parts(plan: BuildPlan, parts: list[BuildPart]) -> BuildPlan:
    """Return a plan that records these parts."""
    listed = [{"asked" if name == "identity" else name: value for name, value in vars(part).items()} for part in parts]
    return replace(plan, settings=parts[0].identity | {"parts": listed})


def _known(plan: BuildPlan, parts: Sequence[BuildPart]) -> set[tuple[Any, ...]]:
    """Return the spans of files that the plan has."""
    columns: list[list[Any]] = [
        plan.rows[name].to_pylist() for name in ("root", "path", "first", "stop", "start_s", "stop_s", "prefix")
    ]
    known, start = set(), 0
    for part in parts:
        roots, *spans = (column[start : start + part.num_samples] for column in columns)
        known |= set(map(_span, (part.roots[root] for root in roots), *spans))
        start += part.num_samples
    return known


def _span(root: str, path: str, first: int, stop: int, start_s: float, stop_s: float, prefix: str) -> tuple[Any, ...]:
    """Return the identity of a span of a file: frames by their numbers if there are any, else by their time."""
    return (root, path, prefix, first, stop) if stop > first else (root, path, start_s, stop_s)


def _moved(rows: pa.Table, samples: int, shards: int) -> pa.Table:
    """Return the rows with numbers and shards that follow those of the plan."""
    for name, by in (("number", np.int64(samples)), ("shard", np.int32(shards))):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(name), pa.array(rows[name].to_numpy() + by))
    return rows
