"""The frames of a video file are listed without decoding it: when each is shown, and where its packet lies.

    listing = list_frames(stream, decode, with_packets=True)
    listing.times.seconds            # of every frame, ascending
    listing.packets                  # None if their bytes do not lie whole in the file

A packet is recognised in the file by its own bytes, at the position that the container gives or just behind it
(blocks of Matroska and chunks of AVI have heads). MPEG-TS, MPEG-PS and Ogg cut packets up, so that none is. What the
packets give is believed if the first frames bear it out: their times, and the pixels of a few of them.
"""

import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import av
import numpy as np

from mae3d.video.clock import FrameTimes, PacketStamps, times_of_packets
from mae3d.video.container import is_strict
from mae3d.video.packets import (
    KEYFRAME,
    UNREFERENCED,
    Codec,
    PacketDecoder,
    PacketError,
    Packets,
    PacketTable,
    changes_parameters,
    is_unreferenced,
)
from mae3d.video.pictures import Pictures
from mae3d.video.stream import CLOCK_FRAMES, VideoStream

_HEAD_BYTES = 64  # that a container may put between a packet's position and its data
_COMPARED = 8  # frames whose pixels are compared
_KEYS = 2  # keyframes that are decoded by themselves; one may be damaged
_NO_KEYFRAMES = ("apng",)  # codecs whose container takes frames for keyframes that others show through
_CHANGES = ("new_extradata", "palette", "param_change")  # side data without which a packet does not decode alike

Timed = tuple[float, av.VideoFrame]


@dataclass(frozen=True)
class Listing:
    """All frames of a video file.

    Attributes:
        times: when each is shown, as `Video.frame_times` has it.
        packets: all of them, None if decoding cannot begin from ranges of bytes.
        packet: int64, of each frame; empty without packets.
        codec: None without packets.
        first: the first frame; None if none can be decoded.
    """

    times: FrameTimes
    packets: Packets | None
    packet: np.ndarray
    codec: Codec | None
    first: av.VideoFrame | None


def list_frames(stream: VideoStream, decode: Callable[[], Iterator[Timed]], *, with_packets: bool) -> Listing:
    """List the frames of a stream.

    Args:
        stream: the opened file; it is read anew.
        decode: starts decoding at the start of the file, and yields its frames.
        with_packets: find the packets, too, which reads the file twice.

    Raises:
        OSError: the disk of the file has gone.
    """
    stream.choose_clock()
    has_order = stream.has_stamps and not stream.goes_by_dts
    finder = _Finder(stream.path, stream.codec_context) if with_packets and has_order else None
    listed = _read(stream, finder) if has_order else None
    beginning: list[av.VideoFrame] = []
    seconds: list[float] = []
    for shown_s, frame in itertools.islice(decode(), CLOCK_FRAMES):
        seconds.append(shown_s)
        if len(beginning) < _COMPARED:
            beginning.append(frame)
    first = beginning[0] if beginning else None
    if listed is None or seconds != listed[0].seconds[:CLOCK_FRAMES]:
        times = FrameTimes([shown_s for shown_s, _ in decode()], [])
        return Listing(times, None, np.empty(0, np.int64), None, first)
    times, number, rank = listed
    packets = finder.packets(rank) if finder else None
    codec = _codec_of(stream) if packets else None
    if packets and codec:
        for given, keyframes in ((packets, times.keyframes), (packets.without_keyframes(), [])):
            if _decodes_alike(given, number, codec, stream.path, beginning):
                return Listing(FrameTimes(times.seconds, keyframes), given, number, codec, first)
    return Listing(times, None, np.empty(0, np.int64), None, first)


def _read(stream: VideoStream, finder: "_Finder | None") -> tuple[FrameTimes, np.ndarray, np.ndarray] | None:
    """Read all packets; return when frames are shown, the packet of each, and each packet's rank; None if unclear."""
    stamps: list[PacketStamps] = []
    is_shown: list[bool] = []
    with finder or nullcontext():
        for packet in stream.packets():
            if packet.size:
                stamps.append(PacketStamps(packet.pts, packet.dts, _is_keyframe(packet)))
                is_shown.append(not packet.is_discard)
                if finder:
                    finder.add(packet)
    times = times_of_packets(itertools.compress(stamps, is_shown), stream.clock())
    if times is None or any(stamp.pts is None for stamp in stamps):
        return None
    order = sorted(range(len(stamps)), key=lambda number: stamps[number].pts or 0)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return times, np.array([number for number in order if is_shown[number]], np.int64), rank


class _Finder:
    """A finder of packets in their file, as long as each lies there in one piece."""

    def __init__(self, path: Path, context: Any) -> None:
        self._name, self._extradata = context.name, bytes(context.extradata or b"")
        self._file = path.open("rb", buffering=0)
        self._rows: list[tuple[int, int, int, int]] = []  # offset, size, crc32, flags
        self._is_whole = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, packet: Any) -> None:
        """Look for the next packet, unless one before it was not there."""
        if not self._is_whole:
            return
        data = bytes(packet)
        at = -1
        changes = any(map(packet.has_sidedata, _CHANGES)) or changes_parameters(self._name, data, self._extradata)
        if packet.pos is not None and packet.pos >= 0 and not changes:
            at = os.pread(self._file.fileno(), len(data) + _HEAD_BYTES, packet.pos).find(data)
        self._is_whole = at >= 0
        unreferenced = is_unreferenced(self._name, data, self._extradata)
        flags = KEYFRAME * _is_keyframe(packet) + UNREFERENCED * unreferenced
        self._rows.append((packet.pos + at if self._is_whole else 0, len(data), zlib.crc32(data), flags))

    def packets(self, rank: np.ndarray) -> Packets | None:
        """Return all packets, whose ranks are given; None if one was not there."""
        if not self._is_whole:
            return None
        offset, size, crc32, flags = np.array(self._rows, np.int64).reshape(-1, 4).T
        return Packets(offset, size.astype(np.int32), crc32.astype(np.uint32), rank, flags.astype(np.uint8))


def _codec_of(stream: VideoStream) -> Codec | None:
    context = stream.codec_context
    try:
        codec = Codec(
            name=context.name,
            extradata=bytes(context.extradata or b""),
            width=context.width,
            height=context.height,
            pix_fmt=context.pix_fmt,
            tag=context.codec_tag,
            bits_per_coded_sample=context.bits_per_coded_sample,
            colorspace=int(context.colorspace),
            color_range=int(context.color_range),
            strict=is_strict(context),
        )
        codec.context()
    except (av.error.FFmpegError, ValueError, OverflowError, UnicodeError):
        return None
    return codec


def _is_keyframe(packet: Any) -> bool:
    return packet.is_keyframe and packet.stream.codec_context.name not in _NO_KEYFRAMES


def _decodes_alike(
    packets: Packets, number: np.ndarray, codec: Codec, path: Path, beginning: Sequence[av.VideoFrame]
) -> bool:
    """Return whether a decoder that is given ranges of bytes gives the first frames as the container's own does.

    The next keyframes are decoded by themselves: some refer to what comes before them all the same, and nothing comes
    of those that begin an intra refresh.
    """
    table = PacketTable((False, False, False), number.astype(np.int32), np.zeros(len(number)), packets, codec)
    decoder = PacketDecoder()
    keys = np.flatnonzero(packets.flags[number] & KEYFRAME)
    keys = keys[keys > 0][:_KEYS]
    num_lost = 0
    with path.open("rb", buffering=0) as file:
        for frames in (range(len(beginning)), *([key] for key in keys.tolist())):
            data = table.read(frames, partial(os.pread, file.fileno()))
            try:
                decoded = decoder.decode(table, frames, data)
            except PacketError:
                if frames[0] < len(beginning):
                    return False
                num_lost += 1
                continue
            pairs = zip(table.packets_of(frames).tolist(), beginning[frames[0] :], strict=False)
            if not all(_same(decoded[one], frame) for one, frame in pairs):
                return False
    return num_lost == 0 or num_lost < len(keys)


def _same(one: av.VideoFrame, other: av.VideoFrame) -> bool:
    """Return whether two frames give one picture; what fills the lines of their planes may differ."""
    if (one.format.name, one.width, one.height) != (other.format.name, other.width, other.height):
        return False
    try:
        pictures = [Pictures().rgb(frame, width=frame.width, height=frame.height) for frame in (one, other)]
    except av.error.FFmpegError:
        return False
    return np.array_equal(pictures[0], pictures[1])
