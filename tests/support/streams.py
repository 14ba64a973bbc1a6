"""Videos of many codecs, whole decodes of them, and files that lie about their packets.

path = make_coded(tmp_path / "a.mp4", "libx264", {"x264-params": "open-gop=1"})
table, whole = table_of(path), pictures_of(path)
decoded = decode_window(PacketDecoder(), table, path, [3, 5, 7])      # pictures as `whole` has them
"""

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from mae3d.video.packets import PacketDecoder, PacketTable
from mae3d.video.pictures import Pictures
from mae3d.video.reader import open_video
from tests.support.media import numbered_image

Boxes = list[tuple[bytes, Any]]  # the children of a container box, or bytes

_PICTURES = Pictures()
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def make_coded(
    path: Path,
    codec: str,
    options: Mapping[str, str] | None = None,
    *,
    count: int = 40,
    size: tuple[int, int] = (64, 48),
    pixel_format: str = "yuv420p",
    first: int = 0,
    start: int = 0,
) -> Path:
    """`count` numbered frames at 25 per second from `first` on, keyframes 12 apart at most, stamps from `start` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pixel_format, 12
        stream.bit_rate = 1_000_000
        for index in range(count):
            frame = av.VideoFrame.from_image(numbered_image(first + index, size))
            frame.pts = start + index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def picture(frame: av.VideoFrame) -> np.ndarray:
    """A frame's pixels, RGB."""
    return _PICTURES.rgb(frame, width=frame.width, height=frame.height).copy()


def shown_by(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """The times and the pictures of the frames of a file, decoded in turn from its start."""
    with open_video(path) as video:
        seconds, pictures = zip(*((seconds, picture(frame)) for seconds, frame in video.frames()), strict=True)
    return list(seconds), list(pictures)


def pictures_of(path: Path) -> list[np.ndarray]:
    """The pictures of the frames of a file, decoded in turn from its start."""
    return shown_by(path)[1]


def table_of(path: Path) -> PacketTable:
    """The table of all frames of a file whose packets lie whole in it, as it is written and read."""
    with open_video(path) as video:
        listing = video.listing()
    assert listing.packets is not None, "it lists no packets"
    way = (False, False, False)
    seconds = np.array(listing.times.seconds)
    table = PacketTable(way, listing.packet.astype(np.int32), seconds, listing.packets, listing.codec)
    return PacketTable.from_bytes(table.to_bytes())


def bytes_of(table: PacketTable, path: Path, numbers: Sequence[int] | np.ndarray) -> dict[int, bytes]:
    """The packets with these numbers, from the file."""
    data, packets = path.read_bytes(), table.packets
    return {int(one): data[packets.offset[one] : packets.offset[one] + packets.size[one]] for one in numbers}


def decode_window(decoder: PacketDecoder, table: PacketTable, path: Path, frames: Sequence[int]) -> list[np.ndarray]:
    """The pictures of stored frames, from ranges of bytes."""
    decoded = decoder.decode(table, frames, bytes_of(table, path, table.needed_at_all(frames)))
    return [picture(decoded[packet]) for packet in table.packets_of(frames).tolist()]


def windows(count: int, number: int, *, seed: int = 0) -> Iterator[list[int]]:
    """Yield `number` windows of up to 8 frames of a video of `count`: strides 1 to 4, the last frame repeated."""
    rng = random.Random(seed)
    for _ in range(number):
        start, stride, length = rng.randrange(count), rng.randint(1, 4), rng.randint(1, 8)
        yield [min(start + stride * k, count - 1) for k in range(length)]


def join_packets(parts: Sequence[Path], path: Path) -> Path:
    """The packets of videos of 25 frames per second one behind the other, with the parameters of the first."""
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(first.streams.video[0])
        base = 0
        for part in parts:
            with av.open(str(part)) as read:
                packets = [packet for packet in read.demux(video=0) if packet.size]
                step = round(1 / (25 * packets[0].time_base))
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + base, packet.dts + base
                    packet.stream = stream
                base += len(packets) * step
                for packet in packets:
                    written.mux(packet)
    return path


def boxes(data: bytes) -> Boxes:
    """The boxes of an MP4 file, nested as far as the tables of samples."""
    found: Boxes = []
    at = 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + size]
        found.append((kind, boxes(body) if kind in _CONTAINERS else body))
        at += size
    return found


def packed(tree: Boxes) -> bytes:
    """The bytes of boxes."""
    parts = [(kind, packed(body) if isinstance(body, list) else body) for kind, body in tree]
    return b"".join(struct.pack(">I", 8 + len(body)) + kind + body for kind, body in parts)


def sample_tables(tree: Boxes) -> Boxes:
    """The boxes of the tables of the first track."""
    inner = tree
    for kind in _CONTAINERS:
        inner = next(body for name, body in inner if name == kind)
    return inner


def discard_frames(path: Path, count: int) -> Path:
    """Have the edit list of an MP4 at 25 frames per second begin `count` frames later."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    assert data[at] == 0, "a version 0 box"
    scale = int.from_bytes(data[(clock := data.index(b"mdhd") + 16) : clock + 4])
    media_time = int.from_bytes(data[at + 12 : at + 16]) + count * scale // 25
    data[at + 12 : at + 16] = media_time.to_bytes(4)
    path.write_bytes(data)
    return path


def without_sync_samples(path: Path) -> Path:
    """Drop the table of keyframes of an MP4: each of its frames passes for one then (ISO/IEC 14496-12, 8.6.2)."""
    tree = boxes(path.read_bytes())
    tables = sample_tables(tree)
    tables[:] = [(kind, body) for kind, body in tables if kind != b"stss"]
    path.write_bytes(packed(tree))
    return path


def join_descriptions(first: Path, second: Path, path: Path) -> Path:
    """The packets of two MP4 files one behind the other, each with the parameters of its own file (two of `stsd`)."""
    join_packets([first, second], path)
    with av.open(str(first)) as read:
        count = sum(packet.size > 0 for packet in read.demux(video=0))
    tree = boxes(path.read_bytes())
    tables = dict(sample_tables(tree))
    entries = [dict(sample_tables(boxes(one.read_bytes())))[b"stsd"][8:] for one in (first, second)]
    sizes = struct.unpack(f">{len(tables[b'stsz'][12:]) // 4}I", tables[b"stsz"][12:])
    start = int.from_bytes(tables[b"stco"][8:12])
    tables[b"stsd"] = bytes(4) + struct.pack(">I", 2) + b"".join(entries)
    rows = [(1, count, 1), (2, len(sizes) - count, 2)]
    tables[b"stsc"] = bytes(4) + struct.pack(">I", 2) + b"".join(struct.pack(">III", *row) for row in rows)
    tables[b"stco"] = bytes(4) + struct.pack(">III", 2, start, start + sum(sizes[:count]))
    sample_tables(tree)[:] = list(tables.items())
    path.write_bytes(packed(tree))
    return path
