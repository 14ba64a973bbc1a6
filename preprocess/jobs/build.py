"""The job: sources and settings in, a finished dataset and its summary out.

    lines = build(video_files([Path("clips")], settings=s), settings=s, options=Options(workers=2), out="out/shards")
    lines = build(..., options=Options(slice=(3, 50)), ...)     # a fiftieth of the shards, on any machine

Plan, shards over workers, merge. A second call with the same arguments finishes what a killed one left: the plan
is read again, finished shards are kept. Any number of workers, slices and kills writes the same bytes.
"""

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.dataset.index import META_NAME, PLAN_NAME, DatasetError, parse_meta
from preprocess.dataset.schema import shard_files, shard_name
from preprocess.encode.shard import ShardResult, build_shard
from preprocess.jobs.append import OF_SOURCES, Part, begun, differences, extended, parts_of, shards_of
from preprocess.jobs.estimate import TRIAL_S, Estimate, estimate_of, lines_of, require_room, surely_fits
from preprocess.jobs.lock import Lock, hold
from preprocess.jobs.lock_store import LOCK_NAME
from preprocess.jobs.output import FolderOutput, Output, open_output
from preprocess.jobs.output_state import (
    clear,
    finish,
    is_finished,
    lost_already,
    refuse_foreign,
    summary_of,
    survey,
    told_when_full,
)
from preprocess.plan.plan import Plan, PlannedSample, Settings, make_plan, read_plan, write_plan
from preprocess.plan.rejects import Rejects, Remarks, some
from preprocess.problems import Problem
from preprocess.sources.roots import Root
from preprocess.sources.source import Source
from preprocess.workers.executors import Workers, dask_workers, local_workers, run_tasks
from preprocess.workers.progress import Progress

log = logging.getLogger(__name__)


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
    plan_only: bool = False  # write the plan, try some samples, tell what the rest will take
    ignore_space: bool = False  # begin although the disk is too small by far

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
    with told_when_full(output):
        output.prepare()
        with hold(output.board, name, job=job, excludes=not sliced, wait=sliced) as lock, output.work() as folder:
            return _Job(source, settings, options, output, folder, lock).run()


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
            return self._told(plan) if self.options.plan_only else self._shards(plan)
        clear(self.output, overwrite=self.options.overwrite)
        plan, is_new = self._plan()
        if self.options.plan_only:
            return self._told(plan)
        finished = self.options.append and not is_new and is_finished(plan, self.output, self.folder)
        told: list[str] = []
        if not finished:
            self._shards(plan)
            told = [*finish(plan, self.output, self.folder, self.lock), *plan.notes]
        if self.options.append and not is_new:
            told = self._append(plan)
        return told

    def _plan(self) -> tuple[Plan, bool]:
        """The plan, and whether it was made just now."""
        refuse_foreign(self.output)
        if PLAN_NAME in self.output.sizes():
            self.output.fetch([PLAN_NAME], self.folder)
            plan = read_plan(self.folder / PLAN_NAME)
            if not self.options.append:
                self._same_settings(parts_of(plan))
            return plan, False
        found = self.source.find()
        plan = make_plan(found, source=self.source.list_name, settings=self.settings, asked=self.asked)
        plan = begun(plan, self.source, self.asked)
        self._rejects(plan)
        self._write(plan)
        return plan, True

    def _same_settings(self, parts: Sequence[Part]) -> None:
        if differing := differences(parts[0].asked, self.asked):
            remedy = "give another --out, or --overwrite"
            if not differences(parts[0].asked, self.asked, but=OF_SOURCES):
                remedy += ", or --append to add to it what is new"
            raise DatasetError(f"{self.output}: was begun with other settings ({differing}); {remedy}")

    def _append(self, plan: Plan) -> list[str]:
        """Adds what the sources have and the plan has not."""
        more = extended(plan, self.source, self.source.find(), settings=self.settings, asked=self.asked)
        if more is None:
            meta = parse_meta((self.folder / META_NAME).read_bytes(), where=f"{self.output}/{META_NAME}")
            return [*summary_of(meta, self.output, self.folder), "nothing new to append"]
        self._rejects(more)
        self._write(more)
        self._shards(more)
        added = f"appended: {len(more) - len(plan)} samples in {more.num_shards - plan.num_shards} shards"
        return [*finish(more, self.output, self.folder, self.lock), added, *more.notes]

    def _told(self, plan: Plan) -> list[str]:
        """What the shards that are not there yet will take."""
        i, n = self.options.slice or (0, 1)
        shards = survey(range(i, plan.num_shards, n), self.output, self.folder)
        todo = [found.number for found in shards if found.kept is None]
        told = lines_of(self._estimate(plan, todo), self.settings, free_bytes=self._free_bytes())
        return [*told, *lost_already(plan), *plan.notes]

    def _check_room(self, plan: Plan, todo: Sequence[int]) -> None:
        """Warns if the disk may be too small; raises OSError if it is by far. Tries nothing if it is surely large."""
        free = self._free_bytes()
        if free is None or not todo or surely_fits(plan, todo, self.settings, free):
            return
        estimate = self._estimate(plan, todo, trial_s=TRIAL_S / 4)
        for line in lines_of(estimate, self.settings, free_bytes=free):
            log.log(logging.WARNING if line.startswith("warning") else logging.INFO, "%s", line)
        if not self.options.ignore_space:
            require_room(estimate, self.settings, free_bytes=free, out=str(self.output))

    def _estimate(self, plan: Plan, todo: Sequence[int], *, trial_s: float = TRIAL_S) -> Estimate:
        roots, workers = self.source.roots, self.options.workers
        return estimate_of(plan, todo, roots, self.settings, workers=workers, folder=self.folder, trial_s=trial_s)

    def _free_bytes(self) -> int | None:
        return shutil.disk_usage(self.folder).free if isinstance(self.output, FolderOutput) else None

    def _write(self, plan: Plan) -> None:
        write_plan(plan, self.folder / PLAN_NAME)
        self.output.publish([PLAN_NAME], self.folder)

    def _shards(self, plan: Plan) -> list[str]:
        """Builds the shards that are not there yet, and watches what is rejected; returns a summary of a slice."""
        i, n = self.options.slice or (0, 1)
        numbers = range(i, plan.num_shards, n)
        log.info("%d samples in %d shards", len(plan), plan.num_shards)
        rejects, remarks, todo, kept = self._rejects(plan), Remarks(), [], 0
        last = shards_of(parts := parts_of(plan), len(parts) - 1)
        for found in survey(numbers, self.output, self.folder):
            if found.kept is None:
                todo.append(found.number)
            else:
                kept += found.kept + len(found.lost)
                rejects.add(found.lost if found.number in last else ())
        if len(todo) < len(numbers):
            log.info("%d of %d shards are there already and are kept", len(numbers) - len(todo), len(numbers))
        self._can_build(plan, todo)
        self._check_room(plan, todo)
        # Whatever a killed run left of them; the table goes first, for that marks a shard as done.
        there = self.output.sizes()
        self.output.remove([name for number in todo for name in reversed(shard_files(number)) if name in there])
        began, built, rejected, done = time.monotonic(), 0, 0, len(numbers) - len(todo)
        total = int(np.count_nonzero(plan.rows["shard"].to_numpy() % n == i))
        with Progress(total, "sample", done=kept) as advance, self._workers() as workers:
            for result in run_tasks(todo, partial(self._task, plan), workers):
                self.lock.check()
                remarks.tell(result.remarks)
                if result.number in last:  # earlier ones were accepted
                    rejects.add(Problem(reason, message, name) for name, reason, message in result.rejected)
                built, rejected = built + 1, rejected + len(result.rejected)
                rate = built / max(time.monotonic() - began, 1e-3)
                more = f"{done + built} of {len(numbers)} shards, {rate:.2f} shards a second, {rejected} rejected"
                advance(result.num_samples + len(result.rejected), more)
        return [
            f"{len(numbers)} of {plan.num_shards} shards are of this slice, {built} were built now; `merge` is next"
        ]

    def _rejects(self, plan: Plan) -> Rejects:
        """The count for the last part of a plan; earlier ones were accepted."""
        part = parts_of(plan)[-1]
        rejects = Rejects(
            part.num_samples + part.num_problems,
            source=plan.source,
            on_error=self.options.on_error,
            max_bad_fraction=self.options.max_bad_fraction,
        )
        rejects.add(plan.problems[len(plan.problems) - part.num_problems :])
        return rejects

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
                    f"{self.output}: {some(shards)} of {how} of {_sources(part.asked)} are not there yet; finish that "
                    "first, with the same command"
                )

    def _task(self, plan: Plan, number: int) -> Callable[[], ShardResult]:
        roots, settings = self.source.roots, self.settings
        return partial(make_shard, number, plan.shard(number), roots=roots, settings=settings, output=self.output)

    def _workers(self) -> AbstractContextManager[Workers]:
        return dask_workers(self.options.scheduler) if self.options.scheduler else local_workers(self.options.workers)


def _sources(asked: dict[str, Any]) -> str:
    return some([source["name"] for source in asked["sources"]])


def make_shard(
    number: int, samples: list[PlannedSample], *, roots: Sequence[Root], settings: Settings, output: Output
) -> ShardResult:
    """Builds a shard and puts it where it belongs, its table last; arguments as `build_shard`."""
    with output.work() as folder:
        result = build_shard(number, samples, roots=roots, settings=settings, out=folder)
        output.publish(shard_files(number), folder)
    return result
