"""Video files become batches of chosen clips: a file is opened once and streamed, however long it is.

Files ─► windows of their time ─► batches of clips, one window behind the other.

    plan = plan_windows(["talk.mp4"], num_frames=16, step_s=4 / 30, every_s=2.0)   # one clip every two seconds
    for batch in VideoClips(plan.windows, size=224, batch_size=8):
        mae3d.embed(model, torch.from_numpy(batch.clips).flatten(0, 1))

Windows are planned from the times of all frames (`mae3d.video.reader.Video.frame_times`), which decodes next to
nothing. Decoding goes on from window to window if they follow each other, and jumps if a keyframe lies between
them. B windows of K clips of T frames.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np

from mae3d.io.shapes import Size, sides
from mae3d.video.clip import (
    VideoError,
    check_video_channels,
    clip_frames,
    decode_centred,
    frame_duration,
    latest_start,
    open_clips,
)
from mae3d.video.clock import FrameTimes
from mae3d.video.errors import MediaError
from mae3d.video.reader import Video


@dataclass(frozen=True)
class Window:
    """The clips of one row of a table; a file that cannot be read has one window, without clips."""

    path: str
    seconds: np.ndarray  # (K, T) float64, the frames' times; (0, T) without clips
    keyframe_s: float = 0.0  # the last one at or before the first of them; 0 = the start of the file
    first_frame: int | None = None  # its number in the video
    start_s: float | None = None  # when it begins to be shown
    end_s: float | None = None  # when the last of them has been shown


class WindowPlan(NamedTuple):
    """All windows of a list of files, in the files' order, and the errors of those that cannot be read."""

    windows: list[Window]
    unreadable: dict[str, str]


class VideoBatch(NamedTuple):
    """Clips as a model takes them."""

    clips: np.ndarray  # (B, K, T, H, W, 3) uint8
    status: np.ndarray  # (B,) int8: 0 ok; 2: nothing of it can be decoded, the clips are black
    replaced: np.ndarray  # (B,) int32, frames that are damaged: the nearest one of the window stands in for each


def plan_windows(
    paths: Iterable[str], *, num_frames: int, step_s: float, every_s: float = 0.0, num_clips: int = 1
) -> WindowPlan:
    """Choose the frames of all windows.

    A file that is shorter than a clip has one window, in which it begins again at its start.

    Args:
        paths: The files.
        num_frames: T.
        step_s: Seconds between two frames of a clip.
        every_s: A window of one clip begins at every multiple of this, as long as the clip ends within the video; the
            rest at the end has none. 0 = one window per file, of `num_clips`.
        num_clips: K, whose starts are spread evenly from the first to the last possible; one lies in the middle.

    Raises:
        OSError: The disk of a file has gone.
    """
    windows: list[Window] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            with open_clips(path) as video:
                times = video.frame_times()
            if not times.seconds:
                raise VideoError(f"{path}: no frame in it can be decoded")
        except VideoError as error:
            unreadable[path] = str(error)
            windows.append(Window(path, np.zeros((0, num_frames))))
            continue
        latest = latest_start(times.seconds, num_frames=num_frames, step_s=step_s)
        starts: list[list[float | None]]
        if every_s:
            starts = [[i * every_s] for i in range(int(latest / every_s) + 1)]
        else:
            starts = [[None]] if num_clips == 1 else [np.linspace(0, latest, num_clips).tolist()]
        for clip_starts in starts:
            chosen = [
                clip_frames(times.seconds, num_frames=num_frames, step_s=step_s, start_s=start) for start in clip_starts
            ]
            windows.append(_window(path, times, np.array(chosen), step_s=step_s))
    return WindowPlan(windows, unreadable)


def window_around(path: str, at_s: float, *, num_frames: int, step_s: float) -> Window:
    """Return the window of one clip in whose middle a moment of a video file lies; the nearest one at either end.

    Args:
        path: The file.
        at_s: The moment, in seconds of the file.
        num_frames: T.
        step_s: Seconds between two frames of the clip.

    Raises:
        VideoError: The file gives no clip, or ends before that moment.
        OSError: The disk of the file has gone.
    """
    with open_clips(path) as video:
        times = video.frame_times()
    if not times.seconds:
        raise VideoError(f"{path}: no frame in it can be decoded")
    end_s = times.seconds[-1] + frame_duration(times.seconds, step_s)
    if not at_s < end_s:
        raise VideoError(f"{path}: second {at_s:g} is beyond its end, {end_s:.3f} s")
    start_s = at_s - times.seconds[0] - (num_frames - 1) * step_s / 2
    start_s = min(max(start_s, 0.0), latest_start(times.seconds, num_frames=num_frames, step_s=step_s))
    chosen = clip_frames(times.seconds, num_frames=num_frames, step_s=step_s, start_s=start_s)
    return _window(path, times, np.array([chosen]), step_s=step_s)


def _window(path: str, times: FrameTimes, chosen: np.ndarray, *, step_s: float) -> Window:
    """Return the window of the (K, T) frame numbers `chosen`."""
    seconds, keyframes = times
    first, last = int(chosen.min()), int(chosen.max())
    end_s = seconds[last + 1] if last + 1 < len(seconds) else seconds[last] + frame_duration(seconds, step_s)
    before = bisect_right(keyframes, seconds[first])
    return Window(
        path,
        np.array([[seconds[number] for number in clip] for clip in chosen.tolist()]),
        keyframe_s=keyframes[before - 1] if before else 0.0,
        first_frame=first,
        start_s=max(seconds[first], 0.0),
        end_s=end_s,
    )


class VideoClips:
    """An iterator over batches of windows, in their order; the next batch is decoded while one is worked on."""

    def __init__(self, windows: Sequence[Window], *, size: Size, batch_size: int, channels: int = 3) -> None:
        """Start decoding.

        Args:
            windows: Windows of K clips each, or without any; those of a file together, in the order of their
                beginnings.
            size: Of the pictures, in pixels.
            batch_size: B; fewer in the last one.
            channels: C: 3, or 1 for luma.

        Raises:
            VideoError: Videos have no pictures of so many channels.
        """
        check_video_channels(channels)
        self._shape = (max((len(w.seconds) for w in windows), default=1) or 1, windows[0].seconds.shape[1])
        self._windows, self._picture = windows, (*sides(size), channels)
        self._streamer = _Streamer(size, channels)
        self._starts = iter(range(0, len(windows), batch_size))
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1)
        self._ahead = self._thread.submit(self._decode_next)

    def __iter__(self) -> Iterator[VideoBatch]:
        return self

    def __next__(self) -> VideoBatch:
        """Return the batch that has been decoded meanwhile.

        Raises:
            OSError: The disk of a file has gone.
        """
        batch = self._ahead.result()
        if batch is None:
            raise StopIteration
        self._ahead = self._thread.submit(self._decode_next)
        return batch

    def close(self) -> None:
        """Stop decoding and close the file."""
        self._thread.shutdown(cancel_futures=True)
        self._streamer.close()

    def _decode_next(self) -> VideoBatch | None:
        start = next(self._starts, None)
        if start is None:
            return None
        windows = self._windows[start : start + self._batch_size]
        clips = np.zeros((len(windows), *self._shape, *self._picture), np.uint8)
        status, replaced = np.zeros(len(windows), np.int8), np.zeros(len(windows), np.int32)
        for i, window in enumerate(windows):
            pictures = self._streamer.pictures(window, self._shared_later(start + i)) if window.seconds.size else {}
            if not pictures:
                status[i] = 2
                continue
            times = np.array(sorted(pictures))
            for index in np.ndindex(window.seconds.shape):
                seconds = float(window.seconds[index])
                nearest = float(times[np.abs(times - seconds).argmin()])
                clips[(i, *index)] = pictures[nearest]
                replaced[i] += nearest != seconds
        return VideoBatch(clips, status, replaced)

    def _shared_later(self, number: int) -> set[float]:
        """Return the times of frames of the windows that begin before this one ends: they are decoded with it."""
        here, times = self._windows[number], set[float]()
        end_s = here.seconds.max()
        for later in range(number + 1, len(self._windows)):
            window = self._windows[later]
            if window.path != here.path or not window.seconds.size or window.seconds.min() > end_s:
                break
            times.update(window.seconds.ravel().tolist())
        return times


class _Streamer:
    """The file that is open, how far it is decoded, and the frames that windows to come share with this one."""

    def __init__(self, size: Size, channels: int) -> None:
        self._size, self._channels = size, channels
        self._path = ""
        self._opened = ExitStack()
        self._video: Video | None = None
        self._reached_s = -np.inf  # frames up to here are decoded, or have been jumped over
        self._kept: dict[float, np.ndarray] = {}

    def pictures(self, window: Window, shared: set[float]) -> dict[float, np.ndarray]:
        """Return the (H, W, C) uint8 pictures of a window by their times; damaged ones are missing.

        Args:
            window: A window that begins where the one before began, or later; else it has another file.
            shared: Times of frames of windows to come which must be kept if they are met.
        """
        requested = set(window.seconds.ravel().tolist())
        try:
            if window.path != self._path:
                self._open(window.path)
            self._kept = {seconds: picture for seconds, picture in self._kept.items() if seconds in requested | shared}
            self._decode(window, (requested | shared) - self._kept.keys())
        except (VideoError, MediaError, av.error.FFmpegError):  # the file could be read when the windows were planned
            self.close()
            return {}
        return {seconds: picture for seconds, picture in self._kept.items() if seconds in requested}

    def close(self) -> None:
        """Close the file."""
        self._opened.close()
        self._path, self._video, self._kept = "", None, {}

    def _open(self, path: str) -> None:
        self.close()
        self._video = self._opened.enter_context(open_clips(path))
        self._path, self._reached_s = path, -np.inf

    def _decode(self, window: Window, times: set[float]) -> None:
        """Keep the frames of certain times, up to the window's last one."""
        ahead = [seconds for seconds in window.seconds.ravel().tolist() if seconds > self._reached_s]
        if not ahead:
            return
        start_s = min(ahead) if window.keyframe_s > self._reached_s else self._reached_s
        assert self._video is not None
        decoded = decode_centred(
            self._video, times, max(start_s, 0.0), max(ahead), size=self._size, channels=self._channels
        )
        for seconds, picture in decoded:
            self._kept[seconds] = picture
        self._reached_s = max(ahead)
