"""Every frame of a tar is decoded and compared with the index: shard number ─► findings.

    check_frames(root, read_meta(root), 3)

The frames are found by the index, and read in the order in which they lie.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mae3d.video.errors import raise_unless_of_the_file
from preprocess.dataset.index import Dataset, map_dataset
from preprocess.encode.images import decode_strictly, jpeg_header
from preprocess.encode.tar_writer import frame_member


def check_frames(root: Path, meta: dict[str, Any], number: int) -> list[str]:
    """Return the findings of one shard's frames, each with the names of tar and frame and the remedy.

    Args:
        root: the folder of the dataset, whose index is known to be undamaged.
        meta: the content of its dataset.json.
        number: the number of the shard.

    Raises:
        OSError: the disk has gone.
    """
    dataset = map_dataset(root, meta)  # one per call, because an opened dataset belongs to one thread
    path = dataset.shard_path(number)
    try:
        return [
            f"{path.name}: {frame}; remove {path.stem}.* and run the build again" for frame in _damage(dataset, number)
        ]
    except OSError as error:
        raise_unless_of_the_file(error, path)
        return [f"{path.name}: cannot be read ({error.strerror}); mend the disk, or restore it from a copy"]


def _damage(dataset: Dataset, number: int) -> Iterator[str]:
    start, stop = np.searchsorted(dataset.shard, [number, number + 1]).tolist()
    with dataset.shard_path(number).open("rb") as tar:
        for row in range(start, stop):
            spans = dataset.frames(row, np.arange(int(dataset.num_frames[row])))
            size = int(dataset.width[row]), int(dataset.height[row])
            columns = (column.tolist() for column in (spans.offset, spans.size, spans.crc32))
            for frame, (offset, num_bytes, crc32) in enumerate(zip(*columns, strict=True)):
                tar.seek(offset)
                if damage := _damage_of_frame(tar.read(num_bytes), crc32, size):
                    yield f"{frame_member(dataset.key(row), frame)}: {damage}"


def _damage_of_frame(data: bytes, crc32: int, size: tuple[int, int]) -> str:
    if zlib.crc32(data) != crc32:
        return "its crc32 is not the one in the index"
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
