"""Groups of H.264 frames are decoded: the bytes of a closed group ─► its frames, or those of them that are wanted.

    decoder = GroupDecoder()
    frames = decoder.decode(group, [0, 4])      # av.VideoFrame each: the first and the fifth of the group
    decoder.rgb(frames[0], out)                 # out: (height, width, 3) uint8, the picture without its padding

A group is what `preprocess.encode.group_encoder` has written: Annex B, one slice a frame, an IDR picture first, then
P frames that refer to nothing outside. So the k-th slice is the k-th frame, and a frame costs those before it in its
group only. A decoder belongs to one thread.
"""

from collections.abc import Sequence

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from mae3d.video.container import STRICT
from mae3d.video.packets import padded_packet
from mae3d.video.pictures import Pictures

MULTIPLE = 16  # of a stored picture's sides, in pixels: a macroblock
_START = b"\0\0\1"
_SLICES = (1, 5)  # nal_unit_type of a slice, of a slice of an IDR picture (ITU-T H.264, table 7-1)


class GroupError(ValueError):
    """A group that does not decode; the message says why."""


class GroupDecoder:
    """A decoder that is used for one group after another: opening one costs as much as some frames."""

    def __init__(self) -> None:
        context = av.CodecContext.create("h264", "r")
        assert isinstance(context, VideoCodecContext)
        self._context = context
        self._context.thread_count = 1
        self._context.options = {"err_detect": STRICT}
        self._pictures = Pictures()

    def decode(self, group: bytes, numbers: Sequence[int]) -> list[av.VideoFrame]:
        """Return the wanted frames of a group; what comes after the last of them is not decoded.

        Args:
            group: its bytes.
            numbers: of frames within the group, rising.

        Raises:
            GroupError: the bytes do not decode, or hold fewer frames.
        """
        self._context.flush_buffers()
        frames: list[av.VideoFrame] = []
        try:
            for packet in access_units(group, numbers[-1] + 1):
                frames += self._context.decode(padded_packet(packet))
            if len(frames) <= numbers[-1]:
                frames += self._context.decode(None)
        except av.error.FFmpegError as error:
            raise GroupError(f"it does not decode ({error.strerror})") from error
        if len(frames) <= numbers[-1]:
            raise GroupError(f"it holds {len(frames)} frames, not {numbers[-1] + 1}")
        return [frames[number] for number in numbers]

    def rgb(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write a frame's upper left part as RGB into `out`, (height, width, 3) uint8, no larger than the frame.

        Into (height, width, 1) goes the luma.
        """
        height, width, channels = out.shape
        picture = self._pictures.rgb(frame, width=frame.width, height=frame.height, channels=channels)
        out[:] = picture[:height, :width]


def access_units(group: bytes, count: int) -> list[bytes]:
    """Return the first `count` frames of a group as packets, each with the parameter sets before it."""
    units: list[bytes] = []
    begin, after_slice = 0, False
    at = group.find(_START)
    while at >= 0 and len(units) < count:
        if after_slice:
            end = at - 1 if at and not group[at - 1] else at  # a start code may have a zero more
            units.append(group[begin:end])
            begin, after_slice = end, False
        after_slice = at + 3 < len(group) and group[at + 3] & 31 in _SLICES
        at = group.find(_START, at + 3)
    if after_slice and len(units) < count:
        units.append(group[begin:])
    return units


def padded_side(side: int) -> int:
    """Return the side of the stored picture for one of the true picture, in pixels."""
    return side + -side % MULTIPLE
