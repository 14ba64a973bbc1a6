"""A dataset is built from sources and settings: plan, shards over workers, index; or what one call is to do of it.

    result = build(video_files([Path("clips")], settings=s), settings=s, options=Options(workers=2), out="out/shards")
    result = build(..., options=Options(slice=(3, 50)), ...)     # a fiftieth of the shards, on any machine

A second call with the same arguments finishes a build that was killed: the plan is read again, finished shards are
kept. Any number of workers, slices and kills writes the same bytes.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mae3d.io.lock import Lock, hold
from mae3d.io.lock_store import LOCK_NAME
from mae3d.io.progress import Progress
from preprocess.dataset.index import META_NAME, PLAN_NAME, DatasetError, parse_meta
from preprocess.dataset.schema import shard_files, shard_name
from preprocess.encode.shared_shard import Crew, ShardResult, SharedShard, build_shard
from preprocess.jobs.append import (
    OF_SOURCES,
    BuildPart,
    build_identity,
    differences,
    extend_plan,
    parts_of,
    shards_of,
    start_plan,
)
from preprocess.jobs.estimate import TRIAL_S, Estimate, estimate_of, lines_of, require_room, surely_fits
from preprocess.jobs.options import Options
from preprocess.jobs.output import FolderOutput, Output, open_output
from preprocess.jobs.output_state import (
    Summary,
    dataset_files,
    explain_full_disk,
    finish,
    is_finished,
    refuse_foreign,
    summary_of,
    survey,
    sweep,
)
from preprocess.jobs.stored_pixels import settled
from preprocess.plan.plan import BuildPlan, make_plan, read_plan, write_plan
from preprocess.plan.rejects import Rejects, Remarks, first_names
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.roots import Root
from preprocess.sources.source import Source
from preprocess.workers.decoder import decoder, end_ahead, start_ahead
from preprocess.workers.executors import dask_workers, local_workers, run_tasks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanState:
    """The plan at an output, and how far its shards are."""

    plan: BuildPlan
    progress: Literal["new", "resumed", "finished"]


@dataclass(frozen=True)
class SliceResult:
    """The shards of a slice, and the number of those that this call has built."""

    num_shards: int
    num_built: int


@dataclass(frozen=True)
class BuildResult:
    """The outcome of one call of `build`: a dataset, a slice, or only a plan with its estimate."""

    plan: BuildPlan
    summary: Summary | None = None  # of the dataset
    slice: SliceResult | None = None
    estimate: Estimate | None = None  # with `plan_only`
    free_bytes: int | None = None  # on the output's disk; None = not known
    appended: tuple[int, int] | None = None  # samples and shards; (0, 0) = the sources have nothing new


@dataclass(frozen=True)
class _Job:
    """The arguments of one call of `build` that holds the lock, and the folder that it works in."""

    source: Source
    settings: Settings
    options: Options
    output: Output
    folder: Path
    lock: Lock

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings and sources that two builds of the same dataset share."""
        return build_identity(self.settings, self.source.identity)

    @property
    def free_bytes(self) -> int | None:
        """Return the free space on the output's disk; None if it is not known."""
        return shutil.disk_usage(self.folder).free if isinstance(self.output, FolderOutput) else None


def build(source: Source, *, settings: Settings, options: Options, out: str | Path) -> BuildResult:
    """Build or finish the dataset in `out`.

    Args:
        source: the media; they are scanned only if there is no plan yet, or if samples are appended.
        settings: sizes, rates and limits of the dataset.
        options: the way to run.
        out: the dataset's folder, made if missing; or its URL.

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
    with explain_full_disk(output):
        output.prepare()
        try:
            with hold(output.locks, name, job=job, excludes=not sliced, wait=sliced) as lock, output.work() as folder:
                return _run(_Job(source, settings, options, output, folder, lock))
        finally:
            end_ahead()


def _run(job: _Job) -> BuildResult:
    if job.options.slice:
        with hold(job.output.locks, f"{LOCK_NAME}.plan", job="making the plan", wait=True):
            job = _settled(job)
            state = plan_for(job)
    else:
        sweep(job.output)
        job = _settled(job)
        state = plan_for(job)
    plan = state.plan
    if job.options.plan_only:
        estimate = _estimate(job, plan, _missing_shards(job, plan), compare=True)
        return BuildResult(plan, estimate=estimate, free_bytes=job.free_bytes)
    if job.options.slice:
        return BuildResult(plan, slice=run_shards(job, plan))
    appending = job.options.append and state.progress != "new"
    if appending and state.progress == "finished":
        return append(job, plan)
    run_shards(job, plan)
    summary = finish(plan, job.output, job.folder, job.lock)
    return append(job, plan) if appending else BuildResult(plan, summary)


def _settled(job: _Job) -> _Job:
    """Return the job with channels and bits of its frames: those of the plan that is there, or of the first sample.

    Raises:
        ValueError: the layout cannot hold the frames.
    """
    if job.options.overwrite or not job.output.has(PLAN_NAME):
        if not job.options.overwrite:
            refuse_foreign(job.output)
        scan = job.source.find()
        if not job.options.plan_only and not job.options.scheduler:
            start_ahead(min(job.options.workers, len(scan.requests)) - 1)  # beside the one that looked at the sources
        settings = settled(job.settings, scan.requests, job.source.roots)
        return replace(job, settings=settings, source=replace(job.source, find=lambda: scan))
    if job.settings.layout != "png":
        return job
    job.output.fetch([PLAN_NAME], job.folder)
    there = parts_of(read_plan(job.folder / PLAN_NAME))[0].identity
    kind = {name: getattr(job.settings, name) or there.get(name, 0) for name in ("channels", "bits")}
    return replace(job, settings=replace(job.settings, **kind))


def plan_for(job: _Job) -> PlanState:
    """Return the plan that is at the output, or make it.

    Raises:
        DatasetError: the output holds other things, or was begun with other settings.
        TooManyBad: too much of the input cannot be planned.
    """
    replaced = dataset_files(job.output, job.folder) if job.options.overwrite else []
    if not replaced:
        refuse_foreign(job.output)
    if replaced or not job.output.has(PLAN_NAME):
        plan = make_plan(job.source.find(), source=job.source.list_name, settings=job.settings, identity=job.identity)
        plan = start_plan(plan, job.source, job.identity)
        _publish_plan(job, plan, instead_of=replaced)
        return PlanState(plan, "new")
    job.output.fetch([PLAN_NAME], job.folder)
    plan = read_plan(job.folder / PLAN_NAME)
    if not job.options.append:
        _require_same_settings(job, parts_of(plan)[0])
    return PlanState(plan, "finished" if is_finished(plan, job.output, job.folder) else "resumed")


def append(job: _Job, plan: BuildPlan) -> BuildResult:
    """Add the samples that the sources have and the plan has not."""
    scan = job.source.find()
    longer = extend_plan(plan, job.source, scan, settings=job.settings, identity=job.identity)
    if longer is None:
        meta = parse_meta((job.folder / META_NAME).read_bytes(), where=f"{job.output}/{META_NAME}")
        return BuildResult(plan, summary_of(meta, job.output, job.folder), appended=(0, 0))
    _publish_plan(job, longer)
    run_shards(job, longer)
    added = len(longer) - len(plan), longer.num_shards - plan.num_shards
    return BuildResult(longer, finish(longer, job.output, job.folder, job.lock), appended=added)


def run_shards(job: _Job, plan: BuildPlan) -> SliceResult:
    """Build the shards that are missing, and count the samples that are rejected.

    Raises:
        TooManyBad: more is rejected than the options allow.
        Locked: another process has taken the lock over.
        OSError: the output cannot be written, or its disk is too small by far.
    """
    i, n = job.options.slice or (0, 1)
    numbers = range(i, plan.num_shards, n)
    log.info("%d samples in %d shards", len(plan), plan.num_shards)
    rejects, remarks = _count_rejects(job, plan), Remarks()
    todo: list[int] = []
    num_kept = 0
    last = shards_of(parts := parts_of(plan), len(parts) - 1)
    for shard in survey(numbers, job.output, job.folder):
        if shard.num_samples is None:
            todo.append(shard.number)
        else:
            num_kept += shard.num_samples + len(shard.rejected)
            rejects.add(shard.rejected if shard.number in last else ())
    if len(todo) < len(numbers):
        log.info("%d of %d shards are there already and are kept", len(numbers) - len(todo), len(numbers))
    _require_own_shards(job, plan, todo)
    _require_room(job, plan, todo)
    _remove_leftovers(job.output, todo)
    began, num_built, num_rejected = time.monotonic(), 0, 0
    total = int(np.count_nonzero(plan.rows["shard"].to_numpy() % n == i))
    options = job.options
    workers = dask_workers(options.scheduler) if options.scheduler else local_workers(options.workers)
    crew = Crew(partial(_shared_shard, job, plan))
    given: Iterable[int] = todo if options.scheduler else crew.numbers(todo)
    task: Callable[[int], Callable[[], ShardResult | None]] = crew.task
    if options.scheduler:
        task = partial(_shard_task, job, plan)
    if options.workers > 1:
        decoder().lend()
    with Progress(total, "sample", doing="build", done=num_kept) as advance, workers as pool:
        for result in run_tasks(given, task, pool):
            job.lock.check()
            if result is None:
                continue
            remarks.log(result.remarks)
            if result.number in last:  # the rejects of earlier parts were accepted
                rejects.add(Problem(reason, message, name) for name, reason, message in result.rejected)
            num_built, num_rejected = num_built + 1, num_rejected + len(result.rejected)
            rate = num_built / max(time.monotonic() - began, 1e-3)
            done = len(numbers) - len(todo) + num_built
            more = f"{done}/{len(numbers)} shards", f"{num_rejected} rejected", f"{rate:.2f} shards/s"
            advance(result.num_samples + len(result.rejected), *more)
    return SliceResult(len(numbers), num_built)


def _missing_shards(job: _Job, plan: BuildPlan) -> list[int]:
    i, n = job.options.slice or (0, 1)
    shards = survey(range(i, plan.num_shards, n), job.output, job.folder)
    return [shard.number for shard in shards if shard.num_samples is None]


def _remove_leftovers(output: Output, shards: Sequence[int]) -> None:
    """Remove the files that a killed run left of shards; the table goes first because it marks a shard as done."""
    present = output.sizes()
    output.remove([name for number in shards for name in reversed(shard_files(number)) if name in present])


def _publish_plan(job: _Job, plan: BuildPlan, *, instead_of: Sequence[str] = ()) -> None:
    """Write the plan, unless too much of the input could not be planned; only then is an old dataset removed."""
    _count_rejects(job, plan)
    job.output.remove(instead_of)
    write_plan(plan, job.folder / PLAN_NAME)
    job.output.publish([PLAN_NAME], job.folder)


def _count_rejects(job: _Job, plan: BuildPlan) -> Rejects:
    """Return the count for the last part of a plan; the rejects of earlier parts were accepted."""
    part = parts_of(plan)[-1]
    rejects = Rejects(
        part.num_samples + part.num_problems,
        source=plan.source,
        on_error=job.options.on_error,
        max_bad_fraction=job.options.max_bad_fraction,
    )
    rejects.add(plan.problems[len(plan.problems) - part.num_problems :])
    return rejects


def _require_same_settings(job: _Job, first: BuildPart) -> None:
    if differing := differences(first.identity, job.identity):
        remedy = "give another --out, or --overwrite"
        if not differences(first.identity, job.identity, but=OF_SOURCES):
            remedy += ", or --append to add to it what is new"
        raise DatasetError(f"{job.output}: was begun with other settings ({differing}); {remedy}")


def _require_own_shards(job: _Job, plan: BuildPlan, todo: Sequence[int]) -> None:
    """Raise DatasetError if shards that are to be built are of other sources than those that were given."""
    parts = parts_of(plan)
    for number, part in enumerate(parts):
        shards = [shard_name(shard) for shard in todo if shard in shards_of(parts, number)]
        but = OF_SOURCES if job.options.append else frozenset[str]()
        roots = [root.name for root in job.source.roots]
        if shards and (part.roots != roots or differences(part.identity, job.identity, but=but)):
            how = "the build" if number == 0 else "the build --append"
            sources = first_names([source["name"] for source in part.identity["sources"]])
            raise DatasetError(
                f"{job.output}: {first_names(shards)} of {how} of {sources} are not there yet; finish that first, with "
                "the same command"
            )


def _require_room(job: _Job, plan: BuildPlan, todo: Sequence[int]) -> None:
    """Warn if the disk may be too small; raise OSError if it is by far. Nothing is tried if it is surely large."""
    free = job.free_bytes
    if free is None or not todo or job.settings.stored_as.is_in_place or surely_fits(plan, todo, job.settings, free):
        return
    estimate = _estimate(job, plan, todo, trial_s=TRIAL_S / 4)
    for line in lines_of(estimate, free_bytes=free):
        log.log(logging.WARNING if line.startswith("warning") else logging.INFO, "%s", line)
    if not job.options.ignore_space:
        require_room(estimate, free_bytes=free, out=str(job.output))


def _estimate(
    job: _Job, plan: BuildPlan, todo: Sequence[int], *, trial_s: float = TRIAL_S, compare: bool = False
) -> Estimate:
    return estimate_of(
        plan,
        todo,
        job.source.roots,
        job.settings,
        workers=job.options.workers,
        folder=job.folder,
        trial_s=trial_s,
        compare=compare,
    )


def _shard_task(job: _Job, plan: BuildPlan, number: int) -> Callable[[], ShardResult]:
    samples, roots = plan.shard(number), job.source.roots
    return partial(make_shard, number, samples, roots=roots, settings=job.settings, output=job.output)


def make_shard(
    number: int, samples: list[PlannedSample], *, roots: Sequence[Root], settings: Settings, output: Output
) -> ShardResult:
    """Build a shard and publish its files; the other arguments are those of `SharedShard`."""
    return build_shard(number, samples, roots=roots, settings=settings, folder=_published(output, number))


def _shared_shard(job: _Job, plan: BuildPlan, number: int) -> SharedShard:
    folder = _published(job.output, number)
    return SharedShard(number, plan.shard(number), roots=job.source.roots, settings=job.settings, folder=folder)


@contextmanager
def _published(output: Output, number: int) -> Iterator[Path]:
    """Yield the folder in which a shard is built; then its files are published, the table last."""
    with output.work() as folder:
        yield folder
        output.publish(shard_files(number), folder)
