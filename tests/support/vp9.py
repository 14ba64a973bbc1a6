"""DALI decodes no H.264 without a GPU: windows of groups as VP9 instead, so that its video graph can run on the CPU.

monkeypatch.setattr("pipelines.decoding.packing.window_in_ivf", vp9.window_in_ivf)
"""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from mae3d.video.groups import GroupDecoder, access_units
from mae3d.video.ivf import ivf


def window_in_ivf(groups: Sequence[tuple[bytes, Sequence[int]]], *, width: int, height: int) -> tuple[bytes, list[int]]:
    """As mae3d.video.ivf's, with every packet decoded, and encoded again as VP9; the pictures stay padded."""
    decoder = GroupDecoder()
    frames: list[av.VideoFrame] = []
    places: list[int] = []
    for group, numbers in groups:
        places += [len(frames) + number for number in numbers]
        frames += decoder.decode(group, range(numbers[-1] + 1))
        assert len(access_units(group, numbers[-1] + 1)) == numbers[-1] + 1
    return video_of(frames), places


def video_of(frames: Sequence[av.VideoFrame]) -> bytes:
    """The frames as VP9 in IVF, one packet each, almost without loss."""
    context = av.CodecContext.create("libvpx-vp9", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    context.time_base, context.thread_count = Fraction(1, 30), 1
    context.options = {
        "lag-in-frames": "0",
        "auto-alt-ref": "0",
        "lossless": "1",
        "deadline": "realtime",
        "cpu-used": "8",
    }
    packets = []
    for number, frame in enumerate(frames):
        frame.pts = number
        packets += [bytes(packet) for packet in context.encode(frame)]
    packets += [bytes(packet) for packet in context.encode(None)]
    assert len(packets) == len(frames)
    return ivf(packets, width=context.width, height=context.height, codec=b"VP90")


def frame_of(pixels: np.ndarray) -> av.VideoFrame:
    """An RGB picture as a frame that can be encoded."""
    return av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
