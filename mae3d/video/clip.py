"""The frames of one clip of a video file are chosen by time and cut to the model's size.

A file ─► its middle clip at the model's stride, or the pictures of any frames whose times are known.

    clip = read_clip("talk.mp4", model.config, sampling_rate=4, target_fps=30)     # uint8 (1, T, H, W, 3)
    model.encoder(clip)

Many videos are better preprocessed into shards once. Frames and crop are those of the shards' testing clips
(pipelines/sampling/windows.py, one clip and one crop); frames are chosen by their times, so that a variable rate does
not matter. Files are read by `mae3d.video.reader`, as preprocessing reads them.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from PIL import Image

from mae3d.io.shapes import Size, largest_box, sides
from mae3d.video.errors import MediaError
from mae3d.video.facts import MAX_PIXELS
from mae3d.video.levels import Window
from mae3d.video.orientation import Orientation, turned
from mae3d.video.pictures import range_of
from mae3d.video.reader import Video, open_video
from mae3d.video.stacks import is_stack, open_stack

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 0.01  # of a frame: times are whole numbers of a time base


class VideoError(ValueError):
    """A file gives no clip; the message says why."""


class ClipShape(Protocol):
    """The sizes of a model's clips: any model config has them."""

    @property
    def num_frames(self) -> int:
        """T."""

    @property
    def height(self) -> int:
        """H, in pixels."""

    @property
    def width(self) -> int:
        """W, in pixels."""

    @property
    def in_chans(self) -> int:
        """C."""


def read_clip(
    path: str | Path,
    config: ClipShape,
    *,
    sampling_rate: float = 4.0,
    target_fps: float = 30.0,
    window: Window | None = None,
) -> "Tensor":
    """Read the middle clip of a video, a TIFF stack or a DICOM file.

    Args:
        path: The file.
        config: The model's, for the number of frames, their size and channels.
        sampling_rate: Distance of two frames, in frames at target_fps; what the model was trained with.
        target_fps: The rate that sampling_rate refers to; also that of a stack that announces none.
        window: Values of a stack that become the first and the last of 16 bits, as a build's --window; None = none.

    Returns:
        uint8, or uint16 of a stack of 16 bits, (1, T, H, W, C): the largest centred box of the model's shape of the
        upright frames, scaled; for a model of one channel the luma of a video. A video that is shorter than the clip is
        repeated from its start. A damaged frame of a video is replaced by the nearest one of the clip.

    Raises:
        VideoError: The file is missing, no video, too large, none of the clip's frames can be decoded, or the model has
            other channels than the file.
        OSError: The disk of the file has gone.
        ValueError: A rate is not above 0.
    """
    import torch  # here, so that the reader of videos loads without it

    for name, value in (("sampling_rate", sampling_rate), ("target_fps", target_fps)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    step_s = sampling_rate / target_fps
    if is_stack(Path(path)):
        return torch.from_numpy(_clip_of_stack(Path(path), config, step_s, target_fps, window))[None]
    check_video_channels(config.in_chans)
    size = config.height, config.width
    with open_clips(path) as video:
        seconds, keyframes = video.frame_times()
        chosen = clip_frames(seconds, num_frames=config.num_frames, step_s=step_s)
        times = [seconds[number] for number in chosen]
        start_s = min(times) if keyframes else 0.0
        decoded = decode_centred(video, set(times), start_s, max(times), size=size, channels=config.in_chans)
        pictures = dict(decoded)
    if not pictures:
        raise VideoError(f"{path}: none of the clip's frames can be decoded")
    nearest = [min(pictures, key=lambda there: abs(there - time)) for time in times]
    return torch.from_numpy(np.stack([pictures[time] for time in nearest]))[None]


def _clip_of_stack(
    path: Path, config: ClipShape, step_s: float, target_fps: float, window: Window | None
) -> np.ndarray:
    """Return the middle clip of a stack, (T, H, W, C) uint8 or uint16; errors as `read_clip`."""
    try:
        with open_stack(path) as stack:
            facts = stack.facts
            if facts.channels != config.in_chans:
                raise VideoError(f"{path}: {facts.channels} channels, and the model takes {config.in_chans}")
            fps = facts.fps if facts.fps > 0 else target_fps
            seconds = [number / fps for number in range(facts.num_frames)]
            chosen = clip_frames(seconds, num_frames=config.num_frames, step_s=step_s)
            numbers = sorted(set(chosen))
            frames = stack.frames(numbers, window=window if facts.bits != 8 else None)
            size = config.height, config.width
            pictures = {number: centred_levels(levels, size) for number, levels in zip(numbers, frames, strict=True)}
    except MediaError as error:
        raise VideoError(f"{path}: {error}") from error
    return np.stack([pictures[number] for number in chosen])


@contextmanager
def open_clips(path: str | Path) -> Iterator[Video]:
    """Yield a video file for clips to be read from, a decoder's or the file's errors as VideoError.

    Raises:
        VideoError: The file is missing, no video in a known container, or too large; its frames have pixels that
            cannot be converted.
        OSError: The disk of the file has gone.
    """
    try:
        with open_video(Path(path)) as video:
            yield video
    except MediaError as error:
        limit = f": at most {MAX_PIXELS:,} pixels per frame can be read; scale the video down"
        raise VideoError(f"{path}: {error if error.reason != 'too_large' else 'too large' + limit}") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: {error.strerror}") from error


def check_video_channels(channels: int) -> None:
    """Raise VideoError unless frames of videos can have so many channels."""
    if channels not in (1, 3):
        raise VideoError(f"videos have frames of grey or colour, and the model takes {channels} channels: give shards")


def decode_centred(
    video: Video, times: Collection[float], start_s: float, last_s: float, *, size: Size, channels: int = 3
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the time and the centred picture of each frame of certain times; damaged frames are missing.

    Args:
        video: The opened file; it goes on from its position if it can.
        times: The frames' times, as `Video.frame_times` has them.
        start_s: Where decoding is to begin or to go on: none of the times is earlier.
        last_s: The last frame to be decoded.
        size: Of the pictures, in pixels.
        channels: 3, or 1 for luma.
    """
    reformatter = VideoReformatter()
    for seconds, frame in video.frames(start_s, last_s):
        if seconds in times:
            yield seconds, centred(frame, size, video.orientation(frame), reformatter, channels=channels)
        if seconds >= last_s:
            return


def clip_frames(seconds: Sequence[float], *, num_frames: int, step_s: float, start_s: float | None = None) -> list[int]:
    """Return the numbers of the frames that are shown at the clip's times, `step_s` apart.

    Args:
        seconds: When each frame begins to be shown, ascending.
        num_frames: T.
        step_s: Seconds between two frames of the clip.
        start_s: When the clip begins, counted from the first frame; None = so that it lies in the middle.

    Returns:
        T frame numbers. They begin again at the video's start if it is shorter than the clip.
    """
    count, shown_s = len(seconds), frame_duration(seconds, step_s)
    stride = step_s / shown_s
    last_start = count - 1 - (num_frames - 1) * stride
    if last_start < -_ROUNDING:
        return [int(i * stride + _ROUNDING) % count for i in range(num_frames)]
    start = int(max(last_start, 0) / 2 + _ROUNDING) if start_s is None else start_s / shown_s
    times = [seconds[0] + (start + i * stride + _ROUNDING) * shown_s for i in range(num_frames)]
    return [max(bisect_right(seconds, time) - 1, 0) for time in times]  # the last that has begun


def latest_start(seconds: Sequence[float], *, num_frames: int, step_s: float) -> float:
    """Return the latest `start_s` of a clip that ends within the video; 0 if the video is shorter than a clip."""
    latest = seconds[-1] - seconds[0] - (num_frames - 1) * step_s
    return max(latest + _ROUNDING * frame_duration(seconds, step_s), 0.0)


def frame_duration(seconds: Sequence[float], default: float) -> float:
    """Return how long a frame is shown, on average, in seconds; `default` if there is only one."""
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else default


def centred(
    frame: av.VideoFrame, size: Size, way: Orientation, reformatter: VideoReformatter, *, channels: int = 3
) -> np.ndarray:
    """Return a frame's largest centred box of a size's shape, upright, scaled to it: uint8 (H, W, C).

    The filter is Pillow's antialiased bilinear one.

    Args:
        frame: The frame.
        size: Of the picture, in pixels.
        way: The turn that makes it upright.
        reformatter: Converts colours; one for many frames, because its tables cost more than a frame.
        channels: 3, or 1 for luma in full range.
    """
    if channels == 3:
        converted = reformatter.reformat(frame, format="rgb24")
    else:
        ranges = {"src_color_range": range_of(frame), "dst_color_range": ColorRange.JPEG}
        converted = reformatter.reformat(frame, format="gray", **ranges)
    box = Image.fromarray(np.ascontiguousarray(_box(turned(converted.to_ndarray(), way), size)))
    picture = np.asarray(box.resize(sides(size)[::-1], Image.Resampling.BILINEAR))
    return picture.reshape(*picture.shape[:2], channels)


def centred_levels(levels: np.ndarray, size: Size) -> np.ndarray:
    """Return the centred box of levels, (H, W, C) uint8 or uint16, scaled as `centred` does, in floating point."""
    box, (height, width) = _box(levels, size), sides(size)
    if box.shape[:2] == (height, width):
        return box
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in box.transpose(2, 0, 1)]
    scaled = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.rint(np.stack(scaled, axis=-1)).astype(levels.dtype)  # a bilinear filter does not overshoot


def _box(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Return the largest centred box of a size's shape, a view of (H, W, ...)."""
    height, width = pixels.shape[:2]
    box_height, box_width = largest_box(height, width, size)
    top, left = -(-(height - box_height) // 2), -(-(width - box_width) // 2)
    return pixels[top : top + box_height, left : left + box_width]
