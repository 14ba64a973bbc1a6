"""What is at an output: shards that are whole, a dataset that is finished, leftovers, other people's files.

for found in survey(range(plan.num_shards), output, folder):      # which shards are there
    ...
lines = finish(plan, output, folder, lock)                        # all of them: the index, and a summary
"""

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mae3d.io.files import TEMPORARY_PREFIX
from preprocess.dataset.index import META_NAME, PLAN_NAME, REJECTED_NAME, Dataset, DatasetError, map_dataset, parse_meta
from preprocess.dataset.schema import read_shard_table, shard_files
from preprocess.dataset.writer import write_dataset
from preprocess.jobs.append import dataset_settings
from preprocess.jobs.lock import Lock
from preprocess.jobs.lock_store import LOCK_NAME
from preprocess.jobs.output import Output
from preprocess.plan.plan import Plan, read_plan
from preprocess.plan.rejects import rejected_row, some
from preprocess.plan.splits import planned_splits
from preprocess.problems import Problem, describe
from preprocess.sources.source import long_samples, short_samples

_OURS = (
    *("shard-*.tar", "shard-*.idx", "shard-*.parquet", "index-*.parquet", "rows-*.arrow", "frames-*.arrow"),
    *(PLAN_NAME, REJECTED_NAME, META_NAME),
)
_FULL = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some, or ask for more",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


@dataclass(frozen=True)
class Surveyed:
    """A shard: how many samples it has, or None if it is to be built; and what of it was rejected."""

    number: int
    kept: int | None
    lost: list[Problem]


def survey(numbers: Sequence[int], output: Output, folder: Path) -> Iterator[Surveyed]:
    """Looks which shards are whole; their tables are in `folder` afterwards."""
    sizes = output.sizes()
    tables = {number: shard_files(number)[-1] for number in numbers}
    output.fetch([name for name in tables.values() if name in sizes], folder)
    for number, name in tables.items():
        tar, idx, _ = shard_files(number)
        if not sizes.keys() >= {tar, idx, name}:
            yield Surveyed(number, None, [])
            continue
        try:
            table, shard = read_shard_table(folder / name)
        except DatasetError:
            yield Surveyed(number, None, [])
            continue
        if sizes[tar] not in (shard.bytes, None):
            yield Surveyed(number, None, [])
            continue
        lost = table.filter(pc.field("num_frames") == 0).select(["reason", "message", "name", "line"])
        yield Surveyed(number, shard.num_samples, [Problem(**row) for row in lost.to_pylist()])


def finish(plan: Plan, output: Output, folder: Path, lock: Lock) -> list[str]:
    """Writes the index of a plan whose shards are all there."""
    _sweep(output)  # what workers that were killed have left
    tables = [shard_files(number)[-1] for number in range(plan.num_shards)]
    output.fetch(tables, folder)
    lock.check()
    rejected = [rejected_row(problem, plan.source) for problem in plan.problems]
    paths = [folder / name for name in tables]
    meta = write_dataset(
        folder,
        tables=paths,
        settings=dataset_settings(plan),
        label_names=plan.label_names,
        rejected=rejected,
        splits=planned_splits(plan),
        split_rule=plan.split_rule,
        idx=output.digests([shard_files(number)[1] for number in range(plan.num_shards)]),
    )
    output.publish([*(entry["name"] for entry in meta["files"].values()), META_NAME], folder)
    return summary_of(meta, output, folder)


def summary_of(meta: dict[str, Any], output: Output, folder: Path) -> list[str]:
    output.fetch([entry["name"] for entry in meta["files"].values()], folder)
    return summary(map_dataset(folder, meta))


def is_finished(plan: Plan, output: Output, folder: Path) -> bool:
    """Whether dataset.json is that of this plan."""
    if META_NAME not in output.sizes():
        return False
    output.fetch([META_NAME], folder)
    meta = parse_meta((folder / META_NAME).read_bytes(), where=f"{output}/{META_NAME}")
    return len(meta["shards"]) == plan.num_shards and bool(meta["settings"] == dataset_settings(plan))


def refuse_foreign(output: Output) -> None:
    """Raises DatasetError for a place that holds other things, or shards that no plan tells of."""
    names = [name for name in output.sizes() if not name.startswith((TEMPORARY_PREFIX, LOCK_NAME))]
    foreign = sorted(name for name in names if not _is_ours(name))
    if PLAN_NAME in names or not names:
        return
    if foreign:
        raise DatasetError(f"{output}: holds other things ({some(foreign)}); give an empty or new folder as --out")
    raise DatasetError(f"{output}: shards without {PLAN_NAME}; give another --out, or --overwrite to remove them")


def clear(output: Output, *, overwrite: bool) -> None:
    """Sweeps what a killed run left, and removes the dataset if that is wanted; only under the lock."""
    _sweep(output)
    names = [name for name in output.sizes() if not name.startswith((TEMPORARY_PREFIX, LOCK_NAME))]
    if overwrite and (PLAN_NAME in names or all(map(_is_ours, names))):
        # dataset.json first: without it nothing that is half removed passes for a dataset.
        output.remove(sorted(filter(_is_ours, names), key=lambda name: name != META_NAME))


def _sweep(output: Output) -> None:
    output.remove([name for name in output.sizes() if name.startswith(TEMPORARY_PREFIX)])


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OURS)


@contextmanager
def told_when_full(output: Output) -> Iterator[None]:
    """Says of a disk that is full how much more is needed, as far as that is known."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename == str(output):  # of a file in it; the estimate has told its own
            raise
        what = f"{error.strerror or error}{_needed(output)}; {_FULL[error.errno]}"
        raise OSError(error.errno, what, error.filename or str(output)) from error


def _needed(output: Output) -> str:
    try:
        sizes = output.sizes()
        tars = [size or 0 for name, size in sizes.items() if fnmatch(name, "shard-*.tar")]
        with output.work() as folder:
            output.fetch([PLAN_NAME], folder)
            left = read_plan(folder / PLAN_NAME).num_shards - len(tars)
    except (OSError, DatasetError):
        return ""
    return f": some {left * sum(tars) / len(tars) / 1e9:.3g} GB more are needed" if tars and left > 0 else ""


def summary(dataset: Dataset) -> list[str]:
    """A dataset in a few lines for people, with a warning if samples are too long to be stored and sampled well."""
    totals = dataset.meta["totals"]
    hours = f"{totals['seconds'] / 3600:.2f} hours" if totals["seconds"] else "no time base"
    size = f"{totals['bytes'] / 1e6:.1f} MB in {len(dataset.shards)} shards"
    lines = [f"{totals['samples']} samples, {totals['frames']} frames, {hours}, {size}"]
    rejected = totals["rejected"]
    lines.append(f"rejected: {sum(rejected.values())}{_counts(rejected)} (each with its reason in {REJECTED_NAME})")
    if totals["remarks"]:
        counts = totals["remarks"]
        lines.append(f"kept with a remark: {sum(counts.values())}{_counts(counts)} (see {REJECTED_NAME})")
    seconds = np.nan_to_num(dataset.num_frames / dataset.fps)
    return lines + short_samples(dataset.num_frames) + long_samples(seconds, dataset.num_frames)


def lost_already(plan: Plan) -> list[str]:
    """A line about what could not become part of the plan, and an example; none if there is nothing."""
    if not plan.problems:
        return []
    counts = dict(sorted(Counter(problem.reason for problem in plan.problems).items()))
    return [
        f"rejected so far: {len(plan.problems)}{_counts(counts)}, such as {describe(plan.problems[0], plan.source)}"
    ]


def _counts(counts: dict[str, int]) -> str:
    return ": " + ", ".join(f"{count} {reason}" for reason, count in counts.items()) if counts else ""
