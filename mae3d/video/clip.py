"""The frames of one clip of a video file are chosen by time and cut to the model's size.

A file ─► its middle clip at the model's stride, or the pictures of any frames whose times are known.

    clip = read_clip("talk.mp4", model.config, sampling_rate=4, target_fps=30)     # uint8 (1, T, H, W, 3)
    model.encoder(clip)

Many videos are better preprocessed into shards once. Frames and square are those of the shards' testing clips
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
from av.video.reformatter import VideoReformatter
from PIL import Image

from mae3d.video.container import MAX_PIXELS
from mae3d.video.errors import MediaError
from mae3d.video.orientation import Orientation, turned
from mae3d.video.reader import Video, open_video

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
    def img_size(self) -> int:
        """H and W, in pixels."""


def read_clip(path: str | Path, config: ClipShape, *, sampling_rate: float = 4.0, target_fps: float = 30.0) -> "Tensor":
    """Read the middle clip of a video.

    Args:
        path: The file.
        config: The model's, for the number of frames and the size.
        sampling_rate: Distance of two frames, in frames at target_fps; what the model was trained with.
        target_fps: The rate that sampling_rate refers to.

    Returns:
        uint8 (1, T, H, W, 3): the centred square of the upright frames, scaled. A video that is shorter than the clip
        is repeated from its start. A damaged frame is replaced by the nearest one of the clip.

    Raises:
        VideoError: The file is missing, no video, too large, or none of the clip's frames can be decoded.
        OSError: The disk of the file has gone.
        ValueError: A rate is not above 0.
    """
    import torch  # here, so that the reader of videos loads without it

    for name, value in (("sampling_rate", sampling_rate), ("target_fps", target_fps)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    with open_clips(path) as video:
        seconds, keyframes = video.frame_times()
        chosen = clip_frames(seconds, num_frames=config.num_frames, step_s=sampling_rate / target_fps)
        times = [seconds[number] for number in chosen]
        start_s = min(times) if keyframes else 0.0
        pictures = dict(decode_squares(video, set(times), start_s, max(times), size=config.img_size))
    if not pictures:
        raise VideoError(f"{path}: none of the clip's frames can be decoded")
    nearest = [min(pictures, key=lambda there: abs(there - time)) for time in times]
    return torch.from_numpy(np.stack([pictures[time] for time in nearest]))[None]


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


def decode_squares(
    video: Video, times: Collection[float], start_s: float, last_s: float, *, size: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the time and the square picture of each frame of certain times; damaged frames are missing.

    Args:
        video: The opened file; it goes on from its position if it can.
        times: The frames' times, as `Video.frame_times` has them.
        start_s: Where decoding is to begin or to go on: none of the times is earlier.
        last_s: The last frame to be decoded.
        size: H and W, in pixels.
    """
    reformatter = VideoReformatter()
    for seconds, frame in video.frames(start_s, last_s):
        if seconds in times:
            yield seconds, square(frame, size, video.orientation(frame), reformatter)
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


def square(frame: av.VideoFrame, size: int, way: Orientation, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame's centred square, upright, scaled with Pillow's antialiased bilinear filter: uint8 (H, W, 3).

    Args:
        frame: The frame.
        size: H and W, in pixels.
        way: The turn that makes it upright.
        reformatter: Converts colours; one for many frames, because its tables cost more than a frame.
    """
    pixels = turned(reformatter.reformat(frame, format="rgb24").to_ndarray(), way)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = -(-(height - side) // 2), -(-(width - side) // 2)
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
