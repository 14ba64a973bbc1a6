"""Video files -> clips of chosen windows, one behind the other: a file is opened once and streamed, however long it is.

    plan = plan_windows(["talk.mp4"], num_frames=16, step_s=4 / 30, every_s=2.0)   # one clip every two seconds
    for batch in VideoClips(plan.windows, size=224, batch_size=8):
        mae3d.embed(model, batch.clips.flatten(0, 1))

Windows are planned from the times that the packets carry, which reads a file but decodes nothing. Decoding goes on from
window to window where they follow each other, and jumps to the last keyframe before a window where that saves frames.
B windows of K clips of T frames.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae3d.video.clip import (
    Stamps,
    VideoError,
    clip_frames,
    frame_duration,
    latest_start,
    open_stream,
    read_stamps,
    square,
)


@dataclass(frozen=True)
class Window:
    """What one row of a table of clips is made of; of a file that cannot be read there is one, without clips."""

    path: str
    pts: np.ndarray  # (K, T) int64, the frames' times in the stream's time base; (0, T) without clips
    keyframe: int = 0  # the last one at or before the first of them
    first_frame: int | None = None  # its number in the video
    start_s: float | None = None  # when it begins to be shown; the video's first frame is at 0
    end_s: float | None = None  # when the last of them has been shown


class Plan(NamedTuple):
    """All windows of some files, in the files' order, and what is wrong with those that cannot be read."""

    windows: list[Window]
    unreadable: dict[str, str]


class VideoBatch(NamedTuple):
    """Clips as a model takes them."""

    clips: Tensor  # (B, K, T, H, W, 3) uint8
    status: Tensor  # (B,) int8: 0 ok; 2: nothing of it can be decoded, the clips are black
    replaced: Tensor  # (B,) int32, frames that are damaged: the nearest one of the window stands in for each


def plan_windows(
    paths: Sequence[str], *, num_frames: int, step_s: float, every_s: float = 0.0, num_clips: int = 1
) -> Plan:
    """Choose the frames of all windows.

    Args:
        paths: The files.
        num_frames: T.
        step_s: Seconds between two frames of a clip.
        every_s: A window of one clip begins at every multiple of this, as long as the clip ends within the video; what
            is left at the end has none. 0 = one window a file, of `num_clips`.
        num_clips: K, whose starts are spread evenly from the first to the last possible; one lies in the middle.

    A file that is shorter than a clip has one window, in which it begins again at its start.
    """
    windows: list[Window] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            with open_stream(path) as opened:
                stamps = read_stamps(*opened)
        except VideoError as error:
            unreadable[path] = str(error)
            windows.append(Window(path, np.zeros((0, num_frames), np.int64)))
            continue
        latest = latest_start(stamps.seconds, num_frames=num_frames, step_s=step_s)
        starts: list[list[float | None]]
        if every_s:
            starts = [[i * every_s] for i in range(int(latest / every_s) + 1)]
        else:
            starts = [[None]] if num_clips == 1 else [np.linspace(0, latest, num_clips).tolist()]
        for of_clips in starts:
            chosen = [
                clip_frames(stamps.seconds, num_frames=num_frames, step_s=step_s, start_s=start) for start in of_clips
            ]
            windows.append(_window(path, stamps, np.array(chosen), step_s=step_s))
    return Plan(windows, unreadable)


def _window(path: str, stamps: Stamps, chosen: np.ndarray, *, step_s: float) -> Window:
    """`chosen`: (K, T) frame numbers."""
    first, last = int(chosen.min()), int(chosen.max())
    over = last + 1
    seconds = stamps.seconds
    end_s = seconds[over] if over < len(seconds) else seconds[last] + frame_duration(seconds, step_s)
    pts = np.array([[stamps.pts[number] for number in clip] for clip in chosen.tolist()], dtype=np.int64)
    before = bisect_right(stamps.keyframes, int(pts.min()))
    keyframe = stamps.keyframes[before - 1] if before else stamps.pts[0]
    return Window(path, pts, keyframe, first, seconds[first], end_s)


class VideoClips:
    """An iterator over batches of windows, in their order; the next batch is decoded while one is worked on."""

    def __init__(self, windows: Sequence[Window], *, size: int, batch_size: int) -> None:
        """Starts decoding.

        Args:
            windows: Of K clips each, or without any; those of a file together, in the order of their beginnings.
            size: H and W, in pixels.
            batch_size: B; fewer in the last one.
        """
        self._shape = (max((len(w.pts) for w in windows), default=1) or 1, windows[0].pts.shape[1], size, size, 3)
        self._windows, self._reader = windows, _Reader(size)
        self._starts = iter(range(0, len(windows), batch_size))
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1)
        self._ahead = self._thread.submit(self._decode_next)

    def __iter__(self) -> Iterator[VideoBatch]:
        return self

    def __next__(self) -> VideoBatch:
        batch = self._ahead.result()
        if batch is None:
            raise StopIteration
        self._ahead = self._thread.submit(self._decode_next)
        return batch

    def close(self) -> None:
        """Stops decoding and closes the file."""
        self._thread.shutdown(cancel_futures=True)
        self._reader.close()

    def _decode_next(self) -> VideoBatch | None:
        start = next(self._starts, None)
        if start is None:
            return None
        windows = self._windows[start : start + self._batch_size]
        clips = np.zeros((len(windows), *self._shape), np.uint8)
        status, replaced = np.zeros(len(windows), np.int8), np.zeros(len(windows), np.int32)
        for i, window in enumerate(windows):
            pictures = self._reader.pictures(window, self._shared_later(start + i)) if window.pts.size else {}
            if not pictures:
                status[i] = 2
                continue
            times = np.array(sorted(pictures))
            for place in np.ndindex(window.pts.shape):
                pts = int(window.pts[place])
                nearest = int(times[np.abs(times - pts).argmin()])
                clips[(i, *place)] = pictures[nearest]
                replaced[i] += nearest != pts
        return VideoBatch(torch.from_numpy(clips), torch.from_numpy(status), torch.from_numpy(replaced))

    def _shared_later(self, number: int) -> set[int]:
        """Times of frames of the windows that begin before this one ends: they are decoded with it."""
        here, times = self._windows[number], set[int]()
        end = here.pts.max()
        for later in range(number + 1, len(self._windows)):
            window = self._windows[later]
            if window.path != here.path or not window.pts.size or window.pts.min() > end:
                break
            times.update(window.pts.ravel().tolist())
        return times


class _Reader:
    """The file that is open, how far it is decoded, and the frames that windows to come share with this one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._path = ""
        self._opened = ExitStack()
        self._frames: Iterator[Any] = iter(())
        self._reached: float = -np.inf  # of all that lies before, only what is kept will be asked for
        self._kept: dict[int, np.ndarray] = {}

    def pictures(self, window: Window, shared: set[int]) -> dict[int, np.ndarray]:
        """(H, W, 3) uint8 of each frame of a window by its time; what is damaged is missing.

        Args:
            window: Begins where the one before began, or later; else it has another file.
            shared: Times of frames of windows to come which must be kept if they are met.
        """
        import av.error

        wanted = set(window.pts.ravel().tolist())
        try:
            if window.path != self._path:
                self._open(window.path)
            self._kept = {pts: picture for pts, picture in self._kept.items() if pts in wanted | shared}
            left = [pts for pts in wanted if pts > self._reached]
            if left and window.keyframe > self._reached:
                self._jump(window.keyframe, first=min(left))
            if left:
                self._decode(wanted | shared, last=max(left))
        except (VideoError, av.error.FFmpegError, OSError):  # the file could be read when the windows were planned
            self.close()
            return {}
        return {pts: picture for pts, picture in self._kept.items() if pts in wanted}

    def close(self) -> None:
        self._opened.close()
        self._path, self._kept = "", {}

    def _open(self, path: str) -> None:
        self.close()
        self._container, self._stream = self._opened.enter_context(open_stream(path))
        self._path, self._reached, self._frames = path, -np.inf, self._decoded()

    def _jump(self, keyframe: int, *, first: int) -> None:
        """Goes on at a keyframe; where a container has no good index, and that misses `first`, at the file's start."""
        self._container.seek(keyframe, stream=self._stream, backward=True)
        frames = self._decoded()
        landed = next(frames, None)
        if landed is None or landed.pts is None or landed.pts > first:
            kept = self._kept
            self._open(self._path)
            self._kept = kept
        else:
            self._frames = chain([landed], frames)

    def _decode(self, times: set[int], *, last: int) -> None:
        """Keeps the frames of these times, as far as the time `last`."""
        while self._reached < last:
            frame = next(self._frames, None)
            if frame is None:
                self._reached = np.inf
            elif frame.pts is not None and frame.pts > last:  # the last one is damaged; this may be the next window's
                self._frames, self._reached = chain([frame], self._frames), last
            elif frame.pts is not None:
                self._reached = frame.pts
                if frame.pts in times and not frame.is_corrupt:
                    self._kept[frame.pts] = square(frame, self._size)

    def _decoded(self) -> Iterator[Any]:
        """Frames from here on, ascending in time; packets that do not decode are passed over."""
        import av.error

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else []
            except av.error.InvalidDataError:
                continue
            except EOFError:
                return
            yield from frames
            if packet is None:
                return
