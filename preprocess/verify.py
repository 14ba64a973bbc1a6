"""A dataset's folder ─► what is wrong with it, one line a finding; an empty list means whole.

    verify(Path("out/shards"))                            # sizes and structure: seconds
    verify(Path("out/shards"), full=True, decode=True)    # every byte, every frame

Fast: the index files, the sizes of all files, and of every shard its members' names, order and offsets against the
index, its .idx and its table. Full: the sha256 of every file and the crc32 of every frame. Decode: every frame.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.files import sha256_of
from preprocess.index import (
    META_NAME,
    PLAN_NAME,
    Dataset,
    DatasetError,
    check_file,
    frame_offsets,
    open_dataset,
    read_meta,
)
from preprocess.shards import IDX_VERSION, frame_member, index_line
from preprocess.stills import decode_strictly, jpeg_header
from preprocess.tables import read_shard_table

_GENERATION = re.compile(r"(index|rows|frames)-[0-9a-f]{16}\.(parquet|arrow)")  # older ones may still be in use


@dataclass(frozen=True)
class _Sample:
    """What the index says about one sample of a shard."""

    row: int
    key: str
    offset: np.ndarray  # of every frame
    size: np.ndarray
    crc32: np.ndarray


def verify(root: Path, *, full: bool = False, decode: bool = False) -> list[str]:
    """Checks a dataset.

    Args:
        root: its folder.
        full: read every byte and compare the checksums.
        decode: decode every frame strictly and compare its size.

    Returns:
        One line for each finding: the file and what is wrong with it.

    Raises:
        DatasetError: there is no dataset, or its index cannot be read at all.
    """
    if missing := list(_check_sizes(root)):
        return missing
    dataset = open_dataset(root)
    found = list(_check_tables(dataset, full=full))
    keys = pq.read_table(root / dataset.meta["files"]["index"]["name"], columns=["key"])["key"]
    bounds = np.searchsorted(dataset.shard, np.arange(len(dataset.shards) + 1))
    if np.any(np.diff(dataset.shard) < 0):
        return [*found, "index: the samples are not in the order of the shards"]
    for number, shard in enumerate(dataset.shards):
        rows = range(int(bounds[number]), int(bounds[number + 1]))
        samples = [_sample(dataset, row, keys[row].as_py()) for row in rows]
        path = dataset.shard_path(number)
        if full and sha256_of(path) != shard.sha256:
            found.append(f"{shard.name}: its sha256 is not the one in {META_NAME}")
        found += [f"{shard.name}: {finding}" for finding in _check_structure(path, samples)]
        if full or decode:
            checks = _check_frames(dataset, path, samples, full=full, decode=decode)
            found += [f"{shard.name}: {finding}" for finding in checks]
    return found


def _check_sizes(root: Path) -> Iterator[str]:
    """Every file that dataset.json names: there, and of its size. Without them nothing else can be checked."""
    meta = read_meta(root)
    sizes = [(entry["name"], entry["bytes"]) for entry in meta["files"].values()]
    for name, num_bytes in sizes + [(name, num_bytes) for name, num_bytes, *_ in meta["shards"]]:
        try:
            check_file(root / name, num_bytes)
        except DatasetError as error:
            yield str(error)


def _sample(dataset: Dataset, row: int, key: str) -> _Sample:
    spans = dataset.frames(row, np.arange(int(dataset.num_frames[row])))
    return _Sample(row, key, spans.offset, spans.size, spans.crc32)


def _check_tables(dataset: Dataset, *, full: bool) -> Iterator[str]:
    """The files beside the tars: present, readable, agreeing, and no others."""
    root = dataset.root
    known = {META_NAME, PLAN_NAME} | {entry["name"] for entry in dataset.meta["files"].values()}
    for number, shard in enumerate(dataset.shards):
        tar = Path(shard.name)
        known |= {shard.name, tar.with_suffix(".idx").name, tar.with_suffix(".parquet").name}
        try:
            table, entry = read_shard_table(root / tar.with_suffix(".parquet"))
        except DatasetError as error:
            yield f"{tar.with_suffix('.parquet')}: {error}"
            continue
        if entry != shard:
            yield f"{tar.with_suffix('.parquet')}: {entry} disagrees with {META_NAME}"
        kept = table.filter(pc.field("num_frames") > 0)
        if kept["offset"].to_pylist() != dataset.offset[dataset.shard == number].tolist():
            yield f"{tar.with_suffix('.parquet')}: its samples are not those of the index"
    for entry in dataset.meta["files"].values():
        if full and sha256_of(root / entry["name"]) != entry["sha256"]:
            yield f"{entry['name']}: its sha256 is not the one in {META_NAME}"
    for path in sorted(root.iterdir()):
        if path.name not in known and not _GENERATION.fullmatch(path.name):
            yield f"{path.name}: does not belong to the dataset"
    if not (root / PLAN_NAME).is_file():
        yield f"{PLAN_NAME}: missing"


def _check_structure(path: Path, samples: list[_Sample]) -> Iterator[str]:
    """Members in the tar, and lines of the .idx, against the index."""
    lines = [f"{IDX_VERSION} {len(samples)}"]
    expected: list[tuple[str, int, int]] = []
    try:
        members = _members(path)
    except (tarfile.TarError, OSError) as error:
        yield f"not a whole tar ({error})"
        return
    sizes = {name: size for name, _, size in members}
    for sample in samples:
        json_name = f"{sample.key}.json"
        json_bytes = sizes.get(json_name, 0)
        frame_names = [frame_member(sample.key, frame) for frame in range(len(sample.size))]
        frames = list(zip(frame_names, sample.offset.tolist(), sample.size.tolist(), strict=True))
        json_offset = int(sample.offset[0] - frame_offsets(np.array([json_bytes, 0]), start=0)[1])
        expected += [(json_name, json_offset, json_bytes), *frames]
        lines.append(index_line(sample.key, json_offset, json_bytes, int(sample.offset[0]), sample.size.tolist()))
    for wanted, there in zip(expected, members, strict=False):
        if wanted != there:
            yield "member {} at {} with {} bytes, the index says {} at {} with {}".format(*there, *wanted)
            return
    if len(expected) != len(members):
        yield f"{len(members)} members, the index says {len(expected)}"
    idx = path.with_suffix(".idx")
    if not idx.is_file():
        yield f"{idx.name} is missing"
    elif idx.read_text(encoding="ascii", errors="replace") != "\n".join(lines) + "\n":
        yield f"{idx.name} disagrees with the index"


def _members(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset of the data, size) of every member; raises on anything but plain files and on a torn end."""
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
        odd = next((member.name for member in members if not member.isreg()), None)
        if odd is not None:
            raise tarfile.TarError(f"{odd} is no plain file")
        end = tar.offset
    if path.stat().st_size < end + 1024 or path.stat().st_size % tarfile.RECORDSIZE:
        raise tarfile.TarError("the end of the archive is missing")
    return [(member.name, member.offset_data, member.size) for member in members]


def _check_frames(dataset: Dataset, path: Path, samples: list[_Sample], *, full: bool, decode: bool) -> Iterator[str]:
    with path.open("rb") as file:
        for sample in samples:
            size = int(dataset.width[sample.row]), int(dataset.height[sample.row])
            spans = zip(sample.offset.tolist(), sample.size.tolist(), sample.crc32.tolist(), strict=True)
            for frame, (offset, num_bytes, crc32) in enumerate(spans):
                file.seek(offset)
                data = file.read(num_bytes)
                if full and zlib.crc32(data) != crc32:
                    yield f"{frame_member(sample.key, frame)}: its crc32 is not the one in the index"
                elif decode and (finding := _decode_finding(data, size)):
                    yield f"{frame_member(sample.key, frame)}: {finding}"


def _decode_finding(data: bytes, size: tuple[int, int]) -> str | None:
    header = jpeg_header(data)
    if header is None:
        return "not a JPEG"
    if (header.width, header.height) != size:
        return f"{header.width}x{header.height}, the index says {size[0]}x{size[1]}"
    try:
        decode_strictly(data)
    except ValueError as error:
        return str(error)
    return None
