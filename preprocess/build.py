"""The job: sources and settings in, a finished dataset and its summary out.

    lines = build(video_files([Path("clips")], settings=s), settings=s, options=Options(workers=2), out="out/shards")
    lines = build(..., options=Options(slice=(3, 50)), ...)     # a fiftieth of the shards, on any machine
    lines = merge("out/shards", scratch=Path("/tmp"))           # when all slices are there

Plan, shards over workers, merge. A second call with the same arguments finishes what a killed one left: the plan
is read again, finished shards are kept. Any number of workers, slices and kills writes the same bytes.
"""

import dataclasses
import errno
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from preprocess.append import OF_SOURCES, Part, begun, dataset_settings, differences, extended, parts_of, shards_of
from preprocess.boards import LOCK_NAME
from preprocess.executors import Task, Workers, dask_workers, local_workers, make_shard, run_shards, shard_files
from preprocess.files import TEMPORARY_PREFIX
from preprocess.index import META_NAME, PLAN_NAME, REJECTED_NAME, Dataset, DatasetError, map_dataset, parse_meta
from preprocess.lock import Lock, hold
from preprocess.merge import write_dataset
from preprocess.output import Output, open_output
from preprocess.plan import Plan, Settings, make_plan, read_plan, write_plan
from preprocess.problems import Problem, describe
from preprocess.progress import Progress
from preprocess.shards import shard_name
from preprocess.sources import Source, long_samples
from preprocess.splits import planned_splits
from preprocess.tables import read_shard_table

log = logging.getLogger(__name__)

_OURS = (
    *("shard-*.tar", "shard-*.idx", "shard-*.parquet", "index-*.parquet", "rows-*.arrow", "frames-*.arrow"),
    *(PLAN_NAME, REJECTED_NAME, META_NAME),
)
# What is wrong with a ledger or list, not with the media it names: --max-bad-fraction is about these.
_LIST_FAULTS = {"bad_row", "duplicate_row", "unsafe_name", "missing_folder", "missing_file", "missing_frame"}
_LISTED = 20  # problems shown by name; all of them are in rejected.parquet
_FULL = {errno.ENOSPC: "free some", errno.EDQUOT: "free some, or ask for more", errno.EFBIG: "raise the limit"}


class TooManyBad(ValueError):
    """More of the input is unusable than the caller allows; the message lists it."""


@dataclass(frozen=True)
class Options:
    """How to run; none of it changes what is written."""

    workers: int = 1
    on_error: str = "skip"  # or "fail": the first unusable row or sample stops the build
    max_bad_fraction: float = 0.05  # of rows of a ledger or list that do not fit what is on disk
    overwrite: bool = False
    append: bool = False  # add what the sources have and the dataset has not
    slice: tuple[int, int] | None = None  # (i, n): only shards i, i + n, i + 2 n, ..., and no merge
    scheduler: str = ""  # of a Dask cluster that is to do the work: its address or its scheduler file
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))  # for files on their way to a URL

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers} must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction = {self.max_bad_fraction} must lie in 0 ... 1")
        if self.slice and not 0 <= self.slice[0] < self.slice[1]:
            raise ValueError(f"--slice {self.slice[0]}/{self.slice[1]}: slices of {self.slice[1]} count from 0")
        if self.slice and (self.append or self.overwrite):
            raise ValueError("--slice goes with neither --append nor --overwrite: give those to one run")
        if self.append and self.overwrite:
            raise ValueError("--append and --overwrite exclude each other")


def build(source: Source, *, settings: Settings, options: Options, out: str | Path) -> list[str]:
    """Builds or finishes the dataset in `out`.

    Args:
        source: what to read; it is looked through only if there is no plan yet, or something is appended.
        settings: what is to be written.
        options: how.
        out: the dataset's folder, made if missing; or its URL.

    Returns:
        The lines of a summary.

    Raises:
        TooManyBad: more unusable input than options allow.
        Locked: another run is at work there.
        DatasetError: `out` holds something else, or was begun with other settings or input.
        OSError: `out` cannot be written.
    """
    output = open_output(out, scratch=options.scratch)
    name, job = LOCK_NAME, "build"
    if options.slice:
        job = "slice {}/{}".format(*options.slice)
        name = f"{LOCK_NAME}.{job.replace(' ', '-').replace('/', '-of-')}"
    sliced = options.slice is not None
    with _told_when_full(output):
        output.prepare()
        with hold(output.board, name, job=job, excludes=not sliced, wait=sliced) as lock, output.work() as folder:
            return _Job(source, settings, options, output, folder, lock).run()


def merge(out: str | Path, *, slices: int | None = None, scratch: Path | None = None) -> list[str]:
    """Writes the index of a dataset whose shards were built in slices.

    Args:
        out: the dataset's folder or URL.
        slices: how many slices there were, to tell whose shards are missing.
        scratch: for files on their way to a URL.

    Raises:
        DatasetError: there is no plan, or shards are missing: the message names them.
        Locked: a run or a slice is at work there.
        OSError: `out` cannot be written.
    """
    output = open_output(out, scratch=scratch or Path(tempfile.gettempdir()))
    if PLAN_NAME not in output.sizes():
        raise DatasetError(f"{output}: no {PLAN_NAME}; `preprocess build` makes it, with or without --slice")
    with (
        _told_when_full(output),
        hold(output.board, LOCK_NAME, job="merge", excludes=True) as lock,
        output.work() as folder,
    ):
        output.fetch([PLAN_NAME], folder)
        plan = read_plan(folder / PLAN_NAME)
        surveyed = list(_survey(range(plan.num_shards), output, folder))
        missing = [found.number for found in surveyed if found.kept is None]
        if missing:
            names = [
                shard_name(number) + (f" (slice {number % slices}/{slices})" if slices else "") for number in missing
            ]
            raise DatasetError(
                f"{output}: {len(missing)} of {plan.num_shards} shards are not there: {_some(names)}; run "
                + ("these slices" if slices else "the slices that they belong to (their number modulo the slices)")
                + " again, then merge"
            )
        if not any(found.kept for found in surveyed):
            raise TooManyBad(f"{output}: not one of {len(plan)} samples could be used; the slices tell why")
        return [*_finish(plan, output, folder, lock), *plan.notes]


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


@dataclass(frozen=True)
class _Job:
    """One call of `build` that holds the lock."""

    source: Source
    settings: Settings
    options: Options
    output: Output
    folder: Path
    lock: Lock

    @property
    def asked(self) -> dict[str, Any]:
        """What makes two builds the same."""
        return {**dataclasses.asdict(self.settings), "sources": self.source.identity}

    def run(self) -> list[str]:
        """Does it; returns the lines of a summary."""
        if self.options.slice:
            with hold(self.output.board, f"{LOCK_NAME}.plan", job="making the plan", wait=True):
                plan, _ = self._plan()
            return self._shards(plan)
        _clear(self.output, overwrite=self.options.overwrite)
        plan, is_new = self._plan()
        finished = self.options.append and not is_new and _is_finished(plan, self.output, self.folder)
        told: list[str] = []
        if not finished:
            self._shards(plan)
            told = [*_finish(plan, self.output, self.folder, self.lock), *plan.notes]
        if self.options.append and not is_new:
            told = self._append(plan)
        return told

    def _plan(self) -> tuple[Plan, bool]:
        """The plan, and whether it was made just now."""
        _refuse_foreign(self.output)
        if PLAN_NAME in self.output.sizes():
            self.output.fetch([PLAN_NAME], self.folder)
            plan = read_plan(self.folder / PLAN_NAME)
            if not self.options.append:
                self._same_settings(parts_of(plan))
            return plan, False
        found = self.source.find()
        plan = make_plan(found, source=self.source.list_name, settings=self.settings, asked=self.asked)
        _check_bad(list(plan.problems), len(plan) + len(plan.problems), plan, self.options)
        plan = begun(plan, self.source, self.asked)
        self._write(plan)
        return plan, True

    def _same_settings(self, parts: Sequence[Part]) -> None:
        if differing := differences(parts[0].asked, self.asked):
            raise DatasetError(
                f"{self.output}: was begun with other settings ({differing}); give another --out, or --overwrite"
            )

    def _append(self, plan: Plan) -> list[str]:
        """Adds what the sources have and the plan has not."""
        more = extended(plan, self.source, self.source.find(), settings=self.settings, asked=self.asked)
        if more is None:
            meta = parse_meta((self.folder / META_NAME).read_bytes(), where=f"{self.output}/{META_NAME}")
            return [*_summary(meta, self.output, self.folder), "nothing new to append"]
        count, problems = len(more) - len(plan), more.problems[len(plan.problems) :]
        _check_bad(list(problems), count + len(problems), more, self.options)
        self._write(more)
        self._shards(more)
        added = f"appended: {count} samples in {more.num_shards - plan.num_shards} shards"
        return [*_finish(more, self.output, self.folder, self.lock), added, *more.notes]

    def _write(self, plan: Plan) -> None:
        write_plan(plan, self.folder / PLAN_NAME)
        self.output.publish([PLAN_NAME], self.folder)

    def _shards(self, plan: Plan) -> list[str]:
        """Builds the shards that are not there yet, and watches what is rejected; returns a summary of a slice."""
        i, n = self.options.slice or (0, 1)
        numbers = range(i, plan.num_shards, n)
        log.info("%d samples in %d shards", len(plan), plan.num_shards)
        bad, todo, kept = list(plan.problems), [], 0
        for found in _survey(numbers, self.output, self.folder):
            if found.kept is None:
                todo.append(found.number)
            else:
                kept += found.kept
                bad += found.lost
        if len(todo) < len(numbers):
            log.info("%d of %d shards are there already and are kept", len(numbers) - len(todo), len(numbers))
        self._can_build(plan, todo)
        # Whatever a killed run left of them; the table goes first, for that marks a shard as done.
        there = self.output.sizes()
        self.output.remove([name for number in todo for name in reversed(shard_files(number)) if name in there])
        asked = len(plan) + len(plan.problems)
        _check_bad(bad, asked, plan, self.options)
        began, built, rejected, done = time.monotonic(), 0, 0, len(numbers) - len(todo)
        total = len(plan) if n == 1 else sum(len(plan.shard(number)) for number in numbers)
        with (
            Progress(total, "sample", done=kept + len(bad) - len(plan.problems)) as advance,
            self._workers() as workers,
        ):
            for result in run_shards(todo, partial(self._task, plan), workers):
                self.lock.check()
                for name, reason, message in result.remarks:
                    log.warning("%s: kept, but %s: %s", name, reason, message)
                bad += [Problem(reason, message, name) for name, reason, message in result.rejected]
                _check_bad(bad, asked, plan, self.options)
                built, rejected = built + 1, rejected + len(result.rejected)
                rate = built / max(time.monotonic() - began, 1e-3)
                more = f"{done + built} of {len(numbers)} shards, {rate:.2f} shards a second, {rejected} rejected"
                advance(result.num_samples + len(result.rejected), more)
        return [
            f"{len(numbers)} of {plan.num_shards} shards are of this slice, {built} were built now; `merge` is next"
        ]

    def _can_build(self, plan: Plan, todo: Sequence[int]) -> None:
        """Raises DatasetError unless the shards that are to be built are of the sources that were given."""
        parts = parts_of(plan)
        for number, part in enumerate(parts):
            shards = [shard_name(shard) for shard in todo if shard in shards_of(parts, number)]
            but = OF_SOURCES if self.options.append else frozenset[str]()
            roots = [root.name for root in self.source.roots]
            if shards and (part.roots != roots or differences(part.asked, self.asked, but=but)):
                how = "the build" if number == 0 else "the build --append"
                raise DatasetError(
                    f"{self.output}: {_some(shards)} of {how} of {_sources(part.asked)} are not there yet; finish that "
                    "first, with the same command"
                )

    def _task(self, plan: Plan, number: int) -> Task:
        roots, settings = self.source.roots, self.settings
        return partial(make_shard, number, plan.shard(number), roots=roots, settings=settings, output=self.output)

    def _workers(self) -> AbstractContextManager[Workers]:
        return dask_workers(self.options.scheduler) if self.options.scheduler else local_workers(self.options.workers)


@dataclass(frozen=True)
class _Surveyed:
    """A shard: how many samples it has, or None if it is to be built; and what of it was rejected."""

    number: int
    kept: int | None
    lost: list[Problem]


def _survey(numbers: Sequence[int], output: Output, folder: Path) -> Iterator[_Surveyed]:
    """Looks which shards are whole; their tables are in `folder` afterwards."""
    sizes = output.sizes()
    tables = {number: shard_files(number)[-1] for number in numbers}
    output.fetch([name for name in tables.values() if name in sizes], folder)
    for number, name in tables.items():
        try:
            table, shard = read_shard_table(folder / name)
        except DatasetError:
            yield _Surveyed(number, None, [])
            continue
        tar, idx, _ = shard_files(number)
        if sizes.get(tar, -1) not in (shard.bytes, None) or idx not in sizes:
            yield _Surveyed(number, None, [])
            continue
        lost = table.filter(pc.field("num_frames") == 0).select(["reason", "message", "name", "line"])
        yield _Surveyed(number, shard.num_samples, [Problem(**row) for row in lost.to_pylist()])


def _finish(plan: Plan, output: Output, folder: Path, lock: Lock) -> list[str]:
    """Writes the index of a plan whose shards are all there."""
    _sweep(output)  # what workers that were killed have left
    tables = [shard_files(number)[-1] for number in range(plan.num_shards)]
    output.fetch(tables, folder)
    lock.check()
    rejected = [_rejected_row(problem, plan.source) for problem in plan.problems]
    paths = [folder / name for name in tables]
    meta = write_dataset(
        folder,
        tables=paths,
        settings=dataset_settings(plan),
        label_names=plan.label_names,
        rejected=rejected,
        splits=planned_splits(plan),
        split_rule=plan.split_rule,
    )
    output.publish([*(entry["name"] for entry in meta["files"].values()), META_NAME], folder)
    return _summary(meta, output, folder)


def _summary(meta: dict[str, Any], output: Output, folder: Path) -> list[str]:
    output.fetch([entry["name"] for entry in meta["files"].values()], folder)
    return summary(map_dataset(folder, meta))


def _is_finished(plan: Plan, output: Output, folder: Path) -> bool:
    """Whether dataset.json is that of this plan."""
    if META_NAME not in output.sizes():
        return False
    output.fetch([META_NAME], folder)
    meta = parse_meta((folder / META_NAME).read_bytes(), where=f"{output}/{META_NAME}")
    return len(meta["shards"]) == plan.num_shards and bool(meta["settings"] == dataset_settings(plan))


def _refuse_foreign(output: Output) -> None:
    """Raises DatasetError for a place that holds other things, or shards that no plan tells of."""
    names = [name for name in output.sizes() if not name.startswith((TEMPORARY_PREFIX, LOCK_NAME))]
    foreign = sorted(name for name in names if not _is_ours(name))
    if PLAN_NAME in names or not names:
        return
    if foreign:
        raise DatasetError(f"{output}: holds other things ({_some(foreign)}); give an empty or new folder as --out")
    raise DatasetError(f"{output}: shards without {PLAN_NAME}; give another --out, or --overwrite to remove them")


def _clear(output: Output, *, overwrite: bool) -> None:
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
def _told_when_full(output: Output) -> Iterator[None]:
    """Says of a disk that is full how much more is needed, as far as that is known."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _sources(asked: dict[str, Any]) -> str:
    return _some([source["name"] for source in asked["sources"]])


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
