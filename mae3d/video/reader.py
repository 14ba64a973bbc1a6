"""Video files become frames in time order, through PyAV (FFmpeg in a wheel).

A file and a span of its time ─► `(seconds, frame)` pairs, the first frame of the stream at about 0 s, and an account of
the packets and frames that could not be decoded.

    with open_video(path) as video:
        for seconds, frame in video.frames(0.0, 10.0):
            width, height = video.upright_size(frame)

Frames are placed by their timestamps, never by counting: variable rates, a non-zero start and frames that an edit list
discards come out right; if timestamps go back, the rest follows on. Damage in the middle does not end the video:
packets that do not decode and frames that the decoder flags as damaged are left out and counted; the rest is kept, and
may show traces of the loss until the next keyframe, as it would in any player.

Files are opened by `mae3d.video.container`: with one codec thread, and nothing but the file itself. Their packets are
read by `mae3d.video.stream`; `mae3d.video.clock` makes seconds of their stamps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av

from mae3d.video.clock import FrameTimes, within
from mae3d.video.errors import MediaError, refuse_unconvertible
from mae3d.video.facts import MAX_PIXELS, VideoFacts
from mae3d.video.listing import Listing, Timed, list_frames
from mae3d.video.orientation import Orientation, orientation
from mae3d.video.stream import VideoStream

__all__ = ["DecodeLoss", "KeptVideo", "Video", "VideoFacts", "effective_fps", "open_video"]

_RATE_TOLERANCE = 0.01  # a measured rate this close to the declared one is the declared one
_STEPS_BACK_S = (0.0, 2.0, 8.0, 32.0, 128.0)  # how far before a span a jump is tried if a nearer one came too late
_LONGEST_LIE_S = 2.0  # a header may announce this much more or less than the packets have


@dataclass(frozen=True)
class DecodeLoss:
    """The packets and frames of a span that could not be decoded."""

    packets: int = 0
    frames: int = 0
    first_s: float = math.nan
    message: str = ""

    def __bool__(self) -> bool:
        return bool(self.packets or self.frames)

    def __str__(self) -> str:
        where = "" if math.isnan(self.first_s) else f", the first at {self.first_s:.2f} s"
        lost = f"{self.packets} packets not decoded, {self.frames} damaged frames left out"
        return f"{lost}{where}: {self.message}"


@dataclass(frozen=True)
class _Loss:
    """A packet or, if `is_frame`, a frame that could not be decoded."""

    seconds: float
    message: str
    is_frame: bool = False


class Video:
    """An opened video file, from which spans of frames are read."""

    def __init__(self, stream: VideoStream) -> None:
        """Take over a stream that has just been opened."""
        self._stream = stream
        self._orientations: dict[int, Orientation] = {}
        self._decoded: Iterator[Timed] = iter(())  # follows on the recent frames
        self._recent: deque[Timed] = deque(maxlen=2)
        self._losses: list[_Loss] = []
        self._span = (-math.inf, math.inf)
        self._listing: Listing | None = None
        self._no_jumps = False  # decoding from the start is the only way to any frame

    @property
    def facts(self) -> VideoFacts:
        """The header's announcements."""
        return self._stream.facts

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height; 1 if the file says nothing."""
        return self._stream.pixel_aspect

    @property
    def damage(self) -> DecodeLoss:
        """The loss in the span that was requested last; it grows while the span's frames are read."""
        start_s, stop_s = self._span
        lost = [loss for loss in self._losses if start_s <= loss.seconds < stop_s]
        if not lost:
            return DecodeLoss()
        frames = sum(loss.is_frame for loss in lost)
        return DecodeLoss(len(lost) - frames, frames, max(lost[0].seconds, 0.0), lost[0].message)

    def measured_facts(self) -> VideoFacts:
        """Return the facts with a length that the packets bear out; ends reading of this object.

        The announced length is believed if there are packets at its end; else all packets are read.

        Raises:
            MediaError: There are no packets.
        """
        facts = self.facts
        if facts.duration_s > 0:
            for any_packet in (True, False) if self._stream.has_index else (False,):
                last_s = self._stream.last_packet_s(facts.duration_s, any_packet=any_packet)
                if abs(last_s - facts.duration_s) < _LONGEST_LIE_S:
                    return facts
                self._stream.reopen()
        seconds = self._stream.last_packet_s(0.0)
        if seconds == -math.inf:
            raise MediaError("no_frames", "no frame in it")
        return replace(facts, duration_s=max(seconds, self._stream.step_s))

    def frame_times(self) -> FrameTimes:
        """Return when each frame of the video is shown; `frames` gives those that are not damaged, at these times.

        The times are those in the packets, which costs reading the file, if the first frames bear them out. Else all
        frames are decoded, and only the start of the file is sure to lead to them.
        """
        return (self._listing or list_frames(self._stream, self._from_the_start, with_packets=False)).times

    def listing(self) -> Listing:
        """Return all frames with the packets that they are decoded from; of a video that is kept open it is kept."""
        if self._listing is None:
            self._listing = list_frames(self._stream, self._from_the_start, with_packets=True)
        return self._listing

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Timed]:
        """Decode the frames with start_s <= time < stop_s, the last one before and the first one after.

        Times ascend. A span that begins at the end of the one before goes on from there; else the container jumps.

        Raises:
            MediaError: A frame has pixels that nothing can convert.
            OSError: The disk of the file has gone.
        """
        self._span = start_s, stop_s
        self._losses = [loss for loss in self._losses if loss.seconds >= start_s]
        yield from within(self._from(start_s), start_s, stop_s)

    def upright_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return the (width, height) of a frame that has been turned upright."""
        swapped, _, _ = self.orientation(frame)
        return (frame.height, frame.width) if swapped else (frame.width, frame.height)

    def orientation(self, frame: av.VideoFrame) -> Orientation:
        """Return how a frame becomes upright."""
        return orientation(frame, self._orientations)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _from_the_start(self) -> Iterator[Timed]:
        self._start_decoding()
        return self.frames()

    def _from(self, start_s: float) -> Iterator[Timed]:
        """Yield the frames from one at or before start_s on, or from the first one if there is none."""
        recent = list(self._recent)
        goes_on = recent and recent[0][0] <= start_s and (self._no_jumps or start_s <= recent[-1][0])
        if not goes_on:
            recent = self._jump(start_s)
        yield from recent
        # No `yield from`: it would close what the next span goes on from.
        for pair in self._decoded:  # noqa: UP028
            yield pair

    def _jump(self, start_s: float) -> list[Timed]:
        """Start decoding before start_s; return the frames that were decoded to check this.

        A jump may land too late: on the keyframe after, or on packets that need an earlier one. Then farther back.
        """
        self._losses.clear()
        self._stream.choose_clock()
        jumps = start_s > 0 and not self._no_jumps and self._stream.has_stamps
        for back_s in _STEPS_BACK_S[self._stream.has_few_stamps :] if jumps else ():
            if start_s <= back_s:
                break
            if not self._stream.seek(start_s - back_s):
                self._no_jumps = True
                break
            self._decode_from_here(amid_group=True)
            first = next(self._decoded, None)
            self._losses.clear()  # an error of the decoder before the first frame after a jump is no loss
            if first is not None and first[0] <= start_s and first[1].pts is not None:
                return [first]
        else:
            self._no_jumps |= jumps
        self._start_decoding()
        return []

    def _start_decoding(self) -> None:
        if not self._stream.is_at_start:
            self._stream.reopen()
        self._decode_from_here()

    def _decode_from_here(self, *, amid_group: bool = False) -> None:
        self._recent.clear()
        self._decoded = self._decode(amid_group)

    def _decode(self, amid_group: bool) -> Iterator[Timed]:
        """Decode from here on; `amid_group`, from the next keyframe on."""
        clock = self._stream.clock()

        def lose(message: str) -> None:
            self._losses.append(_Loss(0.0 if clock.latest_s == -math.inf else clock.latest_s, message))

        for packet in self._stream.packets(on_error=lose):
            # A jump in MPEG-TS lands on any packet, and MPEG-4's decoder begins there, with grey in place of the past.
            if amid_group and packet.size and not packet.is_keyframe:
                continue
            amid_group = False
            self._stream.report("the first frame" if clock.latest_s < 0 else f"{clock.latest_s:.2f} s")
            try:
                frames = packet.decode()
            except EOFError:
                return
            except av.error.FFmpegError as error:
                self._losses.append(_Loss(clock.next_s, str(error.strerror)))
                continue
            for frame in frames:
                refuse_unconvertible(frame)
                seconds = clock.seconds(self._stream.stamp(frame))
                if frame.is_corrupt:
                    self._losses.append(_Loss(seconds, "damaged frame", is_frame=True))
                else:
                    self._recent.append((seconds, frame))
                    yield seconds, frame


@contextmanager
def open_video(
    path: Path, *, max_pixels: int = MAX_PIXELS, progress: Callable[[str], None] = lambda position: None
) -> Iterator[Video]:
    """Yield the first real video stream of a file.

    Args:
        path: The file.
        max_pixels: Files that announce or hold larger frames are refused.
        progress: Takes the position, in words, with every packet that is read.

    Raises:
        MediaError: The file is missing, not a video in a known container, without a video stream (a cover picture is
            none) or a decoder for it, or too large.
        OSError: The disk of the file has gone; also while frames are read.
    """
    video = Video(VideoStream(path, max_pixels=max_pixels, progress=progress))
    try:
        yield video
    finally:
        video.close()


class KeptVideo:
    """An opener of videos that keeps the last one open: the next piece of it goes on where the last one ended."""

    def __init__(self) -> None:
        self._video: Video | None = None
        self._key: object = None

    @contextmanager
    def open(self, path: Path, *, max_pixels: int, progress: Callable[[str], None]) -> Iterator[Video]:
        """Yield a video as `open_video` does."""
        key = path, max_pixels, _version(path)
        if self._video is None or key != self._key:
            self.close()
            self._video, self._key = Video(VideoStream(path, max_pixels=max_pixels, progress=progress)), key
        try:
            yield self._video
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the video that is kept."""
        if self._video is not None:
            self._video.close()
            self._video = None


def _version(path: Path) -> tuple[int, ...] | None:
    """Return numbers that differ once a file has been replaced or changed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def effective_fps(times: tuple[float, float], num_frames: int, declared: float) -> float:
    """Return the frames per second of `num_frames` frames between two times; the declared rate if there is only one."""
    if num_frames < 2 or times[1] <= times[0]:
        return declared
    measured = (num_frames - 1) / (times[1] - times[0])
    return declared if abs(measured - declared) <= _RATE_TOLERANCE * declared else measured
