"""Decoded video frames become planes or JPEGs: upright, scaled, in JPEG's colours.

    encoder = FrameEncoder(quality=90)
    data = encoder.encode(frame, width=455, height=256)
    y, cb, cr = FrameScaler().scale(frame, width=455, height=256)

The planes go from the scaler to libjpeg-turbo as they are, 4:2:0, and never through RGB: that takes half the time, and
what is stored is nearer to the video (benchmarks/RESULTS.md). Whole numbers only, so that every machine makes the same
bytes.

Colours are converted by the matrix and the range that the stream names (BT.601, 709, 2020, full or limited); a stream
that names none is taken for BT.601 in limited range, which is FFmpeg's guess at any size. Pixels are taken as stored:
a pixel aspect ratio is not applied, fields are not separated, an alpha channel is dropped, HDR is not tone-mapped.
"""

from functools import cache
from typing import Any

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, VideoReformatter

from mae3d.video.errors import MediaError
from mae3d.video.orientation import Orientation, orientation, turned
from mae3d.video.pictures import Pictures, range_of, scaled_planes
from preprocess.encode.images import encode_planes

# swscale's own converters of these to 4:2:0 round halves down: of an odd size, the last row or column of chroma would
# be left unwritten. Through these planar formats they take the path of all others.
_PLANAR = {"yuyv422": "yuv422p", "uyvy422": "yuv422p", "nv24": "yuv444p", "nv42": "yuv444p"}
_BT601 = (0.299, 0.114)
# AVColorSpace ─► the weights of red and blue in luma (ITU-T H.273, table 4); all others are taken for BT.601.
_LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BITS = 8  # fixed point of the matrices
_CODES = np.arange(256)
_FULL_LUMA = np.clip(np.rint((_CODES - 16) * 255 / 219), 0, 255).astype(np.uint8).tobytes()
_FULL_CHROMA = np.clip(np.rint((_CODES - 128) * 255 / 224) + 128, 0, 255).astype(np.uint8).tobytes()

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


class FrameScaler:
    """A scaler of frames to planes of 4:2:0; one per video, because it keeps the tables of sizes and matrices."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._orientations: dict[int, Orientation] = {}

    def scale(self, frame: av.VideoFrame, *, width: int, height: int) -> Planes:
        """Return luma (height, width) and two of chroma of half that, rounded up: upright, BT.601, full range.

        Raises:
            MediaError: the scaler does not know the frame's pixels.
        """
        way = orientation(frame, self._orientations)
        planes = self._planes(frame, *((height, width) if way[0] else (width, height)))
        y, cb, cr = (turned(plane, way) for plane in _in_bt601(planes, frame.colorspace))
        return y, cb, cr

    def _planes(self, frame: av.VideoFrame, width: int, height: int) -> Planes:
        """Return luma (height, width) and two of chroma, full range; the matrix stays the frame's unless RGB."""
        kept = range_of(frame)
        full = kept == ColorRange.JPEG
        size = {"width": width, "height": height}
        try:
            if (width, height) == (frame.width, frame.height) and (width % 2 or height % 2):
                planar = _PLANAR.get(frame.format.name, frame.format.name)
                frame = scaled_planes(self._scaler, frame, **size, format_name=planar, kept=kept)
            format_name = "yuvj420p" if full else "yuv420p"
            scaled = scaled_planes(self._scaler, frame, **size, format_name=format_name, kept=kept)
        except av.error.FFmpegError as error:
            raise MediaError("unsupported", f"{frame.format.name} cannot be converted: {error.strerror}") from error
        y, cb, cr = map(plane_rows, scaled.planes)
        return (y, cb, cr) if full else (_mapped(y, _FULL_LUMA), _mapped(cb, _FULL_CHROMA), _mapped(cr, _FULL_CHROMA))


class FrameEncoder:
    """An encoder of frames as JPEG, 4:2:0; one per video."""

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._scaler = FrameScaler()

    def encode(self, frame: av.VideoFrame, *, width: int, height: int) -> bytes:
        """Encode the frame as an upright JPEG of the given size; errors as `FrameScaler.scale`."""
        return encode_planes(*self._scaler.scale(frame, width=width, height=height), quality=self._quality)


class LevelReader:
    """A reader of the levels of frames, grey or RGB, of 8 or 16 bits; one per video."""

    def __init__(self) -> None:
        self._pictures, self._converter = Pictures(), VideoReformatter()
        self._orientations: dict[int, Orientation] = {}

    def levels(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """Return the levels of an upright frame, (H, W, C) uint8 or uint16, as `kind_of_video` says.

        Colours of 8 bits are scaled to (width, height); all others keep the frame's size.

        Raises:
            MediaError: the scaler does not know the frame's pixels.
        """
        channels, bits = kind_of_video(frame.format)
        way = orientation(frame, self._orientations)
        try:
            if (channels, bits) == (3, 8):
                return self._pictures.rgb(frame, width=size[0], height=size[1], way=way)
            name = {1: "gray", 3: "rgb24"} if bits == 8 else {1: "gray16le", 3: "rgb48le"}
            if frame.format.name != name[channels]:
                kept = range_of(frame)
                frame = scaled_planes(
                    self._converter,
                    frame,
                    width=frame.width,
                    height=frame.height,
                    format_name=name[channels],
                    kept=kept,
                )
        except av.error.FFmpegError as error:
            raise MediaError("unsupported", f"{frame.format.name} cannot be converted: {error.strerror}") from error
        return turned(frame.to_ndarray().reshape(frame.height, frame.width, channels), way)


def kind_of_video(pixels: av.VideoFormat) -> tuple[int, int]:
    """Return the channels and bits that hold frames of a pixel format: grey, RGB of more than 12 bits, or 8-bit RGB."""
    depth = max((one.bits for one in pixels.components), default=8)
    if len(pixels.components) == 1 and not pixels.has_palette:
        return 1, 8 if depth <= 8 else 16
    return 3, 16 if pixels.is_rgb and depth > 12 else 8


def picture_planes(scaler: FrameScaler, picture: np.ndarray) -> Planes:
    """Return the planes of an upright picture, (height, width, 3) uint8 RGB, in its size."""
    height, width = picture.shape[:2]
    return scaler.scale(av.VideoFrame.from_ndarray(picture, "rgb24"), width=width, height=height)


def plane_rows(plane: VideoPlane) -> np.ndarray:
    """Return a plane, (height, width), its first row on top: a view.

    Its lines are longer than the picture is wide, and what fills them is undefined. Some decoders (AMV's) write the
    last line first, and say so by a negative length.
    """
    lines: Any = plane  # its stub does not say that it is a buffer
    rows = np.frombuffer(lines, np.uint8).reshape(plane.height, abs(plane.line_size))[:, : plane.width]
    return rows if plane.line_size > 0 else rows[::-1]


def _mapped(plane: np.ndarray, table: bytes) -> np.ndarray:
    return np.frombuffer(plane.tobytes().translate(table), np.uint8).reshape(plane.shape)


def _in_bt601(planes: Planes, colorspace: int) -> Planes:
    """Convert colours to BT.601's matrix, which is JPEG's (JFIF 1.02).

    swscale would go through RGB for it, at several times the cost.
    """
    if colorspace not in _LUMA:
        return planes
    (yb, yr), (bb, br), (rb, rr) = _to_add(colorspace)
    luma, b, r = planes[0].astype(np.int16), *(plane.astype(np.int16) - 128 for plane in planes[1:])
    half = 1 << _BITS - 1
    change = yb * b + yr * r + half >> _BITS
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = luma[row::2, column::2]
        part += change[: part.shape[0], : part.shape[1]]
    blue, red = b + (bb * b + br * r + half >> _BITS), r + (rb * b + rr * r + half >> _BITS)
    return _clipped(luma), _clipped(blue + 128), _clipped(red + 128)


@cache
def _to_add(colorspace: int) -> list[list[int]]:
    """Return the blue and red difference to add to luma, blue and red difference: (3, 2), in fixed point.

    Luma counts once in luma and not at all in chroma, for any weights.
    """
    matrix = np.linalg.inv(_to_rgb(_BT601)) @ _to_rgb(_LUMA[colorspace]) - np.eye(3)
    rows: list[list[int]] = np.rint((1 << _BITS) * matrix[:, 1:]).astype(int).tolist()
    return rows


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _to_rgb(weights: tuple[float, float]) -> np.ndarray:
    """Return the (3, 3) matrix from luma and two chroma differences to RGB (ITU-T H.273, section 8.3)."""
    kr, kb = weights
    kg = 1 - kr - kb
    blue, red = 2 * (1 - kb), 2 * (1 - kr)
    return np.array([[1, 0, red], [1, -kb * blue / kg, -kr * red / kg], [1, blue, 0]])
