"""The tar of a shard is written: samples with their parts in, bytes, lines of the .idx and checksums out.

    tar = TarWriter(file, JPEG)
    tar.begin("000000007", 300)
    tar.add(jpeg)
    tar.finish({"name": "clip", ...})
    tar.close()

WebDataset's layout: USTAR, the members of a sample side by side, its .json first, no times or owners. The .idx is
DALI's (wds2idx v1.2). Parts are written as they come: frames as members of their own, groups one behind the other in
one member. The .json, and the header of that member, are filled in afterwards, and a sample that fails is cut off
again.
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from preprocess.dataset.layout import BLOCK, Layout

IDX_VERSION = "v1.2"
_AT_A_TIME = 1 << 20  # bytes that are read to be hashed


def _blank_header() -> bytes:
    return tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")  # mtime, uid, gid: 0; mode: 0o644


_BLANK = _blank_header()
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 135), slice(148, 156)
# Its checksum counts its own field as blanks (POSIX ustar); name and size of the blank header add nothing but zeros.
_BLANK_SUM = sum(_BLANK) - sum(_BLANK[_SIZE]) - sum(_BLANK[_SUM]) + 8 * ord(" ")


@dataclass
class TarWriter:
    """A writer of samples to a tar: begin, add parts, then finish or abandon."""

    file: BinaryIO
    layout: Layout
    index: list[str] = field(default_factory=list)  # lines of the .idx, one a sample
    sizes: list[int] = field(default_factory=list)
    crc32s: list[int] = field(default_factory=list)
    offset: int = 0  # of the first part's data
    _key: str = ""
    _start: int = 0
    _json_bytes: int = 0

    def begin(self, key: str, json_bytes: int) -> None:
        """Open a sample, leaving room for a .json of that many bytes."""
        self._key, self._start, self._json_bytes = key, self.file.tell(), json_bytes
        self.sizes, self.crc32s = [], []
        self.file.seek(BLOCK + padded(json_bytes), 1)
        self.offset = self.file.tell() + BLOCK

    def add(self, data: bytes) -> None:
        """Write one part."""
        if not self.layout.is_one_member:
            header = tar_header(frame_member(self._key, len(self.sizes), self.layout), len(data))
            self.file.write(b"".join((header, data, bytes(-len(data) % BLOCK))))
        else:
            if not self.sizes:
                self.file.seek(self.offset)
            self.file.write(data)
        self.sizes.append(len(data))
        self.crc32s.append(zlib.crc32(data))

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the .json into its room; blanks fill it up."""
        text = json.dumps(facts).encode()
        assert len(text) <= self._json_bytes, "more than was reserved"
        members = self._members()
        if self.layout.is_one_member:
            ((name, offset, size),) = members
            self.file.write(bytes(-size % BLOCK))
            self._write_at(offset - BLOCK, tar_header(name, size))
        room = text.ljust(self._json_bytes).ljust(padded(self._json_bytes), b"\0")
        self._write_at(self._start, tar_header(f"{self._key}.json", self._json_bytes) + room)
        described = [(f"{self._key}.json", self._start + BLOCK, self._json_bytes), *members]
        self.index.append(index_line(described))

    def _members(self) -> list[tuple[str, int, int]]:
        """Return name, offset and size of the members that hold the parts."""
        if self.layout.is_one_member:
            return [(whole_member(self._key, self.layout), self.offset, sum(self.sizes))]
        offsets = self.layout.offsets(np.array(self.sizes, np.int64), start=self.offset).tolist()
        names = (frame_member(self._key, frame, self.layout) for frame in range(len(self.sizes)))
        return list(zip(names, offsets, self.sizes, strict=True))

    def _write_at(self, offset: int, data: bytes) -> None:
        end = self.file.tell()
        self.file.seek(offset)
        self.file.write(data)
        self.file.seek(end)

    def abandon(self) -> None:
        """Forget the open sample."""
        self.file.seek(self._start)
        self.file.truncate()

    def close(self) -> None:
        """End the archive as tar does: two empty blocks, filled up to a full record."""
        end = self.file.tell() + 2 * BLOCK
        self.file.write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))


class GrowingHash:
    """The sha256 of a file that grows, computed in a thread meanwhile, so that little is left to do at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._stop = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def cover(self, stop: int) -> None:
        """Declare that the bytes up to `stop` are written and final."""
        self._last = self._pool.submit(self._update, stop)

    def hexdigest(self) -> str:
        """Return the sha256 of all covered bytes."""
        if self._last is not None:
            self._last.result()
        return self._hash.hexdigest()

    def _update(self, stop: int) -> None:
        while self._stop < stop:
            data = os.pread(self._file.fileno(), min(_AT_A_TIME, stop - self._stop), self._stop)
            if not data:
                raise OSError(f"the file ends at byte {self._stop} of {stop}")
            self._hash.update(data)
            self._stop += len(data)


def frame_member(key: str, frame: int, layout: Layout) -> str:
    """Return the name of a frame in the tar."""
    return f"{key}.{frame:06d}.{layout.member}"


def whole_member(key: str, layout: Layout) -> str:
    """Return the name of the member that holds all parts of a sample in the tar."""
    return f"{key}.{layout.member}"


def index_line(members: Sequence[tuple[str, int, int]]) -> str:
    """Return one sample's line of the .idx: extension, offset of the data, size and name of every member."""
    return " ".join(f"{name.partition('.')[2]} {offset} {size} {name}" for name, offset, size in members)


def moved_line(line: str, by: int) -> str:
    """Return a sample's line of the .idx after its bytes have moved."""
    words = line.split(" ")
    words[1::4] = [str(int(offset) + by) for offset in words[1::4]]
    return " ".join(words)


def tar_header(name: str, num_bytes: int) -> bytes:
    """Return a member's USTAR header, as tarfile would in ten times the time; names are ASCII, of 100 at most."""
    label, size = name.encode("ascii"), b"%011o" % num_bytes
    assert len(label) <= _NAME.stop
    checksum = _BLANK_SUM + sum(label) + sum(size)
    return b"".join(
        (
            label.ljust(_NAME.stop, b"\0"),
            _BLANK[_NAME.stop : _SIZE.start],
            size,
            _BLANK[_SIZE.stop : _SUM.start],
            b"%06o\0 " % checksum,
            _BLANK[_SUM.stop :],
        )
    )


def padded(num_bytes: int) -> int:
    """Return the room that so many bytes take in a tar: complete blocks."""
    return num_bytes + -num_bytes % BLOCK
