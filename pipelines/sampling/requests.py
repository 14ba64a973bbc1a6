"""Sample rows ─► which frames and which views a batch takes, as plain data: all that is random about the input.

request = training_request(corpus, config, rows=rows, positions=positions, epoch=0, seed=0, num_frames=16, size=224)
request.clips[0].frames, request.clips[0].views      # frame numbers of the first decoded clip; what is made of it
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from mae3d.io.random import Stream, philox
from mae3d.io.shapes import Size, sides
from pipelines.config import DataConfig, RandAugment
from pipelines.samples.corpus import Corpus
from pipelines.sampling.augment import (
    Op,
    View,
    draw_crop,
    draw_erase,
    draw_jitter,
    draw_rand_augment,
    draw_short_side_crop,
    evaluation_crops,
)
from pipelines.sampling.windows import (
    clip_stride,
    regular_starts,
    segment_window,
    segments_are_short,
    strided_is_short,
    strided_window,
    strided_windows,
    window_from,
)


@dataclass(frozen=True)
class ClipRequest:
    """A decoded clip to be made: the frames of a row and the views that are cut from it."""

    row: int
    frames: np.ndarray  # (T,) int64, frame numbers in the sample
    views: tuple[View, ...]


@dataclass(frozen=True)
class BatchRequest:
    """B samples with R views each, made of the views of W clips of each sample: its windows, one behind the other.

    Training has W = 1 clip of R views (shared windows) or W = R clips of one (own); testing K clips of S crops.
    """

    epoch: int
    positions: np.ndarray  # (B,) int64, positions in the epoch
    clips: tuple[ClipRequest, ...]
    num_views: int
    num_padded: int = 0  # so many samples at the end only fill the batch


def check_views(config: DataConfig, *, num_frames: int, size: Size) -> None:
    """Check that the settings make clips of the model's shape; ValueError if not."""
    if config.sampling == "segments" and config.num_segments * config.frames_per_segment != num_frames:
        raise ValueError(
            f"data.num_segments={config.num_segments} x data.frames_per_segment={config.frames_per_segment} "
            f"must be model.num_frames={num_frames}"
        )
    shorter = min(sides(size))
    if 0 < config.short_side[0] < shorter:
        shown = size if isinstance(size, int) else list(size)
        raise ValueError(
            f"data.short_side={list(config.short_side)} is shorter than model.img_size={shown}, which is cut from it: "
            f"give {shorter} or more"
        )


def usable_rows(corpus: Corpus, config: DataConfig, *, num_frames: int) -> np.ndarray:
    """Return the rows that take part: all that can be read, or with `short="drop"` those long enough for one clip."""
    rows = corpus.readable_rows
    return rows[~short_rows(corpus, config, num_frames=num_frames)[rows]] if config.short == "drop" else rows


def short_rows(corpus: Corpus, config: DataConfig, *, num_frames: int) -> np.ndarray:
    """Return (N,) bool: samples shorter than one clip, which `data.short` loops, pads or drops."""
    if config.sampling == "segments":
        short = segments_are_short(
            corpus.num_frames, num_segments=config.num_segments, frames_per_segment=config.frames_per_segment
        )
    else:
        fps = np.asarray(corpus.fps, dtype=np.float64)
        stride = np.where(np.isnan(fps), config.sampling_rate, config.sampling_rate * fps / config.target_fps)
        short = strided_is_short(corpus.num_frames, num_frames=num_frames, stride=stride)
    return np.asarray(short)


def training_request(
    corpus: Corpus,
    config: DataConfig,
    *,
    rows: np.ndarray,
    positions: np.ndarray,
    epoch: int,
    seed: int,
    num_frames: int,
    size: Size,
) -> BatchRequest:
    """Draw windows and views for R views of each row: a pure function of (seed, epoch, position, view).

    Args:
        corpus: gives lengths, frame rates and sizes.
        config: the sampling and augmentation settings.
        rows: (B,) dataset rows.
        positions: (B,) their positions in the epoch.
        epoch: number of the epoch.
        seed: of the run.
        num_frames: T, frames of a clip.
        size: of a view, in pixels.
    """
    clips: list[ClipRequest] = []
    num_windows = 1 if config.windows == "shared" else config.repeat_aug
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        draws = partial(philox, seed, epoch=epoch, position=position)
        views = tuple(
            _draw_view(config, draws, view, height=int(corpus.height[row]), width=int(corpus.width[row]), size=size)
            for view in range(config.repeat_aug)
        )
        windows = [
            _draw_window(corpus, config, row, num_frames=num_frames, rng=draws(Stream.WINDOW, view=window))
            for window in range(num_windows)
        ]
        if config.windows == "shared":
            clips.append(ClipRequest(row, windows[0], views))
        else:
            clips.extend(ClipRequest(row, window, (view,)) for window, view in zip(windows, views, strict=True))
    return BatchRequest(epoch, positions, tuple(clips), config.repeat_aug)


def _draw_view(
    config: DataConfig, draws: Callable[..., np.random.Generator], number: int, *, height: int, width: int, size: Size
) -> View:
    """Draw a view, each purpose from a stream of its own: switching one on moves nothing of the others."""
    rng = draws(Stream.CROP, view=number)
    if config.short_side[0]:
        crop = draw_short_side_crop(
            rng, height=height, width=width, size=size, short_side=config.short_side, flip=config.flip
        )
    else:
        crop = draw_crop(
            rng, height=height, width=width, area=config.area, aspect=config.aspect, flip=config.flip, size=size
        )
    ops: tuple[Op, ...] = ()
    if config.rand_augment:
        ops += draw_rand_augment(draws(Stream.RAND_AUGMENT, view=number), RandAugment.parse(config.rand_augment))
    if config.colour_jitter:
        ops += draw_jitter(draws(Stream.JITTER, view=number), config.colour_jitter)
    if not config.erase:
        return View(crop, ops)
    return View(crop, ops, draw_erase(draws(Stream.ERASE, view=number), size=size, probability=config.erase))


def _draw_window(
    corpus: Corpus, config: DataConfig, row: int, *, num_frames: int, rng: np.random.Generator
) -> np.ndarray:
    length = int(corpus.num_frames[row])
    if config.sampling == "segments":
        return segment_window(
            length,
            num_segments=config.num_segments,
            frames_per_segment=config.frames_per_segment,
            start_draws=rng.random(config.num_segments),
            short=config.short,
        )
    stride = _stride_of(corpus, config, row)
    return strided_window(length, num_frames=num_frames, stride=stride, start_draw=rng.random(), short=config.short)


def evaluation_batches(
    num_rows: int, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield this rank's batches: as many and as large on every rank, each of `num_rows` positions once but for padding.

    Every `world` batches hold consecutive positions, contiguous by rank. If the rows of the last ones do not fill all
    ranks' batches, the last position is repeated.

    Yields:
        (B,) int64 positions, and how many of them at the end are padding.
    """
    for start in range(0, num_rows, batch_size * world):
        positions = np.arange(start, min(start + batch_size * world, num_rows), dtype=np.int64)
        share = -(-len(positions) // world)
        mine = positions[rank * share : (rank + 1) * share]
        num_padded = share - len(mine)
        yield np.append(mine, np.repeat(positions[-1:], num_padded)), num_padded


def evaluation_request(
    corpus: Corpus,
    config: DataConfig,
    *,
    rows: np.ndarray,
    positions: np.ndarray,
    num_frames: int,
    num_clips: int = 1,
    num_crops: int = 1,
    size: Size = 1,
    starts: np.ndarray | None = None,
    num_padded: int = 0,
) -> BatchRequest:
    """Return K clips x S crops of each row at fixed positions, nothing random. View k * S + s is crop s of clip k.

    Strided clips start at K places spread evenly from the first possible to the last. Of `segments`, clip k starts its
    runs (k + 1/2) / K into each segment: K = 1 is the frame-folder loaders' window, K = 2 gives two interleaved ones.
    The crops are the largest boxes of the view's shape (`evaluation_crops`). One clip and one crop are the middle of
    everything.

    Args:
        corpus: gives lengths, frame rates and sizes.
        config: the sampling settings; what is random in them has no effect.
        rows: (B,) dataset rows.
        positions: (B,) int64, what the batch gives back as positions.
        num_frames: T, frames of a clip.
        num_clips: K.
        num_crops: S.
        size: of a view; its shape alone counts.
        starts: (B,) stored frames at which the one strided clip of each row begins instead; K is 1.
        num_padded: so many rows at the end only fill the batch.
    """
    clips: list[ClipRequest] = []
    for i, row in enumerate(rows.tolist()):
        height, width = int(corpus.height[row]), int(corpus.width[row])
        crops = evaluation_crops(height=height, width=width, num_crops=num_crops, size=size)
        views = tuple(View(crop) for crop in crops)
        if starts is None:
            windows = evaluation_windows(corpus, config, row, num_frames=num_frames, num_clips=num_clips)
        else:
            windows = [window_at(corpus, config, row, start=int(starts[i]), num_frames=num_frames)]
        clips.extend(ClipRequest(row, window, views) for window in windows)
    return BatchRequest(0, positions, tuple(clips), num_clips * num_crops, num_padded)


def evaluation_windows(
    corpus: Corpus, config: DataConfig, row: int, *, num_frames: int, num_clips: int
) -> list[np.ndarray]:
    """Return the frame numbers of the K clips of a row, each (T,) int64, as `evaluation_request` does."""
    length = int(corpus.num_frames[row])
    if config.sampling == "segments":
        return [
            segment_window(
                length,
                num_segments=config.num_segments,
                frames_per_segment=config.frames_per_segment,
                offset=(clip + 0.5) / num_clips,
                short=config.short,
            )
            for clip in range(num_clips)
        ]
    stride = _stride_of(corpus, config, row)
    return list(strided_windows(length, num_frames=num_frames, stride=stride, num_clips=num_clips, short=config.short))


def window_at(corpus: Corpus, config: DataConfig, row: int, *, start: int, num_frames: int) -> np.ndarray:
    """Return the frame numbers, (T,) int64, of the strided clip of a row that begins at the stored frame `start`."""
    length = int(corpus.num_frames[row])
    return window_from(start, length, num_frames=num_frames, stride=_stride_of(corpus, config, row), short=config.short)


def windows_every(
    corpus: Corpus, config: DataConfig, *, rows: np.ndarray, num_frames: int, every_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Yield a strided clip every given number of seconds of each sample, if it ends within (`regular_starts`).

    Args:
        corpus: gives lengths and frame rates.
        config: the sampling settings.
        rows: (N,) dataset rows.
        num_frames: T.
        every_s: seconds from the beginning of a clip to that of the next.

    Returns:
        (W,) rows, each as often as it has clips, and (W,) the stored frames at which these begin; both int64.

    Raises:
        ValueError: a sample's frame rate is not known; or sampling is not strided.
    """
    if config.sampling != "strided":
        raise ValueError(f"data.sampling={config.sampling} spreads a clip over the whole sample: there is one only")
    fps = corpus.fps[rows]
    unknown = np.flatnonzero(np.isnan(fps))
    if len(unknown):
        raise ValueError(
            f"{corpus}: {len(unknown):,} of {len(rows):,} samples have no frame rate (the first: "
            f"{corpus.name(int(rows[unknown[0]]))}), so that nobody knows where a second ends; "
            "build them with --source-fps, or take one clip a sample"
        )
    starts = [
        regular_starts(
            int(corpus.num_frames[row]),
            num_frames=num_frames,
            stride=_stride_of(corpus, config, row),
            spacing=every_s * float(corpus.fps[row]),
        )
        for row in rows.tolist()
    ]
    return np.repeat(rows, [len(of_row) for of_row in starts]), np.concatenate(starts)


def _stride_of(corpus: Corpus, config: DataConfig, row: int) -> float:
    return clip_stride(float(corpus.fps[row]), sampling_rate=config.sampling_rate, target_fps=config.target_fps)
