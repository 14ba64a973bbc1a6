"""The size and duration of a build are estimated from a timed trial of some samples: plan ─► frames, bytes, hours.

    estimate = estimate_of(plan, range(plan.num_shards), roots, settings, workers=8, folder=out)
    print("\n".join(lines_of(estimate, free_bytes=10 << 30)))

Samples are drawn evenly over the plan and encoded for real, the first frames of each, until the time is over.
"""

import errno
import math
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.video.errors import MediaError
from preprocess.plan.plan import BuildPlan, planned_samples
from preprocess.plan.samples import HOOK, PlannedSample, media_files
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Folder, Root
from preprocess.sources.tar_files import WithTars
from preprocess.workers.decoder import Written, decoder

TRIAL_S = 20.0
_FRAMES = 90  # tried per sample at most
_MOST_SAMPLES = 300
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill 0 ... 1 evenly, however many there are
_ROOM = 0.95  # share of the free space that is counted on


@dataclass(frozen=True)
class Trial:
    """The outcome of encoding some samples."""

    num_samples: int
    num_rejected: int
    num_frames: int
    frame_bytes: float  # in the tar
    margin: float  # of frame_bytes, two standard errors, as a fraction
    frame_s: float  # of one worker
    length_s: float = math.nan  # mean of the samples whose length the plan does not know; NaN = not announced
    rate: float = math.nan  # frames per second that they will store


@dataclass(frozen=True)
class Estimate:
    """The frames, bytes and hours of building some shards of a plan."""

    num_samples: int
    num_frames: float  # NaN = not known
    seconds: float  # of footage; NaN = no time base
    trial: Trial | None  # None: no sample that was tried can be used
    workers: int
    source_bytes: int | None  # of videos on this machine; None = elsewhere, or not videos
    other_layout: str = ""  # which the samples were tried in as well; "" = none
    other_trial: Trial | None = None

    @property
    def num_bytes(self) -> float:
        """Return the bytes of the shards."""
        return self.num_frames * self.trial.frame_bytes if self.trial else math.nan

    @property
    def hours(self) -> float:
        """Return the hours of the build, if workers do not slow each other down."""
        return self.num_frames * self.trial.frame_s / self.workers / 3600 if self.trial else math.nan

    @property
    def fps(self) -> float:
        """Return the stored frames per second of footage."""
        return self.num_frames / self.seconds if self.seconds > 0 else math.nan


def estimate_of(
    plan: BuildPlan,
    shards: Collection[int],
    roots: Sequence[Root],
    settings: Settings,
    *,
    workers: int,
    folder: Path,
    trial_s: float = TRIAL_S,
    compare: bool = False,
) -> Estimate:
    """Return the estimate from a trial of some seconds and the counts of the plan.

    Args:
        plan: all samples.
        shards: the numbers of the shards that are to be built.
        roots: the roots of the rows' paths, by their `root`.
        settings: sizes, rates and quality.
        workers: the number of workers.
        folder: for the trial's file; on the disk of the shards, if it is one of this machine.
        trial_s: seconds after which no further sample is begun.
        compare: try the samples in the other layout, too, for half of the time.
    """
    rows = _rows_of(plan, shards)
    num_frames, seconds = frames_of(rows, settings)
    other = _other_layout(settings) if compare else None
    trial_s /= 2 if other else 1
    trial = _tried(rows, roots, settings, folder=folder, trial_s=trial_s)
    other_trial = _tried(rows, roots, other, folder=folder, trial_s=trial_s) if other else None
    if trial is not None and not math.isnan(trial.length_s):
        seconds = np.where(np.isnan(num_frames), trial.length_s, seconds)
        num_frames = np.where(np.isnan(num_frames), trial.length_s * trial.rate, num_frames)
    return Estimate(
        num_samples=len(rows),
        num_frames=float(num_frames.sum()),
        seconds=float(np.nansum(seconds)),
        trial=trial,
        workers=workers,
        source_bytes=_source_bytes(rows, roots),
        other_layout=other.layout if other else "",
        other_trial=other_trial,
    )


def _other_layout(settings: Settings) -> Settings | None:
    """Return the settings with the other layout; None if it needs a rate that is not given."""
    if settings.layout != "jpeg":
        return settings.in_layout("jpeg") if settings.layout == "video" else None
    return settings.in_layout("video") if settings.fps is not None else None


def frames_of(rows: pa.Table, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames that every row of a plan will store, and their seconds: both float (N,); NaN = unknown."""
    first, stop, length_s, rate = (
        rows[name].to_numpy().astype(float) for name in ("first", "stop", "length_s", "rate")
    )
    kinds = rows["kind"].to_numpy(zero_copy_only=False)
    is_video = (kinds == "video") | (kinds == HOOK)
    source_fps = np.where(is_video | (kinds == "stack"), rate, settings.source_fps or math.nan)
    fps = np.fmin(source_fps, settings.fps or math.inf)
    fps[np.isinf(fps)] = math.nan
    kept = np.where(np.isnan(fps / source_fps), 1.0, fps / source_fps)
    num_frames = np.where(is_video, length_s * fps, np.ceil((stop - first) * kept))
    return num_frames, np.where(is_video, length_s, (stop - first) / source_fps)


def lines_of(estimate: Estimate, *, free_bytes: int | None) -> list[str]:
    """Return an estimate in a few lines for people; a `free_bytes` of None is not known."""
    if not estimate.num_samples:
        return ["nothing is left to build"]
    footage = f", {estimate.seconds / 3600:.2f} hours of footage" if estimate.seconds > 0 else ""
    frames = "" if math.isnan(estimate.num_frames) else f", about {estimate.num_frames:,.0f} frames"
    lines = [f"to build: {estimate.num_samples} samples{frames}{footage}"]
    trial = estimate.trial
    if trial is None:
        return [*lines, "no sample that was tried can be used, so nothing is known of bytes and hours"]
    rejected = f", {trial.num_rejected} more cannot be used" if trial.num_rejected else ""
    lines.append(
        f"tried {trial.num_samples} samples ({trial.num_frames} frames{rejected}): {trial.frame_bytes / 1000:.1f} kB"
        f" +- {trial.margin:.0%} per frame, {1 / trial.frame_s:.0f} frames/s per worker"
    )
    if not frames:
        return [*lines, "nothing announces how long they are, so nothing is known of bytes and hours"]
    times = ""
    if estimate.source_bytes:
        ratio = estimate.num_bytes / estimate.source_bytes
        times = f", {ratio:.1f} times the size of the videos ({_size(estimate.source_bytes)})"
        times += f" at {estimate.fps:.3g} frames/s" if estimate.fps > 0 else ""
    each = "worker" if estimate.workers == 1 else "workers, if the machine has a core for each"
    lines.append(f"about {_duration(estimate.hours)} with {estimate.workers} {each}")
    free = "not known here" if free_bytes is None else _size(free_bytes)
    lines.append(f"needs about {_size(estimate.num_bytes)}{times}; free on the disk of the output: {free}")
    if (other := estimate.other_trial) is not None:
        share = other.frame_bytes / trial.frame_bytes
        lines.append(
            f"as --layout {estimate.other_layout}: {other.frame_bytes / 1000:.1f} kB +- {other.margin:.0%} per frame, "
            f"{1 / other.frame_s:.0f} frames/s per worker; about {_size(share * estimate.num_bytes)}"
        )
    if free_bytes is not None and estimate.num_bytes > _ROOM * free_bytes:
        lines.append(f"warning: that is too much: {_remedy(estimate, free_bytes)}")
    return lines


def surely_fits(plan: BuildPlan, shards: Collection[int], settings: Settings, free_bytes: int) -> bool:
    """Return whether shards have room even if pixels are not compressed (JPEGs: a byte each), so without a trial."""
    num_frames, _ = frames_of(_rows_of(plan, shards), settings)
    pixel_bytes = settings.channels * settings.bits / 8 if settings.layout == "png" else 1
    pixels = num_frames.sum() * settings.short_side**2 * 16 / 9
    return bool(pixels * pixel_bytes <= free_bytes)  # False if a length is unknown


def require_room(estimate: Estimate, *, free_bytes: int, out: str) -> None:
    """Raise OSError if even the lower bound of the estimate is more than twice the free space.

    Raises:
        OSError: with ENOSPC, the figures, and the remedy.
    """
    trial = estimate.trial
    if trial is not None and estimate.num_bytes * (1 - min(trial.margin, 0.5)) > 2 * free_bytes:
        need = f"needs about {_size(estimate.num_bytes)}, {_size(free_bytes)} free"
        remedy = f"{_remedy(estimate, free_bytes)}; --ignore-space builds all the same"
        raise OSError(errno.ENOSPC, f"{need}: {remedy}", out)


def _remedy(estimate: Estimate, free_bytes: int) -> str:
    fps = estimate.fps * _ROOM * free_bytes / estimate.num_bytes
    fps = math.floor(fps) if fps >= 2 else math.floor(10 * fps) / 10 if fps > 0 else 0
    return f"--fps {fps:g} would fit" if fps else "give another disk, or a smaller --short-side"


def _rows_of(plan: BuildPlan, shards: Collection[int]) -> pa.Table:
    return plan.rows.filter(pc.is_in(plan.rows["shard"], pa.array(sorted(shards), pa.int32())))


def _tried(rows: pa.Table, roots: Sequence[Root], settings: Settings, *, folder: Path, trial_s: float) -> Trial | None:
    aside = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-trial.tar"
    done: list[Written] = []
    seconds: list[float] = []
    announced: list[tuple[float, float]] = []  # seconds and rate of videos whose length the plan does not know
    num_rejected = 0
    try:
        aside.touch()
        with suppress(MediaError):
            decoder().probe(aside, settings=settings)  # the file is no video, but now the decoder has started
        began = time.monotonic()
        for sample in _drawn(rows, settings):
            start = time.monotonic()
            try:
                with roots[sample.root].local(media_files(sample, settings)) as files:
                    written = decoder().write(sample, files, settings=settings, tar=aside, start=0, first=True)
                    took = time.monotonic() - start
                    if sample.kind == "video" and math.isnan(sample.length_s):
                        facts = decoder().probe(files[0], settings=settings)
                        announced.append((facts.duration_s - sample.start_s, min(facts.fps, settings.fps or math.inf)))
            except MediaError:
                num_rejected += 1
            else:
                done.append(written)
                seconds.append(took)
            if time.monotonic() - began > trial_s:
                break
    finally:
        aside.unlink(missing_ok=True)
    if not done:
        return None
    lengths = np.array([pair for pair in announced if min(pair) > 0], float).reshape(-1, 2)
    length_s = float(lengths[:, 0].mean()) if len(lengths) else math.nan
    frames = np.array([written.facts.num_frames for written in done], float)
    sizes = np.array([written.stop for written in done], float)
    frame_bytes = float(sizes.sum() / frames.sum())
    # The standard error of a ratio of sums (Cochran, Sampling Techniques, section 2.11).
    spread = np.sqrt(((sizes - frame_bytes * frames) ** 2).sum() / max(len(done) - 1, 1) / len(done)) / frames.mean()
    return Trial(
        num_samples=len(done),
        num_rejected=num_rejected,
        num_frames=int(frames.sum()),
        frame_bytes=frame_bytes,
        margin=2 * float(spread) / frame_bytes if len(done) > 1 else 0.5,
        frame_s=sum(seconds) / float(frames.sum()),
        length_s=length_s,
        rate=float((lengths[:, 0] * lengths[:, 1]).mean() / length_s) if len(lengths) else math.nan,
    )


def _drawn(rows: pa.Table, settings: Settings) -> Iterator[PlannedSample]:
    """Yield samples from all over the plan, each cut to a few frames; the more are taken, the denser they lie."""
    spread = (int((0.5 + number * _GOLDEN) % 1 * len(rows)) for number in range(_MOST_SAMPLES))
    rest = range(len(rows)) if len(rows) <= _MOST_SAMPLES else ()
    for row in dict.fromkeys(chain(spread if len(rows) else (), rest)):
        yield _beginning(planned_samples(rows.slice(row, 1))[0], settings)


def _beginning(sample: PlannedSample, settings: Settings) -> PlannedSample:
    if sample.kind == "video":
        fps = min(sample.rate if sample.rate > 0 else 30.0, settings.fps or math.inf)
        return replace(sample, stop_s=min(sample.stop_s, sample.start_s + _FRAMES / fps))
    if sample.kind == HOOK:
        most = math.ceil(_FRAMES * max(1.0, sample.rate / (settings.fps or math.inf)))
        return replace(sample, stop=min(sample.stop or most, most))
    rate = sample.rate if sample.kind == "stack" else (settings.source_fps or 0.0) / sample.stride
    thinning = max(1.0, rate / (settings.fps or math.inf))
    return replace(sample, stop=min(sample.stop, sample.first + sample.stride * math.ceil(_FRAMES * thinning)))


def _source_bytes(rows: pa.Table, roots: Sequence[Root]) -> int | None:
    """Return the bytes of the videos of some rows; None if they are not all video files on this machine."""
    inner = [root.root if isinstance(root, WithTars) else root for root in roots]
    folders = [root.path for root in inner if isinstance(root, Folder)]
    if set(pc.unique(rows["kind"]).to_pylist()) != {"video"} or len(folders) < len(roots):
        return None
    files = rows.select(["root", "path"]).group_by(["root", "path"]).aggregate([]).to_pylist()
    try:
        return sum((folders[file["root"]] / file["path"]).stat().st_size for file in files)
    except OSError:
        return None  # the build will report it


def _size(num_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.0f} seconds"
