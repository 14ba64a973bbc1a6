"""An output is surveyed for finished shards, leftovers and other people's files, and finished: shards ─► dataset.

for shard in survey(range(plan.num_shards), output, folder):      # the shards that are there
    ...
summary = finish(plan, output, folder, lock)                      # all shards are there: write the index
"""

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.lock import Lock
from mae3d.io.lock_store import LOCK_NAME
from mae3d.io.progress import followed
from preprocess.dataset.index import META_NAME, PLAN_NAME, REJECTED_NAME, DatasetError, map_dataset, parse_meta
from preprocess.dataset.layout import INDEX_FILE, layout_of
from preprocess.dataset.schema import read_shard_table, shard_files
from preprocess.dataset.writer import write_dataset
from preprocess.jobs.append import dataset_settings
from preprocess.jobs.output import Output
from preprocess.plan.plan import BuildPlan, read_plan
from preprocess.plan.rejects import first_names, rejected_row
from preprocess.plan.splits import planned_splits
from preprocess.problems import Problem, describe
from preprocess.sources.source import long_samples, short_samples

_SHARD_TABLE = re.compile(r"shard-(\d{5,})\.parquet")
_OURS = re.compile(
    "|".join([r"shard-\d{5,}\.(tar|idx|parquet)", INDEX_FILE, *map(re.escape, (PLAN_NAME, REJECTED_NAME, META_NAME))])
)
_FULL = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some, or ask for more",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


@dataclass(frozen=True)
class SurveyedShard:
    """The number of samples that a shard holds, None if it is to be built, and the samples that were rejected."""

    number: int
    num_samples: int | None
    rejected: list[Problem]


@dataclass(frozen=True)
class Summary:
    """The totals of a dataset as dataset.json has them, and notes on samples that are short or long."""

    totals: dict[str, Any]
    num_shards: int
    notes: list[str]
    media: tuple[int, int] | None = None  # of an index, the number and the bytes of its files


def survey(
    numbers: Sequence[int], output: Output, folder: Path, *, all_expected: bool = False
) -> Iterator[SurveyedShard]:
    """Yield the state of each shard; the tables of finished ones are in `folder` afterwards."""
    expected = [name for number in numbers for name in shard_files(number)] if all_expected else []
    sizes = output.sizes(expected=expected)
    tables = {number: shard_files(number)[-1] for number in numbers}
    output.fetch([name for name in tables.values() if name in sizes], folder)
    for number, name in followed(tables.items(), "shard", doing="survey"):
        tar, idx, _ = shard_files(number)
        if not sizes.keys() >= {tar, idx, name}:
            yield SurveyedShard(number, None, [])
            continue
        try:
            table, shard = read_shard_table(folder / name)
        except DatasetError:
            yield SurveyedShard(number, None, [])
            continue
        if sizes[tar] not in (shard.bytes, None):
            yield SurveyedShard(number, None, [])
            continue
        rejected = table.filter(pc.field("num_frames") == 0).select(["reason", "message", "name", "line"])
        yield SurveyedShard(number, shard.num_samples, [Problem(**row) for row in rejected.to_pylist()])


def finish(plan: BuildPlan, output: Output, folder: Path, lock: Lock) -> Summary:
    """Write the index and dataset.json of a plan whose shards are all there."""
    sweep(output)  # files that killed workers have left
    tables = [shard_files(number)[-1] for number in range(plan.num_shards)]
    output.fetch(tables, folder)
    lock.check()
    rejected = [rejected_row(problem, plan.source) for problem in plan.problems]
    paths = [folder / name for name in tables]
    settings = dataset_settings(plan)
    meta = write_dataset(
        folder,
        tables=paths,
        settings=settings,
        layout=layout_of(settings),
        label_names=plan.label_names,
        rejected=rejected,
        splits=planned_splits(plan),
        split_rule=plan.split_rule,
        idx=output.digests([shard_files(number)[1] for number in range(plan.num_shards)]),
    )
    output.publish([*(entry["name"] for entry in meta["files"].values()), META_NAME], folder)
    return summary_of(meta, output, folder)


def summary_of(meta: dict[str, Any], output: Output, folder: Path) -> Summary:
    """Return the summary of the dataset that a dataset.json describes."""
    output.fetch([entry["name"] for entry in meta["files"].values()], folder)
    dataset = map_dataset(folder, meta)
    seconds = np.nan_to_num(dataset.num_frames / dataset.fps)
    notes = short_samples(dataset.num_frames) + long_samples(seconds, dataset.num_frames)
    files = dataset.media_files
    return Summary(meta["totals"], len(dataset.shards), notes, (len(files), files.num_bytes) if files else None)


def is_finished(plan: BuildPlan, output: Output, folder: Path) -> bool:
    """Return whether dataset.json is there, readable, and that of this plan."""
    if not output.has(META_NAME):
        return False
    output.fetch([META_NAME], folder)
    try:
        meta = parse_meta((folder / META_NAME).read_bytes(), where=f"{output}/{META_NAME}")
    except DatasetError:
        return False
    return len(meta["shards"]) == plan.num_shards and bool(meta["settings"] == dataset_settings(plan))


def refuse_foreign(output: Output) -> None:
    """Raise DatasetError for an output that holds other things, or shards without a plan."""
    names = [name for name in output.sizes() if not name.startswith((TEMPORARY_PREFIX, LOCK_NAME))]
    foreign = sorted(name for name in names if not is_ours(name))
    if not names or output.has(PLAN_NAME):
        return
    if foreign:
        raise DatasetError(
            f"{output}: holds other things ({first_names(foreign)}); give an empty or new folder as --out"
        )
    raise DatasetError(f"{output}: shards without {PLAN_NAME}; give another --out, or --overwrite to remove them")


def dataset_files(output: Output, folder: Path) -> list[str]:
    """Return the names of the dataset's files, to be removed in this order; empty if there is no dataset.

    dataset.json comes first: without it a folder that is half removed does not pass for a dataset. The plan comes last:
    it proves that the rest is the program's own.

    Raises:
        DatasetError: there are files named like a dataset's, and nothing proves that this program made them.
    """
    names = sorted(filter(is_ours, output.sizes()), key=lambda name: (name == PLAN_NAME, name != META_NAME))
    shards = _own_shards(output, folder, names)
    foreign = [name for name in names if name not in shards and (name.startswith("shard-") or not shards)]
    if foreign:
        raise DatasetError(
            f"{output}: holds files named like a dataset's ({first_names(foreign)}), but no {PLAN_NAME}, {META_NAME} "
            "or table of a shard that is MAE3D's names them: remove them by hand, or give another --out"
        )
    return names


def _own_shards(output: Output, folder: Path, names: Sequence[str]) -> set[str]:
    """Return the names of the shards' files that a plan, a dataset.json or the table beside them proves to be ours."""
    proven: set[str] = set()
    counts: dict[str, Callable[[Path], int]] = {
        PLAN_NAME: lambda path: read_plan(path).num_shards,
        META_NAME: lambda path: len(parse_meta(path.read_bytes(), where=str(path))["shards"]),
    }
    for name, count in counts.items():
        if name in names:
            with suppress(DatasetError):
                output.fetch([name], folder)
                proven.update(file for number in range(count(folder / name)) for file in shard_files(number))
    for name in names:
        if name not in proven and (table := _SHARD_TABLE.fullmatch(name)):
            with suppress(DatasetError):
                output.fetch([name], folder)
                read_shard_table(folder / name)
                proven.update(shard_files(int(table[1])))
    return proven


def sweep(output: Output) -> None:
    """Remove the temporary files of killed runs; only under the lock."""
    output.remove([name for name in output.sizes() if name.startswith(TEMPORARY_PREFIX)])


def is_ours(name: str) -> bool:
    """Return whether a file is named like one of a dataset."""
    return _OURS.fullmatch(name) is not None


@contextmanager
def explain_full_disk(output: Output) -> Iterator[None]:
    """Add to the error of a full disk how much more is needed, as far as that is known."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename == str(output):  # the estimate's own error names the output
            raise
        message = f"{error.strerror or error}{_needed(output)}; {_FULL[error.errno]}"
        raise OSError(error.errno, message, error.filename or str(output)) from error


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


def summary_lines(summary: Summary) -> list[str]:
    """Return a summary in a few lines for people."""
    totals = summary.totals
    hours = f"{totals['seconds'] / 3600:.2f} hours" if totals["seconds"] else "no time base"
    size = f"{totals['bytes'] / 1e6:.1f} MB in {summary.num_shards} shards"
    if summary.media:
        size += f", an index over {summary.media[0]:,} videos ({summary.media[1] / 1e6:.1f} MB) as they lie"
    lines = [f"{totals['samples']} samples, {totals['frames']} frames, {hours}, {size}"]
    rejected = totals["rejected"]
    lines.append(f"rejected: {sum(rejected.values())}{_counts(rejected)} (each with its reason in {REJECTED_NAME})")
    if totals["remarks"]:
        counts = totals["remarks"]
        lines.append(f"kept with a remark: {sum(counts.values())}{_counts(counts)} (see {REJECTED_NAME})")
    return lines + summary.notes


def planned_reject_lines(plan: BuildPlan) -> list[str]:
    """Return a line about the input that could not become part of the plan, with an example; none if all could."""
    if not plan.problems:
        return []
    counts = dict(sorted(Counter(problem.reason for problem in plan.problems).items()))
    return [
        f"rejected so far: {len(plan.problems)}{_counts(counts)}, such as {describe(plan.problems[0], plan.source)}"
    ]


def _counts(counts: dict[str, int]) -> str:
    return ": " + ", ".join(f"{count} {reason}" for reason, count in counts.items()) if counts else ""
