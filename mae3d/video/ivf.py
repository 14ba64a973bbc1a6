"""Frames of closed groups become one small file in memory: groups ─► IVF, cut behind the last wanted frame of each.

    data, places = window_in_ivf([(group, [2, 5]), (next_group, [0])], width=340, height=256)
    # places: [2, 5, 6], the frames of `data` that were wanted

IVF is a header of 32 bytes, then each packet behind 12 bytes: enough for DALI's video decoder to separate the packets,
and to know the codec. A GPU decodes every packet that it is given, so it is given none that no wanted frame needs.
"""

import struct
from collections.abc import Sequence

from mae3d.video.groups import GroupError, access_units, padded_side

_HEADER = struct.Struct("<4sHH4sHHIIII")  # signature, version, length, codec, width, height, rate, scale, packets, 0
_PACKET = struct.Struct("<IQ")  # size, time


def window_in_ivf(groups: Sequence[tuple[bytes, Sequence[int]]], *, width: int, height: int) -> tuple[bytes, list[int]]:
    """Return the file, and the numbers in it of the wanted frames.

    Args:
        groups: the bytes of each group, and the numbers within it of the frames that are wanted, rising.
        width: of the true picture, in pixels; the stored one is padded.
        height: likewise.

    Raises:
        GroupError: a group holds fewer frames.
    """
    packets: list[bytes] = []
    places: list[int] = []
    for group, numbers in groups:
        units = access_units(group, numbers[-1] + 1)
        if len(units) <= numbers[-1]:
            raise GroupError(f"it holds {len(units)} frames, not {numbers[-1] + 1}")
        places += [len(packets) + number for number in numbers]
        packets += units
    return ivf(packets, width=padded_side(width), height=padded_side(height)), places


def ivf(packets: Sequence[bytes], *, width: int, height: int, codec: bytes = b"H264") -> bytes:
    """Return packets of a frame each as a file; their times are their numbers.

    Args:
        packets: what each frame is decoded from.
        width: of the stored picture, in pixels.
        height: likewise.
        codec: its four letters.
    """
    parts = [_HEADER.pack(b"DKIF", 0, _HEADER.size, codec, width, height, 30, 1, len(packets), 0)]
    for number, packet in enumerate(packets):
        parts += [_PACKET.pack(len(packet), number), packet]
    return b"".join(parts)
