"""A video file -> the clip that a model takes: its middle, at the model's stride and size. For a look at one video.

    clip = read_clip("talk.mp4", model.config, sampling_rate=4, target_fps=30)     # uint8 (1, T, H, W, 3)
    model.encoder(clip)

Many videos are better preprocessed into shards once. Which frames and which square are those of the shards' testing
clips (pipelines/sampling/windows.py, one clip and one crop); frames are chosen by their times, so that a variable rate
is no matter. Needs PyAV, which is imported when a file is opened. Only files are opened: no network, no playlists.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae3d.model.config import EncoderConfig

_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,asf,ogg,h264,hevc,m4v,mxf,ivf,nut,obu"
_ROUNDING = 0.01  # of a frame: times are whole numbers of a time base


class VideoError(ValueError):
    """A file gives no clip; the message says why."""


def read_clip(
    path: str | Path, config: EncoderConfig, *, sampling_rate: float = 4.0, target_fps: float = 30.0
) -> Tensor:
    """Read the middle clip of a video.

    Args:
        path: The file.
        config: The model's, for the number of frames and the size.
        sampling_rate: Distance of two frames, in frames at target_fps; what the model was trained with.
        target_fps: The rate that sampling_rate refers to.

    Returns:
        uint8 (1, T, H, W, 3): the centred square of the upright frames, scaled. A video that is shorter than the clip
        is repeated from its start.

    Raises:
        VideoError: It is missing, no video, or nothing in it can be decoded.
        ValueError: A rate is not above 0.
    """
    for name, value in (("sampling_rate", sampling_rate), ("target_fps", target_fps)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    with open_stream(path) as (container, stream):
        stamps = read_stamps(container, stream)
        chosen = clip_frames(stamps.seconds, num_frames=config.num_frames, step_s=sampling_rate / target_fps)
        wanted = [stamps.pts[i] for i in chosen]
        pictures = _decode(container, stream, wanted, size=config.img_size)
    if not pictures:
        raise VideoError(f"{path}: none of the clip's frames can be decoded")
    # What is damaged is replaced by the nearest frame of the clip.
    nearest = {time: min(pictures, key=lambda there: abs(there - time)) for time in wanted}
    return torch.from_numpy(np.stack([pictures[nearest[time]] for time in wanted]))[None]


@contextmanager
def open_stream(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A file's PyAV container and its first real video stream; what goes wrong with them is a VideoError."""
    if not Path(path).is_file():
        raise VideoError(f"{path}: no such file")
    import av
    import av.error

    # "file:" so that no part of a name is taken for a protocol.
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with av.open(f"file:{path}", options=options) as container:
            stream = next((s for s in container.streams.video if not s.disposition & s.disposition.attached_pic), None)
            if stream is None:
                raise VideoError(f"{path}: has no video stream")
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error


class Stamps(NamedTuple):
    """When the frames of a stream are shown, ascending."""

    pts: list[int]  # in the stream's time base
    seconds: list[float]  # the same, the first frame at 0
    keyframes: list[int]  # those of `pts` from which decoding can begin


def read_stamps(container: Any, stream: Any) -> Stamps:
    """The times of all frames, from the packets: the file is read to its end, nothing is decoded.

    Raises:
        VideoError: No packet carries a time.
    """
    packets = ((packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None)
    key_of: dict[int, bool] = dict(packets)
    if not key_of:
        raise VideoError(f"{container.name.removeprefix('file:')}: its packets carry no times")
    pts, base = sorted(key_of), float(stream.time_base or 1)
    return Stamps(pts, [(one - pts[0]) * base for one in pts], [one for one in pts if key_of[one]])


def clip_frames(seconds: Sequence[float], *, num_frames: int, step_s: float, start_s: float | None = None) -> list[int]:
    """Numbers of the frames that are shown at the clip's times, `step_s` apart.

    Args:
        seconds: When each frame begins to be shown, ascending.
        num_frames: T.
        step_s: Seconds between two frames of the clip.
        start_s: When the clip begins, counted from the first frame; None = so that it lies in the middle.

    Returns:
        T frame numbers. Where the video is shorter than the clip they begin again at its start.
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
    """The latest `start_s` of a clip that ends within the video, seconds; 0 where the video is shorter than a clip."""
    latest = seconds[-1] - seconds[0] - (num_frames - 1) * step_s
    return max(latest + _ROUNDING * frame_duration(seconds, step_s), 0.0)


def frame_duration(seconds: Sequence[float], default: float) -> float:
    """How long a frame is shown, on average; `default` if there is only one."""
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else default


def _decode(container: Any, stream: Any, wanted: Sequence[int], *, size: int) -> dict[int, np.ndarray]:
    """The wanted frames by their time stamps, each (size, size, 3) uint8; what is damaged is missing."""
    import av.error

    first, last, left = min(wanted), max(wanted), set(wanted)
    container.seek(first, stream=stream, backward=True)
    pictures: dict[int, np.ndarray] = {}
    packets = container.demux(stream)
    while left:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.error.InvalidDataError:
            continue
        except EOFError:
            break
        for frame in frames:
            if frame.pts in left and not frame.is_corrupt:
                pictures[frame.pts] = square(frame, size)
                left.discard(frame.pts)
        if packet is None or (frames and frames[-1].pts is not None and frames[-1].pts > last):
            break
    return pictures


def square(frame: Any, size: int) -> np.ndarray:
    """The centred square of a frame's short side, upright, scaled with Pillow's antialiased bilinear filter."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = -(-(height - side) // 2), -(-(width - side) // 2)
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
