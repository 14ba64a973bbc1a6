"""Video files ─► frames in time order, through PyAV (FFmpeg in a wheel).

In: a file and a span of its time. Out: `(seconds, frame)` pairs, the first frame of the stream at about 0 s, and an
account of what could not be decoded. `preprocess.encode.video_frames` makes pictures of the frames.

    with open_video(path) as video:
        for seconds, frame in video.frames(0.0, 10.0):
            width, height = video.upright_size(frame)

Frames are placed by their timestamps, never by counting: variable rates, a non-zero start and frames that an
edit list discards come out right; where timestamps go back, the rest follows on. What breaks in the middle does
not end the video: packets that do not decode and frames that the decoder flags as damaged are left out and
counted; the rest is kept, and may show traces of the loss until the next keyframe, as it would in any player.

Files are opened by `mae3d.video.container`: with one codec thread, and nothing but the file itself.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av

from mae3d.video.clock import STEP_S, FrameClock, FrameTimes, PacketStamps, times_of_packets
from mae3d.video.container import MAX_PIXELS, check_readable, open_container
from mae3d.video.errors import MediaError, raise_unless_of_the_file
from mae3d.video.orientation import Orientation, orientation

_RATE_TOLERANCE = 0.01  # a measured rate this close to the declared one is the declared one
_STEPS_BACK_S = (0.0, 2.0, 8.0, 32.0, 128.0)  # how far before a span a jump is tried where a nearer one came too late
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")  # the index has every packet, so that any can be jumped to
_UNORDERED = ("avi", "asf", "mxf")  # may know no order of presentation
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS, of raw streams: after a jump their clock starts anew
_FRAMES_TO_TELL_A_CLOCK = 32
_LONGEST_LIE_S = 2.0  # a header may announce this much more or less than the packets have


@dataclass(frozen=True)
class VideoFacts:
    """What the header of a video announces; NaN = not announced."""

    fps: float
    duration_s: float
    width: int
    height: int


@dataclass(frozen=True)
class Damage:
    """What could not be decoded."""

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
    """A packet or, if it is one, a frame that could not be decoded."""

    seconds: float
    message: str
    is_frame: bool = False


Timed = tuple[float, av.VideoFrame]


@dataclass
class Video:
    """An opened video file; `damage` is of the span that was asked for last, and grows while its frames are read."""

    path: Path
    container: Any
    stream: Any
    max_pixels: int
    progress: Callable[[str], None]
    _orientations: dict[int, Orientation] = field(default_factory=dict)
    _decoded: Iterator[Timed] | None = None  # what follows on the recent frames
    _recent: deque[Timed] = field(default_factory=lambda: deque(maxlen=2))
    _losses: list[_Loss] = field(default_factory=list)
    _span: tuple[float, float] = (-math.inf, math.inf)
    _latest: float = 0.0  # time of the frame that was decoded last
    _at_start: bool = True  # nothing has been read since it was opened
    _clock_is_chosen: bool = False
    _first_dts: int | None = None  # where the clock starts if decoding times are better than those of presentation
    _no_jumps: bool = False  # decoding from the start is the only way to any frame

    @property
    def facts(self) -> VideoFacts:
        stream, base = self.stream, self.stream.time_base
        fps = float(stream.average_rate) if stream.average_rate else math.nan
        if stream.duration and base:
            duration = float(stream.duration * base)
        elif self.container.duration:
            duration = self.container.duration / 1e6
        else:
            duration = math.nan
        return VideoFacts(fps, duration, stream.codec_context.width, stream.codec_context.height)

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height; 1 if the file says nothing."""
        ratio = self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio
        return float(ratio) if ratio else 1.0

    @property
    def damage(self) -> Damage:
        start_s, stop_s = self._span
        lost = [one for one in self._losses if start_s <= one.seconds < stop_s]
        if not lost:
            return Damage()
        frames = sum(one.is_frame for one in lost)
        return Damage(len(lost) - frames, frames, max(lost[0].seconds, 0.0), lost[0].message)

    def measured_facts(self) -> VideoFacts:
        """The facts with a length that the packets bear out; ends reading of this object.

        What the header announces is believed if there are packets at its end; else all are looked through.

        Raises:
            MediaError: there are no packets.
        """
        facts = self.facts
        if facts.duration_s > 0:
            for any_packet in (True, False) if self.container.format.name in _INDEXED else (False,):
                last_s = self._last_packet_s(facts.duration_s, any_packet=any_packet)
                if abs(last_s - facts.duration_s) < _LONGEST_LIE_S:
                    return facts
                self._reopen()
        seconds = self._last_packet_s(0.0)
        if seconds == -math.inf:
            raise MediaError("no_frames", "no frame in it")
        return replace(facts, duration_s=max(seconds, 1 / facts.fps if facts.fps > 0 else STEP_S))

    def frame_times(self) -> FrameTimes:
        """Return when each frame of the video is shown; `frames` gives those that are not damaged, at these times.

        The times are those in the packets, which costs reading the file, if the first frames bear them out. Else all
        frames are decoded, and only the start of the file is sure to lead to them.
        """
        self._choose_clock()
        times = self._packet_times()
        self._reopen()
        self._start_decoding()
        if times is not None:
            first = [seconds for seconds, _ in itertools.islice(self.frames(), _FRAMES_TO_TELL_A_CLOCK)]
            if first == times.seconds[:_FRAMES_TO_TELL_A_CLOCK]:
                return times
        return FrameTimes([seconds for seconds, _ in self.frames()], [])

    def _packet_times(self) -> FrameTimes | None:
        """Return what the packets tell about the times of their frames, if that is all there is to know."""
        if self._first_dts is not None or self.container.format.flags & _NO_TIMESTAMPS:
            return None
        shown = (packet for packet in self._packets() if packet.size and not packet.is_discard)
        return times_of_packets((PacketStamps(p.pts, p.dts, p.is_keyframe) for p in shown), self._clock())

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[Timed]:
        """Decodes the frames with start_s <= time < stop_s, the last one before and the first one after.

        Times ascend. A span that begins where the one before ended goes on from there; else the container is asked
        to jump.
        """
        self._span = start_s, stop_s
        self._losses = [one for one in self._losses if one.seconds >= start_s]
        previous: Timed | None = None
        for pair in self._from(start_s):
            if pair[0] < start_s:
                previous = pair
                continue
            if previous is not None:
                yield previous
                previous = None
            yield pair
            if pair[0] >= stop_s:
                return
        if previous is not None:
            yield previous

    def upright_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of the frame as it is meant to be seen."""
        swapped, _, _ = self.orientation(frame)
        return (frame.height, frame.width) if swapped else (frame.width, frame.height)

    def orientation(self, frame: av.VideoFrame) -> Orientation:
        """Return how the frame becomes upright."""
        return orientation(frame, self._orientations)

    def _from(self, start_s: float) -> Iterator[Timed]:
        """Frames from one at or before start_s on, or from the first one if there is none."""
        recent = list(self._recent)
        goes_on = recent and recent[0][0] <= start_s and (self._no_jumps or start_s <= recent[-1][0])
        if not goes_on:
            recent = self._jump(start_s)
        assert self._decoded is not None
        yield from recent
        # No `yield from`: it would close what the next span goes on from.
        for pair in self._decoded:  # noqa: UP028
            yield pair

    def _jump(self, start_s: float) -> list[Timed]:
        """Sets decoding up before start_s and returns what was decoded to find that out.

        A jump may land too late: on the keyframe after, or on packets that need an earlier one. Then farther back.
        """
        self._losses.clear()
        self._choose_clock()
        origin, base = self.stream.start_time or 0, self.stream.time_base
        if start_s > 0 and base and not self._no_jumps and not self.container.format.flags & _NO_TIMESTAMPS:
            # In MPEG-PS few packets have a time: behind a jump it takes some frames until the clock is right.
            for back_s in _STEPS_BACK_S[self.container.format.name == "mpeg" :]:
                if start_s <= back_s:
                    break
                try:
                    target = origin + math.floor((start_s - back_s) / base)
                    self.container.seek(target, stream=self.stream, backward=True)
                except av.error.FFmpegError:
                    self._no_jumps, self._at_start = True, False
                    break
                self._start_decoding()
                assert self._decoded is not None
                first = next(self._decoded, None)
                self._losses.clear()  # what a decoder says before the first whole frame after a jump is none
                if first is not None and first[0] <= start_s and first[1].pts is not None:
                    return [first]
            else:
                self._no_jumps = True
        if not self._at_start:
            self._reopen()
        self._start_decoding()
        return []

    def _choose_clock(self) -> None:
        """Tell frames' times by decoding if the order of presentation that FFmpeg makes up for B-frames is wrong.

        Then a frame's time is that of the packet after which it came out, which is late by as much everywhere.
        """
        if self.container.format.name not in _UNORDERED or self._clock_is_chosen:
            return
        self._clock_is_chosen = True
        try:
            frames = list(itertools.islice(self.container.decode(self.stream), _FRAMES_TO_TELL_A_CLOCK))
        except av.error.FFmpegError:
            frames = []
        stamps = [frame.pts for frame in frames if frame.pts is not None]
        if stamps != sorted(stamps):
            self._first_dts = frames[0].dts
        self._reopen()

    def _start_decoding(self) -> None:
        self._recent.clear()
        self._latest, self._at_start = 0.0, False
        self._decoded = self._decode()

    def _decode(self) -> Iterator[Timed]:
        clock = self._clock()
        for packet in self._packets():
            self.progress("the first frame" if clock.latest_s < 0 else f"{clock.latest_s:.2f} s")
            try:
                frames = packet.decode()
            except EOFError:
                return
            except av.error.FFmpegError as error:
                self._losses.append(_Loss(clock.next_s, str(error.strerror)))
                continue
            for frame in frames:
                seconds = self._latest = clock.seconds(frame.pts if self._first_dts is None else frame.dts)
                if frame.is_corrupt:
                    self._losses.append(_Loss(seconds, "damaged frame", is_frame=True))
                else:
                    self._recent.append((seconds, frame))
                    yield seconds, frame

    def _clock(self) -> FrameClock:
        """Return a clock that stands before the first frame."""
        origin = self.stream.start_time
        if self._first_dts is not None:
            origin = self._first_dts
        elif origin is None and not self.container.format.flags & _NO_TIMESTAMPS:
            origin = 0  # a raw stream has none: it is read from its first frame on, wherever that lies
        return FrameClock(
            self.stream.time_base, origin=origin, step_s=1 / self.facts.fps if self.facts.fps > 0 else STEP_S
        )

    def _packets(self) -> Iterator[Any]:
        """The stream's packets, the last one empty; an error of the container or in the file ends them."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise_unless_of_the_file(error, self.path)
                check_readable(self.path)
                self._losses.append(_Loss(self._latest, str(error.strerror)))
                return
            except IndexError:
                # Streams have appeared on the way; PyAV stumbles over them behind the last packet (demux in input.py).
                return
            if packet is None:
                return
            if not packet.size:
                check_readable(self.path)
            yield packet

    def _last_packet_s(self, from_s: float, *, any_packet: bool = False) -> float:
        """The end of the last packet, looked for from the keyframe before from_s on; -inf if there is none.

        With any_packet from that packet on, which reads next to nothing.
        """
        origin, base = self.stream.start_time or 0, self.stream.time_base
        if from_s > 0:
            try:
                target = origin + math.floor(from_s / base)
                self.container.seek(target, stream=self.stream, backward=True, any_frame=any_packet)
            except av.error.FFmpegError:
                return -math.inf
        last = -math.inf
        for packet in self._packets():
            length_s = float((packet.duration or 0) * base)
            if packet.pts is not None:
                last = max(last, float((packet.pts - origin) * base) + length_s)
            elif packet.size and from_s <= 0:
                last = max(last, 0.0) + length_s
            self.progress(f"{last:.2f} s")
        return last

    def _reopen(self) -> None:
        self.container.close()
        self.container, self.stream = open_container(self.path, self.max_pixels)
        self._at_start = True


@contextmanager
def open_video(
    path: Path, *, max_pixels: int = MAX_PIXELS, progress: Callable[[str], None] = lambda place: None
) -> Iterator[Video]:
    """Opens the first real video stream of a file.

    Args:
        path: the file.
        max_pixels: what announces or holds larger frames is refused.
        progress: is told the place with every packet that is read.

    Raises:
        MediaError: missing, not a video in a known container, no video stream (a cover picture is none), no
            decoder, too large.
        OSError: its disk has gone; also while frames are read.
    """
    progress("its header")
    video = Video(path, *open_container(path, max_pixels), max_pixels, progress)
    try:
        yield video
    finally:
        video.container.close()


class KeptVideo:
    """Opens videos as `open_video` does, and keeps the last one open: the next piece of it goes on where it ended."""

    def __init__(self) -> None:
        self._video: Video | None = None
        self._key: object = None

    @contextmanager
    def open(self, path: Path, *, max_pixels: int, progress: Callable[[str], None]) -> Iterator[Video]:
        """See `open_video`."""
        key = path, max_pixels, _version(path)
        if self._video is None or key != self._key:
            self.close()
            progress("its header")
            self._video, self._key = Video(path, *open_container(path, max_pixels), max_pixels, progress), key
        try:
            yield self._video
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the video that is kept."""
        if self._video is not None:
            self._video.container.close()
            self._video = None


def _version(path: Path) -> tuple[int, ...] | None:
    """What is no longer the same once a file has been replaced or changed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def effective_fps(times: tuple[float, float], num_frames: int, declared: float) -> float:
    """Frames per second of `num_frames` frames between two times; one frame says nothing: what was declared."""
    if num_frames < 2 or times[1] <= times[0]:
        return declared
    measured = (num_frames - 1) / (times[1] - times[0])
    return declared if abs(measured - declared) <= _RATE_TOLERANCE * declared else measured
