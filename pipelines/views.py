"""Sample rows ─► which frames and which crops a batch takes, as plain data: all that is random about the input.

request = training_request(corpus, config, rows=rows, positions=positions, epoch=0, seed=0, num_frames=16)
request.clips[0].frames, request.clips[0].views      # frame numbers of the first decoded clip; what is cut from it
"""

from dataclasses import dataclass

import numpy as np

from pipelines.augment import View, centre_crop, draw_crop
from pipelines.clips import (
    clip_stride,
    segment_window,
    segments_are_short,
    strided_is_short,
    strided_window,
    strided_windows,
)
from pipelines.config import DataConfig
from pipelines.corpus import Corpus
from pipelines.order import CROP_STREAM, WINDOW_STREAM, philox


@dataclass(frozen=True)
class ClipRequest:
    """One decoded clip: the frames of a row and the views that are made of it."""

    row: int
    frames: np.ndarray  # (T,) int64, frame numbers in the sample
    views: tuple[View, ...]


@dataclass(frozen=True)
class BatchRequest:
    """B samples with R views each: `clips` are B clips of R views (shared windows) or B x R clips of one view (own)."""

    epoch: int
    positions: np.ndarray  # (B,) int64, positions in the epoch
    clips: tuple[ClipRequest, ...]
    num_views: int


def usable_rows(corpus: Corpus, config: DataConfig, *, num_frames: int) -> np.ndarray:
    """Rows that take part: all, or with `short="drop"` those that are long enough for one clip."""
    rows = np.arange(len(corpus), dtype=np.int64)
    return rows[~short_rows(corpus, config, num_frames=num_frames)] if config.short == "drop" else rows


def short_rows(corpus: Corpus, config: DataConfig, *, num_frames: int) -> np.ndarray:
    """(N,) bool: samples shorter than one clip, which `data.short` loops, pads or drops."""
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
) -> BatchRequest:
    """Draws windows, crops and flips for R views of each row: a pure function of (seed, epoch, position, view).

    Args:
        corpus: gives lengths, frame rates and sizes.
        config: the sampling and augmentation settings.
        rows: (B,) dataset rows.
        positions: (B,) their positions in the epoch.
        epoch: number of the epoch.
        seed: of the run.
        num_frames: T, frames of a clip.
    """
    clips: list[ClipRequest] = []
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        views = tuple(
            View(
                draw_crop(
                    philox(seed, CROP_STREAM, epoch=epoch, position=position, view=view),
                    height=int(corpus.height[row]),
                    width=int(corpus.width[row]),
                    area=config.area,
                    aspect=config.aspect,
                    flip=config.flip,
                )
            )
            for view in range(config.repeat_aug)
        )
        windows = 1 if config.windows == "shared" else config.repeat_aug
        frames = [
            _window(
                corpus,
                config,
                row,
                num_frames=num_frames,
                rng=philox(seed, WINDOW_STREAM, epoch=epoch, position=position, view=view),
            )
            for view in range(windows)
        ]
        if config.windows == "shared":
            clips.append(ClipRequest(row, frames[0], views))
        else:
            clips.extend(ClipRequest(row, window, (view,)) for window, view in zip(frames, views, strict=True))
    return BatchRequest(epoch, positions, tuple(clips), config.repeat_aug)


def _window(
    corpus: Corpus, config: DataConfig, row: int, *, num_frames: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Frames of a window that the generator draws, or of the middle one without a generator."""
    length = int(corpus.num_frames[row])
    if config.sampling == "segments":
        return segment_window(
            length,
            num_segments=config.num_segments,
            frames_per_segment=config.frames_per_segment,
            start_draws=None if rng is None else rng.random(config.num_segments),
            short=config.short,
        )
    stride = clip_stride(float(corpus.fps[row]), sampling_rate=config.sampling_rate, target_fps=config.target_fps)
    if rng is None:
        return strided_windows(length, num_frames=num_frames, stride=stride, num_clips=1, short=config.short)[0]
    return strided_window(length, num_frames=num_frames, stride=stride, start_draw=rng.random(), short=config.short)


def centre_request(corpus: Corpus, config: DataConfig, *, rows: np.ndarray, num_frames: int) -> BatchRequest:
    """The middle clip and the largest centred square of each row: nothing random, for looking and for evaluation."""
    clips = []
    for row in rows.tolist():
        frames = _window(corpus, config, row, num_frames=num_frames, rng=None)
        crop = centre_crop(height=int(corpus.height[row]), width=int(corpus.width[row]))
        clips.append(ClipRequest(row, frames, (View(crop),)))
    return BatchRequest(0, np.asarray(rows, dtype=np.int64), tuple(clips), 1)
