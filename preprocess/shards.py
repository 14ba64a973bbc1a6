"""One shard: planned samples in, shard-NNNNN.tar, .idx and .parquet out.

    build_shard(3, plan.shard(3), roots=(Folder(Path("clips")),), settings=Settings(), out=Path("out"))

A pure function of its arguments: what it writes does not depend on the worker, the host, the time or earlier tries.
Media are read, and frames written, by the child of `preprocess.decoder`; what hangs or kills it costs its sample.
The tar is WebDataset's (USTAR, the members of a sample side by side, no times or owners), the .idx is DALI's
(wds2idx v1.2). The .parquet comes last: where it is, the shard is done. Frames are written as they are decoded; the
sample's .json, which comes first, is filled in afterwards, and a sample that fails is cut off again.
"""

import json
import math
import tarfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from preprocess.decoder import Written, decoder
from preprocess.files import replace_file, sha256_of
from preprocess.index import BLOCK, DatasetError, Shard
from preprocess.plan import PlannedSample, Settings
from preprocess.problems import MediaError
from preprocess.roots import Root
from preprocess.samples import Facts, encode_sample, media_files
from preprocess.tables import read_shard_table, write_shard_table
from preprocess.videos import Video, open_video

_NUMBERS = 256  # bytes that the numbers of a sample's .json may take
IDX_VERSION = "v1.2"


@dataclass(frozen=True)
class ShardResult:
    """What a shard came to; `rejected` and `remarks` are (name, reason, message)."""

    number: int
    num_samples: int
    num_frames: int
    rejected: tuple[tuple[str, str, str], ...]
    remarks: tuple[tuple[str, str, str], ...]


@dataclass
class TarWriter:
    """Appends samples to a tar: begin, add frames, then finish or abandon."""

    file: BinaryIO
    index: list[str] = field(default_factory=list)  # lines of the .idx, one a sample
    sizes: list[int] = field(default_factory=list)
    crc32s: list[int] = field(default_factory=list)
    offset: int = 0  # of the first frame's data
    _key: str = ""
    _start: int = 0
    _json_bytes: int = 0

    def begin(self, key: str, json_bytes: int) -> None:
        """Opens a sample, leaving room for a .json of that many bytes."""
        self._key, self._start, self._json_bytes = key, self.file.tell(), json_bytes
        self.sizes, self.crc32s = [], []
        self.file.seek(BLOCK + _padded(json_bytes), 1)
        self.offset = self.file.tell() + BLOCK

    def add(self, data: bytes) -> None:
        """Writes one frame."""
        self.file.write(_header(frame_member(self._key, len(self.sizes)), len(data)))
        self.file.write(data)
        self.file.write(bytes(_padded(len(data)) - len(data)))
        self.sizes.append(len(data))
        self.crc32s.append(zlib.crc32(data))

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes the .json into its place; blanks fill it up."""
        text = json.dumps(facts).encode()
        assert len(text) <= self._json_bytes, "more than was reserved"
        end = self.file.tell()
        self.file.seek(self._start)
        self.file.write(_header(f"{self._key}.json", self._json_bytes))
        self.file.write(text.ljust(self._json_bytes).ljust(_padded(self._json_bytes), b"\0"))
        self.file.seek(end)
        self.index.append(index_line(self._key, self._start + BLOCK, self._json_bytes, self.offset, self.sizes))

    def abandon(self) -> None:
        """Forgets the sample that was begun."""
        self.file.seek(self._start)
        self.file.truncate()

    def close(self) -> None:
        """Ends the archive as tar does: two empty blocks, filled up to a whole record."""
        end = self.file.tell() + 2 * BLOCK
        self.file.write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))


def shard_name(number: int) -> str:
    """shard-00003: the stem of a shard's files."""
    return f"shard-{number:05d}"


def frame_member(key: str, frame: int) -> str:
    """The name of a frame in the tar."""
    return f"{key}.{frame:06d}.jpg"


def index_line(key: str, json_offset: int, json_bytes: int, offset: int, sizes: Sequence[int]) -> str:
    """One sample's line of the .idx: extension, offset of the data, size and name of every member."""
    parts = [f"json {json_offset} {json_bytes} {key}.json"]
    for frame, size in enumerate(sizes):
        parts.append(f"{frame:06d}.jpg {offset} {size} {frame_member(key, frame)}")
        offset += BLOCK + _padded(size)
    return " ".join(parts)


def finished(out: Path, number: int) -> Shard | None:
    """The shard's entry for dataset.json if it is done and its tar is there in full; None if it is to be made."""
    table = out / f"{shard_name(number)}.parquet"
    if not table.is_file():
        return None
    try:
        _, shard = read_shard_table(table)
        whole = (out / shard.name).stat().st_size == shard.bytes and table.with_suffix(".idx").is_file()
    except (DatasetError, FileNotFoundError):
        return None
    return shard if whole else None


def build_shard(
    number: int, samples: list[PlannedSample], *, roots: Sequence[Root], settings: Settings, out: Path
) -> ShardResult:
    """Reads the samples and writes the three files of the shard.

    Args:
        number: the shard's number.
        samples: its rows of the plan, in order.
        roots: where the rows' paths start, by their `root`.
        settings: sizes, rates and quality.
        out: the dataset's folder.

    Raises:
        OSError: the output cannot be written. What is wrong with an input is in the table and the result instead.
    """
    stem = out / shard_name(number)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    with replace_file(stem.with_suffix(".tar")) as aside:
        aside.touch()
        stop = 0
        for sample in samples:
            try:
                with roots[sample.root].local(media_files(sample, settings)) as files:
                    written = decoder().write(
                        sample, files, settings=settings, tar=aside, start=stop, first=sample is samples[0]
                    )
            except MediaError as error:
                rows.append(_row(sample, error))
            else:
                rows.append(_row(sample, written))
                lines.append(written.line)
                stop = written.stop
        with aside.open("r+b") as file:
            file.truncate(stop)  # a sample that failed may have left something
            file.seek(stop)
            TarWriter(file).close()
        tar_bytes, tar_sha256 = aside.stat().st_size, sha256_of(aside)
    with replace_file(stem.with_suffix(".idx")) as aside:
        aside.write_text("\n".join([f"{IDX_VERSION} {len(lines)}", *lines]) + "\n", encoding="ascii")
    write_shard_table(stem.with_suffix(".parquet"), rows, tar_bytes=tar_bytes, tar_sha256=tar_sha256)
    problems = [row for row in rows if row["reason"]]
    told = [(row["name"], row["reason"], row["message"]) for row in problems]
    return ShardResult(
        number,
        num_samples=sum(row["num_frames"] > 0 for row in rows),
        num_frames=sum(row["num_frames"] for row in rows),
        rejected=tuple(one for one, row in zip(told, problems, strict=True) if not row["num_frames"]),
        remarks=tuple(one for one, row in zip(told, problems, strict=True) if row["num_frames"]),
    )


def write_sample(
    tar: TarWriter,
    sample: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    opened: Callable[..., AbstractContextManager[Video]] = open_video,
    progress: Callable[[str], None] = lambda place: None,
) -> Facts:
    """Appends one sample to a tar, or nothing; `preprocess.decoding` calls it. For the arguments see `encode_sample`.

    Raises:
        MediaError: the sample cannot be had.
        OSError: the tar cannot be written.
    """
    tar.begin(sample.key, len(json.dumps({"name": sample.name})) + _NUMBERS)
    try:
        facts = encode_sample(sample, files, settings=settings, sink=tar.add, opened=opened, progress=progress)
    except MediaError:
        tar.abandon()
        raise
    tar.finish(_description(sample, facts))
    return facts


def _row(sample: PlannedSample, outcome: Written | MediaError) -> dict[str, Any]:
    """A sample's row of the shard's table (SHARD_SCHEMA)."""
    row: dict[str, Any] = {
        "key": sample.key,
        "name": sample.name,
        "labels": sample.labels,
        "split": sample.split,
        "file": sample.file,
        "line": sample.line,
        "frame": -1,
        "reason": "",
        "message": "",
    }
    if isinstance(outcome, MediaError):
        nothing = {"offset": 0, "num_frames": 0, "first": 0, "fps": math.nan, "start_s": math.nan}
        row |= nothing | {"width": 0, "height": 0, "sizes": [], "crc32s": []}
        return row | {"frame": outcome.frame, "reason": outcome.reason, "message": str(outcome)}
    facts = outcome.facts
    if facts.remark:
        row |= {"reason": facts.remark[0], "message": facts.remark[1]}
    return row | {
        "offset": outcome.offset,
        "num_frames": facts.num_frames,
        "first": facts.first,
        "fps": facts.fps,
        "start_s": facts.start_s,
        "width": facts.width,
        "height": facts.height,
        "sizes": outcome.sizes,
        "crc32s": outcome.crc32s,
    }


def _description(sample: PlannedSample, facts: Facts) -> dict[str, Any]:
    """What a sample's .json says: everything but the labels, which live in the index only."""
    return {
        "name": sample.name,
        "range": [facts.first, facts.stop],
        "num_frames": facts.num_frames,
        "fps": None if math.isnan(facts.fps) else facts.fps,
        "start_s": None if math.isnan(facts.start_s) else facts.start_s,
        "width": facts.width,
        "height": facts.height,
    }


def _header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode is 0o644
    info.size = num_bytes
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padded(num_bytes: int) -> int:
    return num_bytes + -num_bytes % BLOCK
