"""A sample's length and a draw ─► the frame numbers of a clip. Pure functions, numpy only; ranges are half-open.

strided_window(300, num_frames=16, stride=4.0, start_draw=0.5)   # ─► [118, 122, ..., 178]
"""

from typing import Any, Literal

import numpy as np

Short = Literal["loop", "pad", "drop"]
_ROUNDING = 1e-6  # of a frame, or of a spacing
Numbers = Any  # a number, or an array of them element by element


def clip_stride(fps: float, *, sampling_rate: float, target_fps: float) -> float:
    """Return the distance of two frames of a clip in stored frames.

    Args:
        fps: stored frames a second; NaN where a sample has no time base: the stride is then in stored frames.
        sampling_rate: distance of two frames at target_fps.
        target_fps: the rate that sampling_rate refers to.
    """
    return sampling_rate if np.isnan(fps) else sampling_rate * fps / target_fps


def strided_is_short(length: Numbers, *, num_frames: int, stride: Numbers) -> Numbers:
    """Return whether every strided clip reaches past the end of a sample of `length` frames; also on arrays."""
    return (num_frames - 1) * stride > length - 1


def segments_are_short(length: Numbers, *, num_segments: int, frames_per_segment: int) -> Numbers:
    """Return whether fewer starts remain than segments, the case in which frame-folder loaders fail in training.

    Also on arrays.
    """
    return length - frames_per_segment + 1 < num_segments


def fold_frames(frames: np.ndarray, length: int, short: Short) -> np.ndarray:
    """Return frame numbers that lie in a sample: those behind its end begin again, or are its last one."""
    return frames % length if short == "loop" else np.minimum(frames, length - 1)


def _strided(length: int, start: float, num_frames: int, stride: float, short: Short) -> np.ndarray:
    frames = np.floor(start + np.arange(num_frames) * stride).astype(np.int64)
    return fold_frames(frames, length, short)


def strided_window(
    length: int, *, num_frames: int, stride: float, start_draw: float, short: Short = "loop"
) -> np.ndarray:
    """Return the frames of a training clip with a uniformly drawn start.

    Frame i is floor(start + i * stride). mae_st spaces its frames by linspace over a window of num_frames * stride
    frames, which gives 0, 4, 8, 12, 16, 21, ... for a stride of 4; ours keeps the requested stride.

    Args:
        length: frames in the sample.
        num_frames: frames in the clip.
        stride: distance of two frames, in stored frames; need not be whole.
        start_draw: uniform in [0, 1).
        short: what to do past the end of a short sample.

    Returns:
        (num_frames,) int64, each in [0, length).
    """
    last_start = length - 1 - (num_frames - 1) * stride
    if last_start < 0:
        return _strided(length, 0.0, num_frames, stride, short)
    # The rounding of a fractional sum may reach `length`; that frame is the last one, never the first.
    return _strided(length, start_draw * (last_start + 1), num_frames, stride, "pad")


def strided_windows(
    length: int, *, num_frames: int, stride: float, num_clips: int, short: Short = "loop"
) -> np.ndarray:
    """Return the frames of `num_clips` testing clips whose starts are spread evenly from first to last.

    One clip is centred.

    Returns:
        (num_clips, num_frames) int64.
    """
    last_start = max(length - 1 - (num_frames - 1) * stride, 0.0)
    starts = np.linspace(0, last_start, num_clips) if num_clips > 1 else np.array([last_start / 2])
    rule = short if strided_is_short(length, num_frames=num_frames, stride=stride) else "pad"
    return np.stack([_strided(length, np.floor(start), num_frames, stride, rule) for start in starts])


def regular_starts(length: int, *, num_frames: int, stride: float, spacing: float) -> np.ndarray:
    """Return the starts of clips, one every `spacing` stored frames, as long as they end within the sample.

    Returns:
        (n,) int64, n at least 1: a sample shorter than a clip has one, from its first frame on.
    """
    last_start = max(length - 1 - (num_frames - 1) * stride, 0.0)
    # 3 * 0.7 is a little more than 2.1: what only a rounding puts behind the last start begins there.
    return np.floor(np.arange(int(last_start / spacing + _ROUNDING) + 1) * spacing + _ROUNDING).astype(np.int64)


def window_from(start: int, length: int, *, num_frames: int, stride: float, short: Short = "loop") -> np.ndarray:
    """Return the frames, (num_frames,) int64, of the clip that begins at the frame `start`."""
    rule = short if strided_is_short(length, num_frames=num_frames, stride=stride) else "pad"
    return _strided(length, start, num_frames, stride, rule)


def segment_window(
    length: int,
    *,
    num_segments: int,
    frames_per_segment: int,
    start_draws: np.ndarray | None = None,
    offset: float = 0.5,
    short: Short = "loop",
) -> np.ndarray:
    """Return the frames of a clip of `num_segments` runs of `frames_per_segment` consecutive frames.

    The rule is that of the frame-folder loaders (docs/upstream.md).

    Training: m = (n - F + 1) // S and run s starts at s*m + randint(0, m). Testing (no draws): d = (n - F + 1) / S and
    run s starts at int(d*offset + d*s). A run that meets the sample's end repeats the last frame.

    Args:
        length: n, frames in the sample.
        num_segments: S.
        frames_per_segment: F.
        start_draws: (S,) uniform in [0, 1) for training; None for the fixed windows of testing.
        offset: where in its segment a run of testing starts; the loaders' single window has 1/2.
        short: what to do where fewer starts remain than segments; the upstream loaders fail there.

    Returns:
        (S * F,) int64, each in [0, length), segment by segment.
    """
    free = length - frames_per_segment + 1
    segments = np.arange(num_segments)
    if segments_are_short(length, num_segments=num_segments, frames_per_segment=frames_per_segment):
        starts, rule = segments * max(free, 0) // num_segments, short
    elif start_draws is None:
        spacing = free / num_segments
        starts, rule = (spacing * offset + spacing * segments).astype(np.int64), "pad"
    else:
        room = free // num_segments
        starts, rule = segments * room + np.floor(start_draws * room).astype(np.int64), "pad"
    frames = starts[:, None] + np.arange(frames_per_segment)
    return fold_frames(frames.reshape(-1).astype(np.int64), length, rule)
