"""A video file is opened, and its stream's packets are read, from the start or after a jump.

A file ─► its facts, its packets and the clock of its frames. `mae3d.video.reader` decodes them.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av

from mae3d.video.clock import STEP_S, FrameClock
from mae3d.video.container import check_readable, open_container
from mae3d.video.errors import raise_unless_of_the_file
from mae3d.video.facts import VideoFacts

CLOCK_FRAMES = 32  # frames at a video's start that are decoded to check its clock
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")  # the index has every packet, so that any can be jumped to
_UNORDERED = ("avi", "asf", "mxf")  # may know no order of presentation
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS, of raw streams: after a jump their clock starts anew


class VideoStream:
    """The first real video stream of an opened file.

    Attributes:
        path: The file.
        is_at_start: Whether nothing has been read since the file was opened.
    """

    def __init__(self, path: Path, *, max_pixels: int, progress: Callable[[str], None]) -> None:
        """Open the file; arguments and errors as of `mae3d.video.reader.open_video`."""
        self.path, self._max_pixels, self._progress = path, max_pixels, progress
        self._clock_is_chosen = False
        self._first_dts: int | None = None  # where the clock starts if it goes by decoding times
        progress("its header")
        self._open()

    @property
    def facts(self) -> VideoFacts:
        """The header's announcements."""
        stream, base = self._stream, self._stream.time_base
        fps = float(stream.average_rate) if stream.average_rate else math.nan
        if stream.duration and base:
            duration = float(stream.duration * base)
        elif self._container.duration:
            duration = self._container.duration / 1e6
        else:
            duration = math.nan
        return VideoFacts(fps, duration, stream.codec_context.width, stream.codec_context.height)

    @property
    def codec_context(self) -> Any:
        """The decoder (PyAV's) that the container has set up."""
        return self._stream.codec_context

    @property
    def step_s(self) -> float:
        """Seconds from a frame to the next, as announced or guessed."""
        fps = self.facts.fps
        return 1 / fps if fps > 0 else STEP_S

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height; 1 if the file says nothing."""
        ratio = self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio
        return float(ratio) if ratio else 1.0

    @property
    def has_stamps(self) -> bool:
        """Return whether packets carry times, by which the container can be searched: raw streams have none."""
        return not self._container.format.flags & _NO_TIMESTAMPS and bool(self._stream.time_base)

    @property
    def has_index(self) -> bool:
        """Return whether a jump reaches any packet, not only keyframes."""
        return self._container.format.name in _INDEXED

    @property
    def has_few_stamps(self) -> bool:
        """Return whether few packets have a time, as in MPEG-PS: after a jump the clock is wrong for some frames."""
        return bool(self._container.format.name == "mpeg")

    @property
    def goes_by_dts(self) -> bool:
        """Return whether frames are timed by when they are decoded, as `choose_clock` has found out."""
        return self._first_dts is not None

    def choose_clock(self) -> None:
        """Find out, before anything is read, by which of their stamps frames are to be timed.

        AVI, and at times ASF and MXF, have no order of presentation: FFmpeg makes one up, which goes back and forth
        with B-frames. Then a frame's time is that of the packet after which it came out, which is late by as much
        everywhere.
        """
        if self._clock_is_chosen:
            return
        self._clock_is_chosen = True
        if self._container.format.name in _UNORDERED:
            try:
                frames = list(itertools.islice(self._container.decode(self._stream), CLOCK_FRAMES))
            except av.error.FFmpegError:
                frames = []
            stamps = [frame.pts for frame in frames if frame.pts is not None]
            if stamps != sorted(stamps):
                self._first_dts = frames[0].dts
            self.reopen()

    def clock(self) -> FrameClock:
        """Return a clock that stands before the first frame."""
        origin = self._stream.start_time
        if self.goes_by_dts:
            origin = self._first_dts
        elif origin is None and self.has_stamps:
            origin = 0  # raw streams have no origin: they are read from their first frame on, wherever that lies
        return FrameClock(self._stream.time_base, origin=origin, step_s=self.step_s)

    def stamp(self, frame: av.VideoFrame) -> int | None:
        """Return a frame's time on the stream's clock, in its time base."""
        return frame.dts if self.goes_by_dts else frame.pts

    def packets(self, on_error: Callable[[str], None] = lambda message: None) -> Iterator[Any]:
        """Yield the stream's packets from here on, the last one empty; an error of the container or file ends them.

        Args:
            on_error: Takes the message of such an error.

        Raises:
            OSError: The disk of the file has gone.
        """
        self.is_at_start = False
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise_unless_of_the_file(error, self.path)
                check_readable(self.path)
                on_error(str(error.strerror))
                return
            except IndexError:
                # Streams have appeared on the way; PyAV stumbles over them behind the last packet (demux in input.py).
                return
            if packet is None:
                return
            if not packet.size:
                check_readable(self.path)
            yield packet

    def report(self, position: str) -> None:
        """Report how far the file has been read."""
        self._progress(position)

    def seek(self, seconds: float, *, any_packet: bool = False) -> bool:
        """Jump to the keyframe at or before a time; return whether the container can.

        Args:
            seconds: The time.
            any_packet: Whether any packet will do.
        """
        self.is_at_start = False
        target = (self._stream.start_time or 0) + math.floor(seconds / self._stream.time_base)
        try:
            self._container.seek(target, stream=self._stream, backward=True, any_frame=any_packet)
        except av.error.FFmpegError:
            return False
        return True

    def last_packet_s(self, from_s: float, *, any_packet: bool = False) -> float:
        """Return the end of the last packet, in seconds; -inf if there is none.

        Args:
            from_s: Packets are read from the keyframe before this time on.
            any_packet: Whether to begin at any packet, which reads next to nothing.
        """
        if from_s > 0 and not self.seek(from_s, any_packet=any_packet):
            return -math.inf
        origin, base = self._stream.start_time or 0, self._stream.time_base
        last = -math.inf
        for packet in self.packets():
            length_s = float((packet.duration or 0) * base)
            if packet.pts is not None:
                last = max(last, float((packet.pts - origin) * base) + length_s)
            elif packet.size and from_s <= 0:
                last = max(last, 0.0) + length_s
            self.report(f"{last:.2f} s")
        return last

    def reopen(self) -> None:
        """Go back to the start by closing and opening the file: not all containers can be wound back."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _open(self) -> None:
        self._container, self._stream = open_container(self.path, self._max_pixels)
        self.is_at_start = True
