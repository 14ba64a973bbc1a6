"""One shard of a dataset ─► what is wrong with its three files, one line a finding.

    check_shard(Path("out/shards"), 3, full=False, decode=False)

The index says where every byte of a tar must be: samples lie end to end, and each begins with its .json. Fast: the
shard's table and .idx in full, of the tar some headers and the end. Full and decode: one pass over the tar.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.compute as pc

from mae3d.video.errors import raise_unless_of_the_file
from preprocess.dataset.index import BLOCK, META_NAME, Dataset, DatasetError, frame_offsets, map_dataset, read_meta
from preprocess.dataset.schema import read_shard_table
from preprocess.encode.images import decode_strictly, jpeg_header
from preprocess.encode.tar_writer import IDX_VERSION, frame_member, index_line, padded, tar_header

_CHUNK = 1 << 20
_COLUMNS = ("offset", "num_frames", "first", "fps", "start_s", "width", "height")


@dataclass(frozen=True)
class _Sample:
    """Where the index says that a sample lies."""

    key: str
    start: int  # of the header of its .json
    offset: np.ndarray  # of every frame's data
    size: np.ndarray
    crc32: np.ndarray
    width: int
    height: int

    @property
    def json_room(self) -> int:
        """Bytes for the .json, padding included."""
        return int(self.offset[0]) - self.start - 2 * BLOCK

    @property
    def end(self) -> int:
        """Where the next sample begins."""
        return int(self.offset[-1]) + padded(int(self.size[-1]))

    def frame_name(self, frame: int) -> str:
        return frame_member(self.key, frame)


class _Mismatch(ValueError):
    """A tar that is not laid out as the index says."""


def check_shard(root: Path, number: int, *, full: bool, decode: bool) -> list[str]:
    """Checks a shard against the index; of a tar that is missing or has another size only what lies beside it.

    Args:
        root: the dataset's folder; its index must be whole.
        number: the shard's.
        full: compare all checksums.
        decode: decode every frame.

    Returns:
        The findings, each with the name of the file and a remedy.

    Raises:
        OSError: the disk has gone.
    """
    dataset = _opened(root)
    shard = dataset.shards[number]
    stem = root / Path(shard.name).stem
    lo, hi = np.searchsorted(dataset.shard, [number, number + 1]).tolist()
    samples = list(_samples(dataset, lo, hi))
    table, idx, tar = stem.with_suffix(".parquet"), stem.with_suffix(".idx"), root / shard.name
    found = [*_told(table, _check_table(dataset, number, lo, hi)), *_told(idx, _check_idx(idx, samples))]
    if tar.is_file() and tar.stat().st_size == shard.bytes:
        found += _told(tar, _check_tar(tar, samples, sha256=shard.sha256 if full else "", decode=decode))
    return found


def _told(path: Path, findings: Iterator[str]) -> Iterator[str]:
    """What was found in a file, with its name and a remedy; a file that cannot be read is a finding, too."""
    try:
        for finding in findings:
            yield f"{path.name}: {finding}; remove {path.stem}.* and run the build again"
    except OSError as error:
        raise_unless_of_the_file(error, path)
        yield f"{path.name}: cannot be read ({error.strerror}); mend the disk or the rights, or restore it from a copy"


def _opened(root: Path) -> Dataset:
    stat = (root / META_NAME).stat()
    return _opened_as(root, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=1)
def _opened_as(root: Path, version: tuple[int, ...]) -> Dataset:
    """The dataset, opened once by each process; another version of dataset.json is another dataset."""
    return map_dataset(root, read_meta(root))


def _check_table(dataset: Dataset, number: int, lo: int, hi: int) -> Iterator[str]:
    """The shard's table against rows lo ... hi of the index: every column."""
    shard = dataset.shards[number]
    try:
        table, entry = read_shard_table(dataset.root / Path(shard.name).with_suffix(".parquet"))
    except DatasetError as error:
        yield "missing" if isinstance(error.__cause__, FileNotFoundError) else f"damaged ({error.__cause__})"
        return
    if entry != shard:
        told = [f"{one.num_samples} samples, {one.bytes} bytes, sha256 {one.sha256[:16]}" for one in (entry, shard)]
        yield f"it is of a tar with {told[0]}; {META_NAME} says {told[1]}"
    kept = table.filter(pc.field("num_frames") > 0)
    if len(kept) != hi - lo:
        yield f"{len(kept)} samples, the index has {hi - lo}"
        return
    sizes, crc32s = dataset.frame_rows(*_frames_of(dataset, lo, hi))
    at = dataset.label_offsets[lo : hi + 1]
    pairs: dict[str, tuple[Any, Any]] = {name: (kept[name], getattr(dataset, name)[lo:hi]) for name in _COLUMNS}
    pairs |= {
        "sizes": (pc.list_flatten(kept["sizes"]), sizes),
        "crc32s": (pc.list_flatten(kept["crc32s"]), crc32s),
        "labels": (pc.list_flatten(kept["labels"]), dataset.label_values[at[0] : at[-1]]),
        "labels a sample": (pc.list_value_length(kept["labels"]), np.diff(at)),
        "key": (kept["key"], np.array([dataset.key(row) for row in range(lo, hi)], object)),
        "name": (kept["name"], np.array([dataset.name(row) for row in range(lo, hi)], object)),
    }
    if "split_rule" not in dataset.meta:  # else they are the plan's, made later: `preprocess.plan.splits`
        pairs["split"] = (kept["split"], np.array(dataset.split_names, object)[dataset.splits[lo:hi]])
    for name, (there, expected) in pairs.items():
        there = there.to_numpy()
        same = np.array_equal(there, expected, equal_nan=expected.dtype.kind == "f")
        if not same:
            yield f"its column {name!r} disagrees with the index"


def _frames_of(dataset: Dataset, lo: int, hi: int) -> tuple[int, int]:
    """The rows of the frames file that belong to samples lo ... hi."""
    if lo == hi:
        return 0, 0
    return int(dataset.frames_at[lo]), int(dataset.frames_at[hi - 1]) + int(dataset.num_frames[hi - 1])


def _samples(dataset: Dataset, lo: int, hi: int) -> Iterator[_Sample]:
    sizes, crc32s = dataset.frame_rows(*_frames_of(dataset, lo, hi))
    start = at = 0
    for row in range(lo, hi):
        upto = at + int(dataset.num_frames[row])
        offset = frame_offsets(sizes[at:upto], start=int(dataset.offset[row]))
        size = int(dataset.width[row]), int(dataset.height[row])
        sample = _Sample(dataset.key(row), start, offset, sizes[at:upto], crc32s[at:upto], *size)
        yield sample
        start, at = sample.end, upto


def _check_idx(path: Path, samples: list[_Sample]) -> Iterator[str]:
    """Every line against the index, which knows all but the exact length of the .json."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        yield "missing"
        return
    if lines[0] != f"{IDX_VERSION} {len(samples)}" or len(lines) != len(samples) + 2 or lines[-1]:
        yield f"{len(lines) - 2} samples and the first line {lines[0][:40]!r}, the index has {len(samples)}"
        return
    for number, (line, sample) in enumerate(zip(lines[1:-1], samples, strict=True), start=2):
        fields = line.split(" ", 3)
        json_bytes = int(fields[2]) if len(fields) == 4 and fields[2].isdecimal() else -1
        sizes = sample.size.tolist()
        wanted = index_line(sample.key, sample.start + BLOCK, json_bytes, int(sample.offset[0]), sizes)
        if line != wanted or padded(json_bytes) != sample.json_room:
            yield f"line {number} disagrees with the index about sample {sample.key}"
            return


def _check_tar(path: Path, samples: list[_Sample], *, sha256: str, decode: bool) -> Iterator[str]:
    end = samples[-1].end if samples else 0
    with path.open("rb") as file:
        try:
            if sha256 or decode:
                yield from _walk(_Hashed(file), samples, sha256=sha256, decode=decode)
            else:
                _look(file, samples)
            file.seek(end)
            rest = file.read(tarfile.RECORDSIZE * 2)
            if rest.strip(b"\0") or end + len(rest) != -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE:
                raise _Mismatch(f"it does not end where the index says, after {end} bytes")
        except _Mismatch as error:
            yield f"not laid out as the index says: {error}"


def _look(file: BinaryIO, samples: list[_Sample]) -> None:
    """The headers of the first and of the last sample's members."""
    for sample in {sample.key: sample for sample in samples[:1] + samples[-1:]}.values():
        file.seek(sample.start)
        _check_header(file.read(BLOCK), f"{sample.key}.json", sample.json_room, exact=False)
        for frame, (offset, size) in enumerate(zip(sample.offset.tolist(), sample.size.tolist(), strict=True)):
            file.seek(offset - BLOCK)
            _check_header(file.read(BLOCK), sample.frame_name(frame), size)


@dataclass
class _Hashed:
    """A file that is read once, from its beginning to its end, and hashed on the way."""

    file: BinaryIO
    sha256: Any = None

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def read(self, num_bytes: int) -> bytes:
        data = self.file.read(num_bytes)
        self.sha256.update(data)
        return data

    def hexdigest(self) -> str:
        """Of the whole file."""
        while self.read(_CHUNK):
            pass
        return str(self.sha256.hexdigest())


def _walk(file: _Hashed, samples: list[_Sample], *, sha256: str, decode: bool) -> Iterator[str]:
    """Every member; `sha256` of the tar, or "" if checksums are not asked for."""
    mismatch = None
    try:
        for sample in samples:
            _check_header(file.read(BLOCK), f"{sample.key}.json", sample.json_room, exact=False)
            file.read(sample.json_room)
            for frame, (size, crc32) in enumerate(zip(sample.size.tolist(), sample.crc32.tolist(), strict=True)):
                _check_header(file.read(BLOCK), sample.frame_name(frame), size)
                data = file.read(padded(size))[:size]
                if sha256 and zlib.crc32(data) != crc32:
                    yield f"{sample.frame_name(frame)}: its crc32 is not the one in the index"
                elif decode and (finding := _decode_finding(data, (sample.width, sample.height))):
                    yield f"{sample.frame_name(frame)}: {finding}"
    except _Mismatch as error:
        mismatch = error
    if sha256 and file.hexdigest() != sha256:
        yield f"its sha256 is not the one in {META_NAME}"
    if mismatch:
        raise mismatch


def _check_header(block: bytes, name: str, size: int, *, exact: bool = True) -> None:
    """Raises _Mismatch unless this is the header of a plain file with that name and size; a .json's may be shorter."""
    if exact and block == tar_header(name, size):
        return
    try:
        member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise _Mismatch(f"no member where {name} should be ({error})") from error
    there = member.size if exact else padded(member.size)
    if member.name != name or there != size or not member.isreg():
        raise _Mismatch(f"member {member.name} with {member.size} bytes where {name} with {size} should be")


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
