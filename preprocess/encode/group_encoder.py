"""Frames of a sample become closed groups of H.264, each decoded again and compared: planes in, bytes out.

    encoder = GroupEncoder(352, 256, settings=settings, sink=tar.add)
    encoder.add(planes)            # (height, width) and two of half that, full range, as `FrameScaler` gives them
    encoder.finish()

The bytes depend on the frames, the settings and the encoder's version (`codec_version`) only: x264 writes the same on
every processor with `cpu-independent`, and with one thread. Its clock is 1/30 s a frame, at any stored rate: x264
weighs `crf` by how long a frame is shown. Frames are padded to multiples of 16 by repeating their edge, so that no
decoder has to crop; colours are BT.601 in limited range, and the stream says so.
"""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace

from mae3d.video.errors import MediaError
from mae3d.video.groups import MULTIPLE, GroupDecoder, GroupError, padded_side
from preprocess.encode.video_frames import Planes, plane_rows
from preprocess.plan.settings import Settings

_CLOCK = Fraction(1, 30)
_FIXED = "scenecut=0:bframes=0:open-gop=0:cpu-independent=1:threads=1:sliced-threads=0:slices=1"
_PEAK = 219  # of luma in limited range
_CODES = np.arange(256)
_LIMITED_LUMA = np.rint(_CODES * _PEAK / 255 + 16).astype(np.uint8)
_LIMITED_CHROMA = np.rint((_CODES - 128) * 224 / 255 + 128).astype(np.uint8)


class GroupEncoder:
    """The encoder of one sample's frames."""

    def __init__(self, width: int, height: int, *, settings: Settings, sink: Callable[[bytes], None]) -> None:
        """Open x264.

        Args:
            width: of the frames.
            height: of the frames.
            settings: `crf`, `preset`, `group` and `min_psnr`.
            sink: takes the bytes of every group.
        """
        self._settings, self._sink = settings, sink
        self._context = _opened(padded_side(width), padded_side(height), settings)
        self._decoder = GroupDecoder()
        self._group: list[bytes] = []
        self._waiting: deque[np.ndarray] = deque()  # luma of the frames that have not come out
        self._size = height, width
        self._num_frames = self._num_stored = 0

    def add(self, planes: Planes) -> None:
        """Encode the next frame.

        Raises:
            MediaError: an earlier frame does not come back as it should.
        """
        frame = av.VideoFrame(self._context.width, self._context.height, "yuv420p")
        tables = (_LIMITED_LUMA, _LIMITED_CHROMA, _LIMITED_CHROMA)
        for plane, source, table in zip(frame.planes, planes, tables, strict=True):
            rows = plane_rows(plane)
            missing = [(0, have - given) for have, given in zip(rows.shape, source.shape, strict=True)]
            rows[:] = np.pad(table[source], missing, "edge")
        frame.pts = self._num_frames
        self._num_frames += 1
        self._waiting.append(plane_rows(frame.planes[0])[: self._size[0], : self._size[1]].copy())
        self._take(self._context.encode(frame))

    def finish(self) -> None:
        """Encode what x264 has held back, and the last group.

        Raises:
            MediaError: frames do not come back as they should.
        """
        self._take(self._context.encode(None))
        self._put()
        if self._num_stored != self._num_frames:
            raise MediaError("quality", f"{self._num_stored} of {self._num_frames} frames came out of the encoder")

    def _take(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if packet.is_keyframe:
                self._put()
            self._group.append(bytes(packet))

    def _put(self) -> None:
        """Hand the group that is complete on, if its frames come back."""
        if not self._group:
            return
        group, count = b"".join(self._group), len(self._group)
        first, self._group = self._num_stored, []
        try:
            decoded = self._decoder.decode(group, range(count))
        except GroupError as error:
            raise MediaError("quality", f"a group that was encoded cannot be used: {error}", frame=first) from error
        errors = [_squared_error(plane_rows(frame.planes[0]), self._waiting.popleft()) for frame in decoded]
        psnr = 10 * np.log10(_PEAK**2 / max(float(np.mean(errors)), 1e-10))
        if psnr < self._settings.min_psnr:
            message = f"{psnr:.1f} dB after encoding, --min-psnr {self._settings.min_psnr:g}: lower --crf, or allow it"
            raise MediaError("quality", message, frame=first)
        self._num_stored += count
        self._sink(group)


@cache
def codec_version() -> str:
    """Return the encoder's name and version as its streams state it; two versions write different bytes.

    Raises:
        ValueError: this FFmpeg has no encoder of H.264.
    """
    data: list[bytes] = []
    encoder = GroupEncoder(MULTIPLE, MULTIPLE, settings=Settings(layout="video", fps=1.0), sink=data.append)
    half = np.full((MULTIPLE // 2, MULTIPLE // 2), 128, np.uint8)
    encoder.add((np.zeros((MULTIPLE, MULTIPLE), np.uint8), half, half))
    encoder.finish()
    begin = data[0].index(b"x264 - core")
    return data[0][begin : data[0].index(b" - H.264", begin)].decode("ascii")


def _opened(width: int, height: int, settings: Settings) -> VideoCodecContext:
    try:
        context = av.CodecContext.create("libx264", "w")
    except av.error.FFmpegError as error:
        raise ValueError(_NO_ENCODER) from error
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = _CLOCK, 1 / _CLOCK
    context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
    context.thread_count = 1
    context.options = {
        "crf": f"{settings.crf:g}",
        "preset": settings.preset,
        "tune": "psnr,fastdecode",
        "x264-params": f"keyint={settings.group}:min-keyint={settings.group}:{_FIXED}",
    }
    return context


_NO_ENCODER = (
    "--layout video needs x264, and this installation's FFmpeg has none: install PyAV's wheel (`pip install av`), "
    "which brings it, or store JPEGs (--layout jpeg; --quality 75 makes them a third smaller)"
)


def _squared_error(rows: np.ndarray, source: np.ndarray) -> float:
    """Return the mean squared difference of luma, in levels of limited range."""
    difference = rows[: source.shape[0], : source.shape[1]].astype(np.int16) - source
    return float(np.mean(np.square(difference, dtype=np.int32)))
