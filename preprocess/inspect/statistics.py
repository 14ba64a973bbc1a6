"""An opened dataset is counted: durations, sizes, rates, labels, splits, rejects.

    overview = look_over(open_dataset("out/shards"))
    overview.charts["Duration"].bars       # [("0 to 2 s", 17), ...]

Everything is counted over the mapped columns, so that ten million samples take seconds and little memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from preprocess.dataset.index import REJECTED_NAME, Dataset

_BINS = 14
_MOST = 16  # bars of what has no natural end, such as sizes
_MOST_LABELS = 40
_PARTS_LOOKED_AT = 1 << 22
_EXAMPLES = 5


@dataclass(frozen=True)
class Chart:
    """Counts in bars: (name, count)."""

    bars: list[tuple[str, int]]
    note: str = ""
    rest: tuple[str, int] | None = None  # all others together: not on the bars' scale


@dataclass
class Reason:
    """Samples that were left out, or kept with a remark, for one reason: how many, and the first few."""

    reason: str
    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)  # rows of REJECTED_SCHEMA


@dataclass(frozen=True)
class Overview:
    """The statistics that a report shows of a dataset."""

    charts: dict[str, Chart]
    rejected: list[Reason]
    remarks: list[Reason]


def look_over(dataset: Dataset) -> Overview:
    """Compute the statistics of a dataset, bad shards included."""
    timed = np.isfinite(dataset.fps) & (dataset.fps > 0)
    charts = {}
    if timed.any():
        note = "" if timed.all() else f"{np.count_nonzero(~timed):,} samples have no time base"
        charts["Duration, seconds"] = histogram(dataset.num_frames[timed] / dataset.fps[timed], note=note)
    charts["Frames a sample"] = histogram(dataset.num_frames)
    charts["Size, pixels"] = _sizes(dataset)
    charts["Frames a second"] = _rates(dataset)
    charts[f"Bytes a {dataset.layout.parts[:-1]}"] = _part_bytes(dataset)
    charts["Split"] = _splits(dataset)
    charts["Labels"] = _labels(dataset)
    if len(dataset.label_values):
        charts["Labels a sample"] = most_frequent(np.diff(dataset.label_offsets), str, in_order=True)
    rejected, remarks = _reasons(dataset)
    return Overview(charts, rejected, remarks)


def histogram(values: np.ndarray, *, note: str = "") -> Chart:
    """Return bars between round numbers, evenly spaced; outliers are gathered in one bar at either end.

    Args:
        values: any numbers, in any order.
        note: a line to show with it.
    """
    if not len(values):
        return Chart([], note)
    low, middle_low, middle, middle_high, high = np.quantile(values, [0, 0.01, 0.5, 0.99, 1]).tolist()
    said = f"from {_number(low)} to {_number(high)}, median {_number(middle)}"
    if low == high:
        return Chart([(_number(low), len(values))], note)
    step = _round_step((middle_high - middle_low) / _BINS, whole=values.dtype.kind in "iu")
    first, last = math.floor(middle_low / step), math.floor(middle_high / step)
    if (high - middle_high) <= 3 * step:
        last = math.floor(high / step)
    if (middle_low - low) <= 3 * step:
        first = math.floor(low / step)
    edges = np.arange(first, last + 2) * step
    counts = np.histogram(values, np.concatenate([[-np.inf], edges, [np.inf]]))[0].tolist()
    if counts[-1] and high == edges[-1]:  # the last bin of a histogram is closed
        counts[-2:] = [counts[-2] + counts[-1], 0]
    single = values.dtype.kind in "iu" and step == 1
    names = [_number(a) if single else f"{_number(a)} to {_number(a + step)}" for a in edges[:-1].tolist()]
    bars = list(zip(names, counts[1:-1], strict=True))
    if counts[0]:
        bars.insert(0, (f"less than {_number(edges[0])}", counts[0]))
    if counts[-1]:
        bars.append((f"{_number(edges[-1])} or more", counts[-1]))
    return Chart(bars, f"{said}; {note}" if note else said)


def most_frequent(values: np.ndarray, name: Any, *, in_order: bool = False, most: int = _MOST) -> Chart:
    """Return the values that occur most often, and all others together.

    Args:
        values: integers or floats.
        name: what to call a value.
        in_order: of the values, not of the counts.
        most: bars.
    """
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = np.sort(order[:most]) if in_order else order[:most]
    bars = [(name(distinct[i].item()), int(counts[i])) for i in shown]
    rest = (f"{len(order) - most:,} others", int(counts[order[most:]].sum())) if len(order) > most else None
    return Chart(bars, f"{len(distinct):,} different" if len(distinct) > 1 else "", rest)


def _sizes(dataset: Dataset) -> Chart:
    both = dataset.width.astype(np.int64) << 32 | dataset.height
    return most_frequent(both, lambda size: f"{size >> 32} x {size & 0xFFFFFFFF}")


def _rates(dataset: Dataset) -> Chart:
    rates = np.where(np.isfinite(dataset.fps), dataset.fps.round(2), -1.0)
    return most_frequent(rates, lambda rate: "unknown" if rate < 0 else _number(rate), in_order=True)


def _part_bytes(dataset: Dataset) -> Chart:
    """Return the sizes of all frames or groups, or of evenly chosen ones if there are many."""
    total = int(dataset.layout.count(dataset.num_frames).sum(dtype=np.int64))
    every = -(-total // _PARTS_LOOKED_AT)
    step = 1 << 20
    parts = [dataset.part_rows(at, min(at + step, total))[0][::every] for at in range(0, total, step)]
    values = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return histogram(values, note=f"one in {every} was looked at" if every > 1 else "")


def _splits(dataset: Dataset) -> Chart:
    counts = np.bincount(dataset.splits, minlength=len(dataset.split_names)).tolist()
    return Chart([(name or "none", count) for name, count in zip(dataset.split_names, counts, strict=True)])


def _labels(dataset: Dataset) -> Chart:
    if not len(dataset.label_values):
        return Chart([], "no sample has a label")
    names = dataset.label_names

    def name(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    chart = most_frequent(dataset.label_values, name, most=_MOST_LABELS)
    used = np.unique(dataset.label_values)
    unused = len(names) - len(used) if names else 0
    notes = [chart.note] + ([f"{unused:,} of {len(names):,} names occur nowhere"] if unused else [])
    return replace(chart, note="; ".join(filter(None, notes)))


def _reasons(dataset: Dataset) -> tuple[list[Reason], list[Reason]]:
    """Return (rejected, remarks), the most frequent first."""
    reasons: dict[tuple[bool, str], Reason] = {}
    path = dataset.root / REJECTED_NAME
    for batch in pq.ParquetFile(path).iter_batches() if path.is_file() else ():
        rows = batch.to_pydict()
        for number, (reason, num_frames) in enumerate(zip(rows["reason"], rows["num_frames"], strict=True)):
            entry = reasons.setdefault((num_frames > 0, reason), Reason(reason))
            entry.count += 1
            if len(entry.first) < _EXAMPLES:
                entry.first.append({name: column[number] for name, column in rows.items()})
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].count, item[1].reason))
    lists: Sequence[list[Reason]] = [[], []]
    for (kept, _), entry in ordered:
        lists[kept].append(entry)
    return lists[0], lists[1]


def _round_step(least: float, *, whole: bool) -> float:
    """Return the smallest of 1, 2, 5, 10, ... (and of their tenths, ..., unless `whole`) that is at least that."""
    least = max(least, 1.0 if whole else 1e-3)
    ten = 10.0 ** math.floor(math.log10(least))
    return next(ten * factor for factor in (1, 2, 5, 10) if ten * factor >= least * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"
