"""The tar of a shard is written: samples with their frames in, bytes, lines of the .idx and checksums out.

    tar = TarWriter(file)
    tar.begin("000000007", 300)
    tar.add(jpeg)
    tar.finish({"name": "clip", ...})
    tar.close()

WebDataset's layout: USTAR, the members of a sample side by side, its .json first, no times or owners. The .idx is
DALI's (wds2idx v1.2). Frames are written as they come; the .json is filled in afterwards, and a sample that fails is
cut off again.
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

from preprocess.dataset.index import BLOCK

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
    """A writer of samples to a tar: begin, add frames, then finish or abandon."""

    file: BinaryIO
    index: list[str] = field(default_factory=list)  # lines of the .idx, one a sample
    sizes: list[int] = field(default_factory=list)
    crc32s: list[int] = field(default_factory=list)
    offset: int = 0  # of the first frame's data
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
        """Write one frame."""
        header = tar_header(frame_member(self._key, len(self.sizes)), len(data))
        self.file.write(b"".join((header, data, bytes(-len(data) % BLOCK))))
        self.sizes.append(len(data))
        self.crc32s.append(zlib.crc32(data))

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the .json into its room; blanks fill it up."""
        text = json.dumps(facts).encode()
        assert len(text) <= self._json_bytes, "more than was reserved"
        end = self.file.tell()
        self.file.seek(self._start)
        self.file.write(tar_header(f"{self._key}.json", self._json_bytes))
        self.file.write(text.ljust(self._json_bytes).ljust(padded(self._json_bytes), b"\0"))
        self.file.seek(end)
        self.index.append(index_line(self._key, self._start + BLOCK, self._json_bytes, self.offset, self.sizes))

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


def frame_member(key: str, frame: int) -> str:
    """Return the name of a frame in the tar."""
    return f"{key}.{frame:06d}.jpg"


def index_line(key: str, json_offset: int, json_bytes: int, offset: int, sizes: Sequence[int]) -> str:
    """Return one sample's line of the .idx: extension, offset of the data, size and name of every member."""
    parts = [f"json {json_offset} {json_bytes} {key}.json"]
    for frame, size in enumerate(sizes):
        parts.append(f"{frame:06d}.jpg {offset} {size} {frame_member(key, frame)}")
        offset += BLOCK + padded(size)
    return " ".join(parts)


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
