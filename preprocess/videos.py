"""Video files ─► frames in time order, through PyAV (FFmpeg in a wheel).

In: a file and a span of its time. Out: `(seconds, frame)` pairs, the first frame of the stream at about 0 s,
upright RGB pictures from them, and an account of what could not be decoded.

    with open_video(path) as video:
        for seconds, frame in video.frames(0.0, 10.0):
            picture = video.picture(frame, width=455, height=256)

Frames are placed by their timestamps, never by counting: variable rates, a non-zero start and frames that an
edit list discards come out right. Pixels are taken as stored: a pixel aspect ratio is not applied, an alpha
channel is dropped, HDR is not tone-mapped. What breaks in the middle does not end the video: packets that do
not decode and frames that the decoder flags as damaged are left out and counted; the rest is kept, and may show
traces of the loss until the next keyframe, as it would in any player.

Everything that could make two runs differ is fixed: one codec thread, bit-exact scaling. Only files are
opened: no network protocol, no playlist.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from preprocess.problems import MediaError

VIDEO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv"),
        *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    )
)
MAX_PIXELS = 1 << 26  # 8192 x 8192: what announces more is refused before it is decoded

# Containers that hold media themselves; playlists (hls, concat, dash) and image patterns would name other
# files.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,live_flv,asf,ogg,h264,hevc,m4v,mxf,dv,ivf,nut,rm,obu"
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_RATE_TOLERANCE = 0.01  # a measured rate this close to the declared one is the declared one


@dataclass(frozen=True)
class VideoFacts:
    """What the header of a video announces; NaN = not announced."""

    fps: float
    duration_s: float
    width: int
    height: int


@dataclass
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


@dataclass
class Video:
    """An opened video file; `damage` grows while frames are read."""

    path: Path
    container: Any
    stream: Any
    damage: Damage = field(default_factory=Damage)
    _reformatter: VideoReformatter = field(default_factory=VideoReformatter)

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

    def count_seconds(self) -> float:
        """The length of a video whose header does not tell it, from its packets; ends reading of this object.

        Raises:
            MediaError: no packet carries a time.
        """
        times = [
            packet.pts + (packet.duration or 0)
            for packet in self.container.demux(self.stream)
            if packet.pts is not None
        ]
        if not times or not self.stream.time_base:
            raise MediaError("no_duration", "neither the header nor the packets tell how long it is")
        return float((max(times) - (self.stream.start_time or 0)) * self.stream.time_base)

    def frames(self, start_s: float = 0.0, stop_s: float = math.inf) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes the frames with start_s <= time < stop_s and the last one before; ascending in time."""
        previous: tuple[float, av.VideoFrame] | None = None
        for seconds, frame in self._decode_from(start_s):
            if seconds >= start_s and previous is not None:
                yield previous
                previous = None
            if seconds >= stop_s:
                return
            if seconds >= start_s:
                yield seconds, frame
            else:
                previous = seconds, frame
        if previous is not None:
            yield previous

    def upright_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of the frame as it is meant to be seen."""
        return (frame.height, frame.width) if orientation(frame)[0] else (frame.width, frame.height)

    def picture(self, frame: av.VideoFrame, *, width: int, height: int) -> Image.Image:
        """The frame as an upright RGB picture of the given size."""
        swapped, flip_x, flip_y = orientation(frame)
        size = (height, width) if swapped else (width, height)
        try:
            rgb = self._reformatter.reformat(frame, *size, "rgb24", interpolation=_SCALING, threads=1)
        except av.error.FFmpegError as error:
            raise MediaError("unsupported", f"{frame.format.name} cannot be converted: {error.strerror}") from error
        pixels = rgb.to_ndarray()
        if swapped:
            pixels = pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        return Image.fromarray(np.ascontiguousarray(pixels))

    def _decode_from(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """All frames from a keyframe at or before start_s on, or from the first frame if there is none."""
        origin = self.stream.start_time or 0
        if start_s > 0 and self.stream.time_base:
            try:
                target = origin + math.floor(start_s / self.stream.time_base)
                self.container.seek(target, stream=self.stream, backward=True)
            except av.error.FFmpegError:
                self.container.seek(origin, stream=self.stream, backward=True)
            decoded = self._decode()
            first = next(decoded, None)
            self.damage = Damage()  # what a decoder says before the first whole frame after a jump is none
            if first is not None and first[0] <= start_s:
                yield first
                yield from decoded
                return
            self._reopen()
        yield from self._decode()

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        base, origin = self.stream.time_base, self.stream.start_time or 0
        step = 1 / self.facts.fps if self.facts.fps > 0 else 0.04
        latest = -step
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except EOFError:
                return
            except av.error.FFmpegError as error:
                self._note(latest + step, str(error.strerror), packets=1)
                if isinstance(error, av.error.InvalidDataError):
                    continue
                return  # an I/O error: the container gives no more
            for frame in frames:
                seconds = latest + step if frame.pts is None else float((frame.pts - origin) * base)
                latest = max(seconds, latest)
                if frame.is_corrupt:
                    self._note(seconds, "damaged frame", frames=1)
                else:
                    yield seconds, frame

    def _note(self, seconds: float, message: str, *, packets: int = 0, frames: int = 0) -> None:
        if not self.damage:
            self.damage.first_s, self.damage.message = max(seconds, 0.0), message
        self.damage.packets += packets
        self.damage.frames += frames

    def _reopen(self) -> None:
        self.container.close()
        self.container, self.stream = _open(self.path)


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Opens the first real video stream of a file.

    Raises:
        MediaError: missing, not a video in a known container, no video stream (a cover picture is none), no
        decoder.
    """
    video = Video(path, *_open(path))
    try:
        yield video
    finally:
        video.container.close()


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(axes swapped, then mirrored in x, then mirrored in y): how a stored frame becomes upright.

    From the display matrix of the container (FFmpeg's libavutil/display.h): x' = a x + c y, y' = b x + d y.
    """
    side_data: Any = frame.side_data  # its stub says that it maps from str
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5].tolist()
    swapped = abs(b) > abs(a)
    return (True, c < 0, b < 0) if swapped else (False, a < 0, d < 0)


def effective_fps(times: tuple[float, float], num_frames: int, declared: float) -> float:
    """Frames per second of `num_frames` frames between two times; one frame says nothing: what was declared."""
    if num_frames < 2 or times[1] <= times[0]:
        return declared
    measured = (num_frames - 1) / (times[1] - times[0])
    return declared if abs(measured - declared) <= _RATE_TOLERANCE * declared else measured


def _open(path: Path) -> tuple[Any, Any]:
    if not path.is_file():
        raise MediaError("missing_file", "no such file")
    # "file:" so that no part of a name is taken for a protocol.
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    with _ffmpeg_messages() as said:
        try:
            container = av.open(f"file:{path}", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError("unreadable", _explain(error, said)) from error
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            container.close()
            raise MediaError("no_decoder", "this FFmpeg has no decoder for the video stream")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            container.close()
            raise MediaError("too_large", f"{width}x{height} pixels, {MAX_PIXELS} are allowed")
        stream.codec_context.thread_count = 1
        return container, stream
    container.close()
    raise MediaError("no_video", "the file has no video stream")


@contextmanager
def _ffmpeg_messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collects what FFmpeg says; elsewhere it is silent."""
    av.logging.set_skip_repeated(False)  # what is said of one file must not depend on the file before
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as said:
            yield said
    finally:
        av.logging.set_level(None)


def _explain(error: av.error.FFmpegError | OSError, said: list[tuple[int, str, str]]) -> str:
    words = [message.strip() for _, _, message in said if message.strip()]
    return f"{error.strerror}: {words[0]}" if words else str(error.strerror)
