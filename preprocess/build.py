"""The job: sources and settings in, a finished dataset folder and its summary out.

    lines = build(video_files([Path("clips")], settings=s), settings=s, options=Options(workers=2), out=out)

Plan, shards over processes, merge. A second call with the same arguments finishes what a killed one left: the plan
is read again, finished shards are kept. Any number of workers writes the same bytes.
"""

import dataclasses
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from preprocess.files import TEMPORARY_PREFIX
from preprocess.index import META_NAME, PLAN_NAME, REJECTED_NAME, Dataset, DatasetError, open_dataset
from preprocess.merge import settings_hash, write_dataset
from preprocess.plan import Plan, Settings, make_plan, read_plan, write_plan
from preprocess.problems import Problem, describe
from preprocess.progress import Progress
from preprocess.roots import Root
from preprocess.shards import ShardResult, build_shard, finished, shard_name
from preprocess.sources import Source, long_samples
from preprocess.tables import read_shard_table

log = logging.getLogger(__name__)

_OURS = ("shard-*.tar", "shard-*.idx", "shard-*.parquet", "index-*.parquet", "rows-*.arrow", "frames-*.arrow")
# What is wrong with a ledger or list, not with the media it names: --max-bad-fraction is about these.
_LIST_FAULTS = {"bad_row", "duplicate_row", "unsafe_name", "missing_folder", "missing_file", "missing_frame"}
_LISTED = 20  # problems shown by name; all of them are in rejected.parquet


class TooManyBad(ValueError):
    """More of the input is unusable than the caller allows; the message lists it."""


@dataclass(frozen=True)
class Options:
    """How to run; none of it changes what is written."""

    workers: int = 1
    on_error: str = "skip"  # or "fail": the first unusable row or sample stops the build
    max_bad_fraction: float = 0.05  # of rows of a ledger or list that do not fit what is on disk
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers} must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction = {self.max_bad_fraction} must lie in 0 ... 1")


def build(source: Source, *, settings: Settings, options: Options, out: Path) -> list[str]:
    """Builds or finishes the dataset in `out`.

    Args:
        source: what to read; it is looked through only if there is no plan yet.
        settings: what is to be written.
        options: how.
        out: the dataset's folder; made if missing.

    Returns:
        The lines of a summary.

    Raises:
        TooManyBad: more unusable input than options allow.
        DatasetError: `out` holds something else, or was begun with other settings or input.
        OSError: `out` cannot be written.
    """
    asked = {**dataclasses.asdict(settings), "sources": source.identity}
    _prepare(out, overwrite=options.overwrite)
    if (out / PLAN_NAME).exists():
        plan = read_plan(out / PLAN_NAME)
        _same_settings(plan.settings, asked, out)
    else:
        found = source.find()
        plan = make_plan(found, source=source.list_name, settings=settings, asked=asked)
        _check_bad(list(plan.problems), len(plan) + len(plan.problems), plan, options)
        write_plan(plan, out / PLAN_NAME)
    log.info("%d samples in %d shards", len(plan), plan.num_shards)
    _build_shards(plan, source.roots, settings, options, out)
    tables = [out / f"{shard_name(number)}.parquet" for number in range(plan.num_shards)]
    rejected = [_rejected_row(problem, plan.source) for problem in plan.problems]
    write_dataset(out, tables=tables, settings=asked, label_names=plan.label_names, rejected=rejected)
    return [*summary(open_dataset(out)), *plan.notes]


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
    return lines + long_samples(seconds, dataset.num_frames)


def _counts(counts: dict[str, int]) -> str:
    return ": " + ", ".join(f"{count} {reason}" for reason, count in counts.items()) if counts else ""


def _prepare(out: Path, *, overwrite: bool) -> None:
    """Makes the folder, sweeps what a killed run left in it, and refuses one with other things in it."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink()
    ours = {path for pattern in _OURS for path in out.glob(pattern)}
    ours |= {path for name in (PLAN_NAME, REJECTED_NAME, META_NAME) if (path := out / name).exists()}
    foreign = sorted(path.name for path in out.iterdir() if path not in ours)
    if foreign and not (out / PLAN_NAME).exists():
        raise DatasetError(
            f"{out}: holds other things ({', '.join(foreign[:3])}); give an empty or new folder as --out"
        )
    if overwrite:
        # dataset.json first: without it nothing that is half removed passes for a dataset.
        for path in sorted(ours, key=lambda path: path.name != META_NAME):
            path.unlink()
    elif ours and not (out / PLAN_NAME).exists():
        raise DatasetError(f"{out}: shards without {PLAN_NAME}; give another --out, or --overwrite to remove them")


def _same_settings(there: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    if settings_hash(there) == settings_hash(asked):
        return
    keys = sorted(key for key in there.keys() | asked.keys() if there.get(key) != asked.get(key))
    differing = ", ".join(f"{key} = {there.get(key)} there, {asked.get(key)} asked for" for key in keys)
    raise DatasetError(f"{out}: was begun with other settings ({differing}); give another --out, or --overwrite")


def _build_shards(plan: Plan, roots: tuple[Root, ...], settings: Settings, options: Options, out: Path) -> None:
    """Builds the shards that are not there yet, over processes, and watches what is rejected."""
    todo = [number for number in range(plan.num_shards) if finished(out, number) is None]
    for number in todo:
        # Whatever a killed run left of it; its table goes first, for that marks it as done.
        for suffix in (".parquet", ".idx", ".tar"):
            (out / f"{shard_name(number)}{suffix}").unlink(missing_ok=True)
    bad = list(plan.problems)
    asked = len(plan) + len(plan.problems)
    with Progress(len(plan), "sample") as advance:
        for number in sorted(set(range(plan.num_shards)) - set(todo)):
            table, _ = read_shard_table(out / f"{shard_name(number)}.parquet")
            lost = table.filter(pc.field("num_frames") == 0).select(["reason", "message", "name", "line"])
            bad += [Problem(**row) for row in lost.to_pylist()]
            advance(len(table))
        _check_bad(bad, asked, plan, options)
        for result in _results(plan, todo, roots, settings, options, out):
            for name, reason, message in result.remarks:
                log.warning("%s: kept, but %s: %s", name, reason, message)
            bad += [Problem(reason, message, name) for name, reason, message in result.rejected]
            _check_bad(bad, asked, plan, options)
            advance(result.num_samples + len(result.rejected))


def _results(
    plan: Plan, todo: list[int], roots: tuple[Root, ...], settings: Settings, options: Options, out: Path
) -> Iterator[ShardResult]:
    """Runs build_shard for each shard; the rows of a shard are made only when it is its turn."""
    if options.workers == 1 or len(todo) < 2:
        for number in todo:
            yield build_shard(number, plan.shard(number), roots=roots, settings=settings, out=out)
        return
    workers = min(options.workers, len(todo))
    # On Ctrl-C the workers die at once and silently; what they leave is swept by the next run.
    on_interrupt = (signal.SIGINT, signal.SIG_DFL)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal, initargs=on_interrupt)
    try:
        waiting = iter(todo)
        running = set()
        while True:
            for number in waiting:
                running.add(
                    pool.submit(build_shard, number, plan.shard(number), roots=roots, settings=settings, out=out)
                )
                if len(running) > workers:
                    break
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    except BrokenProcessPool as error:
        # As the disk's failures do, this ends with exit code 3: nothing is wrong with the input.
        raise ChildProcessError("a worker died, perhaps for want of memory (try fewer --workers)") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_bad(bad: list[Problem], asked: int, plan: Plan, options: Options) -> None:
    """Stops where a list does not describe what is on disk, or where nothing is left; broken media are only counted.

    An archive has broken files, and the summary counts them; a ledger of which a tenth is wrong is the wrong ledger.
    """
    wrong = [problem for problem in bad if problem.reason in _LIST_FAULTS and not problem.expected]
    if options.on_error == "fail":
        told, limit = bad, "--on-error fail allows none"
        stop = bool(bad)
    elif len(bad) >= asked:
        told, limit = bad, "so nothing is left"
        stop = True
    else:
        allowed = int(options.max_bad_fraction * asked)
        told, limit = (
            wrong,
            f"--max-bad-fraction {options.max_bad_fraction:g} allows {allowed}: mend them, or allow more",
        )
        stop = len(wrong) > allowed
    if not stop:
        return
    lines = [describe(problem, plan.source) for problem in told[:_LISTED]]
    if len(told) > _LISTED:
        lines.append(f"... and {len(told) - _LISTED} more")
    raise TooManyBad("\n".join([*lines, f"{len(told)} of {asked} rows cannot be used, {limit}"]))


def _rejected_row(problem: Problem, source: str) -> dict[str, Any]:
    return {
        "key": "",
        "name": problem.name,
        "num_frames": 0,
        "file": problem.file or source or problem.name,
        "line": problem.line,
        "frame": -1,
        "reason": problem.reason,
        "message": problem.message,
    }
