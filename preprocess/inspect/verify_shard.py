"""Every frame of a tar is decoded and compared with the index: shard number ─► findings.

    check_frames(root, read_meta(root), 3)

The frames are found by the index, and read in the order in which they lie.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mae3d.io.png import PngError, decode_png
from mae3d.video.errors import raise_unless_of_the_file
from mae3d.video.groups import GroupDecoder, GroupError, padded_side
from mae3d.video.in_place import InPlaceDecoder
from mae3d.video.packets import PacketError, PacketTable
from preprocess.dataset.index import Dataset, map_dataset
from preprocess.dataset.layout import Layout
from preprocess.encode.images import decode_strictly, jpeg_header
from preprocess.encode.tar_writer import frame_member, whole_member

_AT_A_TIME = 64  # frames of a video that are decoded together


def check_frames(root: Path, meta: dict[str, Any], number: int, *, decode: bool = True) -> list[str]:
    """Return the findings of one shard's frames, each with the names of tar and frame and the remedy.

    Args:
        root: the folder of the dataset, whose index is known to be undamaged.
        meta: the content of its dataset.json.
        number: the number of the shard.
        decode: decode them; else only the bytes are compared.

    Raises:
        OSError: the disk has gone.
    """
    dataset = map_dataset(root, meta)  # one per call, because an opened dataset belongs to one thread
    path = dataset.shard_path(number)
    again = f"remove {path.stem}.* and run the build again"
    if dataset.layout.is_in_place:
        again = f"restore the video, or {again.replace('build', 'index')}"
    try:
        return [f"{path.name}: {damage}; {again}" for damage in _damage(dataset, number, decode=decode)]
    except OSError as error:
        raise_unless_of_the_file(error, path)
        return [f"{path.name}: cannot be read ({error.strerror}); mend the disk, or restore it from a copy"]


def _damage(dataset: Dataset, number: int, *, decode: bool) -> Iterator[str]:
    start, stop = np.searchsorted(dataset.shard, [number, number + 1]).tolist()
    decoder, in_place = GroupDecoder(), InPlaceDecoder()
    group = dataset.layout.group
    with dataset.shard_path(number).open("rb") as tar:
        for row in range(start, stop):
            num_frames, size = int(dataset.num_frames[row]), (int(dataset.width[row]), int(dataset.height[row]))
            spans = dataset.spans(row, np.arange(num_frames))
            columns = (column.tolist() for column in (spans.part, spans.offset, spans.size, spans.crc32))
            for part, offset, num_bytes, crc32 in zip(*columns, strict=True):
                tar.seek(offset)
                data = tar.read(num_bytes)
                if zlib.crc32(data) != crc32:
                    damage = "its crc32 is not the one in the index"
                elif dataset.layout.is_in_place:
                    table = PacketTable.from_bytes(data)
                    damage = _damage_in_place(in_place if decode else None, dataset, row, table)
                elif not decode:
                    damage = ""
                elif dataset.layout.is_one_member:
                    damage = _damage_of_group(decoder, data, min(group, num_frames - part * group), size)
                elif dataset.layout.name == "png":
                    damage = _damage_of_png(data, size, dataset.layout)
                else:
                    damage = _damage_of_frame(data, size)
                if damage:
                    yield f"{_part_name(dataset, row, part)}: {damage}"


def _part_name(dataset: Dataset, row: int, part: int) -> str:
    key = dataset.key(row)
    return (
        f"{whole_member(key, dataset.layout)}, {dataset.layout.parts[:-1]} {part}"
        if dataset.layout.is_one_member
        else frame_member(key, part, dataset.layout)
    )


def _damage_in_place(decoder: InPlaceDecoder | None, dataset: Dataset, row: int, table: PacketTable) -> str:
    """Return what is wrong with a sample in its video: its packets, then its frames, a few at a time."""
    files, number = dataset.media_files, int(dataset.media[row])
    assert files is not None
    where = files.location(number)
    try:
        with files.open(number) as read:
            for start in range(0, len(table), _AT_A_TIME):
                frames = range(start, min(start + _AT_A_TIME, len(table)))
                data = table.read(frames, read)
                crc32s = table.packets.crc32
                if any(zlib.crc32(packet) != int(crc32s[one]) for one, packet in data.items()):
                    return f"{where} has other bytes than those that were indexed"
                if decoder is not None:
                    decoder.frames(table, frames, data, where)
    except PacketError as error:
        return f"{where}: {error}"
    except OSError as error:
        raise_unless_of_the_file(error, where)
        return f"{where}: cannot be read ({error.strerror})"
    return ""


def _damage_of_frame(data: bytes, size: tuple[int, int]) -> str:
    header = jpeg_header(data)
    if header is None:
        return "not a JPEG"
    if (header.width, header.height) != size:
        return f"{header.width}x{header.height}, the index says {size[0]}x{size[1]}"
    try:
        decode_strictly(data)
    except ValueError as error:
        return str(error)
    return ""


def _damage_of_png(data: bytes, size: tuple[int, int], layout: Layout) -> str:
    try:
        pixels = decode_png(data, channels=layout.channels)
    except PngError as error:
        return str(error)
    there, expected = (*pixels.shape[1::-1], 8 * pixels.dtype.itemsize), (*size, layout.bits)
    if there == expected:
        return ""
    return "{}x{} of {} bits".format(*there) + ", the index says {}x{} of {}".format(*expected)


def _damage_of_group(decoder: GroupDecoder, data: bytes, num_frames: int, size: tuple[int, int]) -> str:
    try:
        frame = decoder.decode(data, range(num_frames))[-1]
    except GroupError as error:
        return str(error)
    padded = padded_side(size[0]), padded_side(size[1])
    return "" if (frame.width, frame.height) == padded else f"{frame.width}x{frame.height}, not {padded[0]}x{padded[1]}"
