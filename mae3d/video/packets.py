"""The packets of a piece of a video file: where their bytes lie in it, and which of them some of its frames need.

    table = PacketTable.from_bytes(data)
    needed = table.needed([0, 4, 8])              # runs of packets, each from a keyframe on
    decoder = PacketDecoder()
    frames = decoder.decode(table, [0, 4, 8], {number: bytes_of(number) for run in needed for number in run})

A frame is decoded from the last keyframe that is shown and stored before it, as every player does after a jump; what
nothing refers to and is not requested is not decoded. Groups are as long as the file has them. A decoder belongs to one
thread.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from mae3d.video.container import STRICT
from mae3d.video.orientation import Orientation

KEYFRAME, UNREFERENCED = 1, 2  # flags of a packet
_ARRAYS = (("offset", "<i8"), ("size", "<i4"), ("crc32", "<u4"), ("rank", "<i4"), ("flags", "u1"))
_CONTEXTS = 8  # that a decoder keeps: files of one archive often share their parameters
_START = b"\0\0\1"
_LENGTH_AT = {"h264": 4, "hevc": 21}  # byte of the extradata that says how long the lengths of units are
_PARAMETER_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}  # nal_unit_type of those that pictures refer to
_LONGEST_SET = 1 << 10
_SLICES, _IDR = (1, 2, 3, 4), 5  # nal_unit_type of what only a P or B picture has, and of an IDR picture (H.264)


class PacketError(ValueError):
    """Packets that do not decode to the frames that they held; the message says why."""


@dataclass(frozen=True)
class Codec:
    """The parameters that a decoder must have before the first packet."""

    name: str
    extradata: bytes
    width: int
    height: int
    pix_fmt: str | None
    tag: str
    bits_per_coded_sample: int
    colorspace: int
    color_range: int
    strict: bool  # frames stand alone, and damaged ones are refused

    def context(self) -> VideoCodecContext:
        """Return an opened decoder of one thread."""
        context = av.CodecContext.create(self.name, "r")
        assert isinstance(context, VideoCodecContext)
        context.thread_count = 1
        context.extradata = self.extradata or None
        context.width, context.height = self.width, self.height
        if self.pix_fmt:
            context.pix_fmt = self.pix_fmt
        context.codec_tag = self.tag
        context.bits_per_coded_sample = self.bits_per_coded_sample
        context.colorspace, context.color_range = self.colorspace, self.color_range
        if self.strict:
            context.options = {"err_detect": STRICT}
        return context


@dataclass(frozen=True)
class Packets:
    """Packets in the order in which they are decoded: arrays of one length."""

    offset: np.ndarray  # int64, of the data in the file
    size: np.ndarray  # int32, bytes
    crc32: np.ndarray  # uint32
    rank: np.ndarray  # int32, place in the order in which they are shown
    flags: np.ndarray  # uint8, KEYFRAME and UNREFERENCED

    def __len__(self) -> int:
        return len(self.size)

    @classmethod
    def none(cls) -> Self:
        """Return no packets."""
        return cls(*(np.empty(0, kind) for _, kind in _ARRAYS))

    def cut(self, start: int, stop: int) -> "Packets":
        """Return packets start ... stop."""
        return Packets(*(getattr(self, name)[start:stop] for name, _ in _ARRAYS))

    def without_keyframes(self) -> "Packets":
        """Return the same packets for decoding that can begin at the first of them only."""
        return replace(self, flags=self.flags & ~np.uint8(KEYFRAME))

    def starts_of(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return where decoding begins for the frame of each packet, int64: 0 if no keyframe comes before it."""
        number = np.asarray(numbers, np.int64)
        keys = np.append(0, np.flatnonzero(self.flags & KEYFRAME))
        at = np.searchsorted(keys, number, side="right") - 1
        while np.any(shown_later := (at > 0) & (self.rank[keys[at]] > self.rank[number])):
            at -= shown_later
        return keys[at]

    def needed(self, requested: Iterable[int]) -> list[np.ndarray]:
        """Return the packets that the frames of some packets need, as runs that are decoded one by one.

        Args:
            requested: numbers of packets.

        Returns:
            int64 arrays, rising; what is needed for two sets together is the union of what each needs.
        """
        numbers = sorted(set(requested))
        runs: list[list[int]] = []
        for start, stop in sorted(
            zip(self.starts_of(numbers).tolist(), [number + 1 for number in numbers], strict=True)
        ):
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(runs[-1][1], stop)
            else:
                runs.append([start, stop])
        is_free = (self.flags & UNREFERENCED).astype(bool)
        is_free[numbers] = False
        return [start + np.flatnonzero(~is_free[start:stop]) for start, stop in runs]


@dataclass(frozen=True)
class PacketTable:
    """A sample that lies in a video file: its frames, and the packets that they are decoded from.

    If the bytes of the packets do not lie whole in the file, as in MPEG-TS, there are none of them, and the frames are
    found in the file by their times.
    """

    way: Orientation  # how a frame becomes upright
    frame: np.ndarray  # int32 (F,), packet of each stored frame; empty without packets
    seconds: np.ndarray  # float64 (F,), time of each stored frame in the file
    packets: Packets
    codec: Codec | None

    def __len__(self) -> int:
        return len(self.seconds)

    def packets_of(self, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the packets of these stored frames, int64, in their order."""
        return self.frame[np.asarray(frames, np.int64)].astype(np.int64)

    def needed(self, frames: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Return the packets that these stored frames need, as `Packets.needed`."""
        return self.packets.needed(self.packets_of(frames).tolist())

    def needed_at_all(self, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the packets that these stored frames need, int64, rising; none if there are no packets."""
        runs = self.needed(frames) if self.codec else []
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def read(self, frames: Sequence[int] | np.ndarray, read: Callable[[int, int], bytes]) -> dict[int, bytes]:
        """Return the packets that these stored frames need, by number; `read` takes size and offset in the file."""
        size, offset = self.packets.size, self.packets.offset
        return {one: read(int(size[one]), int(offset[one])) for one in self.needed_at_all(frames).tolist()}

    def to_bytes(self) -> bytes:
        """Return a line of JSON and the arrays behind it, little-endian."""
        codec = self.codec and {**asdict(self.codec), "extradata": self.codec.extradata.hex()}
        counts = {"frame": len(self.frame), "seconds": len(self.seconds), "packets": len(self.packets)}
        head = json.dumps({**counts, "way": self.way, "codec": codec}).encode() + b"\n"
        arrays = [self.frame.astype("<i4"), self.seconds.astype("<f8")]
        arrays += [getattr(self.packets, name).astype(kind) for name, kind in _ARRAYS]
        return head + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, buffer: bytes | memoryview) -> Self:
        """Return the table that `to_bytes` wrote; its arrays are views of the bytes.

        Raises:
            ValueError: it is none.
        """
        data = bytes(buffer)
        end = data.find(b"\n") + 1
        head = json.loads(data[:end])
        kinds = [("<i4", head["frame"]), ("<f8", head["seconds"]), *((kind, head["packets"]) for _, kind in _ARRAYS)]
        arrays: list[np.ndarray] = []
        for kind, count in kinds:
            arrays.append(np.frombuffer(data, kind, count, end))
            end += arrays[-1].nbytes
        codec: dict[str, Any] | None = head["codec"]
        known = codec and Codec(**{**codec, "extradata": bytes.fromhex(codec["extradata"])})
        swapped, flip_x, flip_y = head["way"]
        return cls((swapped, flip_x, flip_y), arrays[0], arrays[1], Packets(*arrays[2:]), known or None)


class PacketDecoder:
    """A decoder of packets of any file; the contexts of the last few kinds are kept open."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[Codec, VideoCodecContext] = OrderedDict()

    def decode(
        self, table: PacketTable, frames: Sequence[int] | np.ndarray, data: Mapping[int, bytes]
    ) -> dict[int, av.VideoFrame]:
        """Decode stored frames.

        Args:
            table: of the sample.
            frames: numbers of stored frames, in any order.
            data: the bytes of all packets that they need, by number.

        Returns:
            The frames by the numbers of their packets (`PacketTable.packets_of`).

        Raises:
            PacketError: a packet does not decode, a frame is damaged, or one is missing.
        """
        assert table.codec is not None
        context = self._context(table.codec)
        rank = table.packets.rank
        requested = {int(rank[number]): number for number in table.packets_of(frames).tolist()}
        decoded: dict[int, av.VideoFrame] = {}
        try:
            for run in table.needed(frames):
                for frame in _decoded(context, run.tolist(), table.packets, data):
                    if frame.is_corrupt:  # what comes after may show traces of it
                        raise PacketError("a frame before it, or itself, is damaged")
                    number = requested.get(-1 if frame.pts is None else frame.pts)
                    if number is not None:
                        decoded[number] = frame
        except (av.error.FFmpegError, EOFError) as error:
            del self._contexts[table.codec]
            raise PacketError(f"it does not decode ({getattr(error, 'strerror', None) or error})") from error
        if len(decoded) < len(requested):
            raise PacketError(
                f"{len(requested) - len(decoded)} of {len(requested)} frames do not come out of the decoder whole"
            )
        return decoded

    def _context(self, codec: Codec) -> VideoCodecContext:
        context = self._contexts.pop(codec, None) or codec.context()
        self._contexts[codec] = context
        if len(self._contexts) > _CONTEXTS:
            self._contexts.popitem(last=False)
        return context


def _decoded(
    context: VideoCodecContext, run: Sequence[int], packets: Packets, data: Mapping[int, bytes]
) -> Iterable[av.VideoFrame]:
    """Yield the frames of a run, their rank as pts; the decoder remembers nothing of what came before."""
    context.flush_buffers()
    for number in run:
        packet = padded_packet(data[number])
        packet.pts, packet.dts = int(packets.rank[number]), number
        packet.is_keyframe = bool(packets.flags[number] & KEYFRAME)  # PNG's decoder adds all others to the one before
        yield from context.decode(packet)
    yield from context.decode(None)


def padded_packet(data: bytes) -> av.Packet:
    """Return a packet with zeros behind its data: decoders read up to 64 bytes farther (AV_INPUT_BUFFER_PADDING_SIZE).

    `av.Packet(data)` would have them read the memory behind it: MPEG-4 frames then come out as damaged now and then.
    """
    packet = av.Packet(len(data))
    packet.update(data)
    return packet


def is_unreferenced(codec_name: str, data: bytes, extradata: bytes) -> bool:
    """Return whether nothing refers to the picture in a packet: known of H.264 only (nal_ref_idc, ITU-T H.264 7.4.1).

    Args:
        codec_name: FFmpeg's name of the codec.
        data: the packet.
        extradata: of the stream: it says whether units have lengths before them (ISO/IEC 14496-15), or start codes.
    """
    if codec_name != "h264" or extradata[:1] != b"\1":
        return False
    has_slice = False
    for unit in _units(data, extradata, _LENGTH_AT["h264"]):
        if unit[0] & 31 == _IDR or (unit[0] & 31 in _SLICES and unit[0] >> 5 & 3):
            return False
        has_slice |= unit[0] & 31 in _SLICES
    return has_slice


def changes_parameters(codec_name: str, data: bytes, extradata: bytes) -> bool:
    """Return whether a packet of H.264 or HEVC has parameter sets that are not the stream's; arguments as before.

    A decoder keeps them: packets that were decoded before would then not decode alike.
    """
    if codec_name not in _LENGTH_AT:
        return False
    for unit in _units(data, extradata, _LENGTH_AT[codec_name]):
        kind = unit[0] & 31 if codec_name == "h264" else unit[0] >> 1 & 63
        if kind in _PARAMETER_SETS[codec_name] and unit.rstrip(b"\0") not in extradata:
            return True
    return False


def _units(data: bytes, extradata: bytes, length_at: int) -> Iterator[bytes]:
    """Yield the first bytes of each unit of a packet, of short ones all: parameter sets are short."""
    if extradata[:1] == b"\1" and len(extradata) > length_at:
        at, length_bytes = 0, 1 + (extradata[length_at] & 3)
        while at + length_bytes < len(data):
            length = int.from_bytes(data[at : at + length_bytes], "big")
            at += length_bytes
            if length:
                yield data[at : at + min(length, _LONGEST_SET)]
            at += length
        return
    at = data.find(_START)
    while 0 <= at < len(data) - len(_START):
        stop = data.find(_START, at + len(_START))
        yield data[at + len(_START) : stop if stop >= 0 else len(data)][:_LONGEST_SET]
        at = stop
