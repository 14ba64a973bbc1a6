"""Decoded frames become pictures: upright RGB of any size, in the colours that the stream names.

    pictures = Pictures()
    pictures.rgb(frame, width=455, height=256, way=video.orientation(frame))    # (256, 455, 3) uint8

Colours are read as `preprocess.encode.video_frames` reads them: a stream that names no matrix is taken for BT.601, one
that names no range for limited range. By swscale's fast converter, as all players and loaders of video use it: a level
too dark in the mean, at a fourteenth of the cost of the one that rounds. It cannot scale: 4:2:0 of 8 bits is
scaled before it, in planes and as builds scale it, at a third of the cost of swscale's way from planes to scaled RGB.
"""

from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from mae3d.video.orientation import Orientation, turned

_UPRIGHT: Orientation = (False, False, False)
# AVColorSpace ─► the scaler's matrices (ITU-T H.273, table 4); all others are taken for BT.601.
_MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 7: Colorspace.SMPTE240M, 9: Colorspace.BT2020}
_MATRICES[10] = Colorspace.BT2020
_IN_PLANES = ("yuv420p", "yuvj420p")  # formats that are scaled before they are converted
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # of planes


def range_of(frame: av.VideoFrame) -> ColorRange:
    """Return the range of a frame's codes: limited, unless it says otherwise."""
    is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if is_full else ColorRange.MPEG


def scaled_planes(
    scaler: VideoReformatter, frame: av.VideoFrame, *, width: int, height: int, format_name: str, kept: ColorRange
) -> av.VideoFrame:
    """Return a frame in another size or arrangement of planes, its codes those of the same matrix and range.

    Matrix and range are alike on both sides: swscale converts the one slowly and the other with an offset.
    """
    return scaler.reformat(
        frame,
        width,
        height,
        format_name,
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,
        src_color_range=kept,
        dst_color_range=kept,
        interpolation=SCALING,
        threads=1,
    )


class Pictures:
    """A converter; one per thread, because it keeps the tables of sizes and matrices."""

    def __init__(self) -> None:
        self._scaler, self._converter = VideoReformatter(), VideoReformatter()

    def rgb(
        self, frame: av.VideoFrame, *, width: int, height: int, way: Orientation = _UPRIGHT, channels: int = 3
    ) -> np.ndarray:
        """Return the upright picture, (height, width, 3) uint8, valid until the next call.

        With one channel it is the luma alone, (height, width, 1), in full range.

        Args:
            frame: a decoded frame.
            width: of the upright picture, in pixels.
            height: of the upright picture, in pixels.
            way: how the frame becomes upright.
            channels: 3, or 1 for luma.

        Raises:
            av.error.FFmpegError: the scaler does not know the frame's pixels.
        """
        stored_width, stored_height = (height, width) if way[0] else (width, height)
        kept = range_of(frame)
        matrix = _MATRICES.get(int(frame.colorspace), Colorspace.ITU601)
        if (stored_width, stored_height) != (frame.width, frame.height) and frame.format.name in _IN_PLANES:
            size = {"width": stored_width, "height": stored_height}
            frame = scaled_planes(self._scaler, frame, **size, format_name=frame.format.name, kept=kept)
        self._converted = self._converter.reformat(
            frame,
            stored_width,
            stored_height,
            {1: "gray", 3: "rgb24"}[channels],
            src_colorspace=matrix,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=kept,
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        lines: Any = self._converted.planes[0]  # its stub does not say that it is a buffer
        rows = np.frombuffer(lines, np.uint8).reshape(stored_height, -1)[:, : channels * stored_width]
        return turned(rows.reshape(stored_height, stored_width, channels), way)
