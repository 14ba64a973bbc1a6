"""Spans of a file ─► their bytes: near ones read together, failed reads tried again, all of it counted.

reader = ShardReader(corpus, gap=0, retries=5)
reader.read(7, corpus.spans(7, np.array([0, 4, 8])))       # of its shard ─► three uint8 arrays, or those of two groups
reader.read_media(7, spans)                                # of the media file that an index names for it
"""

import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from mae3d.io.storage import is_url
from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus
from pipelines.storage.cache import DamagedFileError
from preprocess.dataset.index import Spans
from preprocess.dataset.media import Read, reading

logger = logging.getLogger(__name__)

REMOTE_GAP = 256 << 10
MEDIA_GAP = 64 << 10  # in a media file sound lies between the packets: to read over it is cheaper than to read anew
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class DataError(RuntimeError):
    """Shards cannot be read, or too much of them is damaged; the message names the shard and the samples."""


class ShardVanishedError(Exception):
    """A shard or a media file is not there, though what lay beside it is."""


@dataclass(frozen=True)
class _Source:
    """A file that holds samples."""

    name: str
    opened: Callable[[], AbstractContextManager[Read]]
    rest_is_there: Callable[[], bool]  # then not all of the storage has gone
    gap: int


def read_gap(config: DataConfig) -> int:
    """Return `data.read_gap` in bytes, with -1 resolved."""
    if config.read_gap >= 0:
        return config.read_gap
    return REMOTE_GAP if config.has_urls else 0


def words_for(corpus: Corpus, row: int) -> tuple[str, str]:
    """Return a sample's key and name for a message, or its number where the index cannot be read either.

    They are read when they are needed, from the storage that has just failed, and no message must end a run.
    """
    try:
        return corpus.key(row), corpus.name(row)
    except (OSError, pa.ArrowException):
        return f"number {row}", "its name cannot be read"


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Read bytes of a shard, b"" at its end. All reading goes through here: tests and benchmarks wrap it."""
    return os.pread(descriptor, size, offset)


def joined(offsets: Sequence[int], sizes: Sequence[int], *, gap: int) -> list[tuple[int, int]]:
    """Return the spans that are read together, as half-open ranges of their numbers.

    Two frames of a tar lie at least 512 bytes apart (a header block), so that a gap of 0 joins none.

    Args:
        offsets: where the spans start, rising.
        sizes: their bytes.
        gap: most bytes between two spans of one read.
    """
    breaks = [i for i in range(1, len(offsets)) if offsets[i] - offsets[i - 1] - sizes[i - 1] > gap]
    return list(zip([0, *breaks], [*breaks, len(offsets)], strict=True))


def wait_s(attempt: int, *, who: str) -> float:
    """Return the seconds to wait after failed attempt number `attempt`: doubled each time, capped, spread over a half.

    A pure function of its arguments: processes that fail at the same moment read different samples, so they come back
    at different moments.
    """
    spread = 0.5 + 0.5 * zlib.crc32(f"{who} {attempt}".encode()) / 2**32
    return min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * spread


class ShardReader:
    """A reader for many threads at once.

    A shard is opened per clip: that costs 2 us of the 5 ms of a clip's decoding, while a descriptor that is kept
    would hide a replaced shard and keep an evicted one's blocks on the disk."""

    def __init__(self, corpus: Corpus, *, gap: int, retries: int):
        self._corpus, self._gap, self._retries = corpus, gap, retries
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._underway: dict[int, tuple[int, float]] = {}  # thread ─► row and the time it was begun
        self.bytes_read = self.bytes_used = self.num_retries = 0

    def read(self, row: int, spans: Spans) -> list[np.ndarray]:
        """Return the bytes of each span, in order; too few of them if the shard ends early.

        Args:
            row: the sample.
            spans: where its parts lie, rising.

        Raises:
            ShardVanishedError: the shard is missing, though its dataset is there.
            DataError: the storage failed at every try of one read.
        """
        return self._read(row, self._shard_of(row), spans)

    def read_media(self, row: int, spans: Spans) -> list[np.ndarray]:
        """Return the bytes of spans of the row's media file; arguments and errors as `read`."""
        return self._read(row, self._media_of(row), spans)

    def _read(self, row: int, source: _Source, spans: Spans) -> list[np.ndarray]:
        attempt, thread = 0, threading.get_ident()
        self._underway[thread] = (row, time.monotonic())
        pieces: list[np.ndarray] = []
        try:
            while True:
                before = len(pieces)
                try:
                    self._read_on(source, spans, pieces)
                    return pieces
                except OSError as error:
                    if len(pieces) > before:  # tries count for one read: a clip of many would use them up
                        attempt = 0
                    self._wait_or_stop(row, source, attempt, error)
                except DamagedFileError as error:
                    raise DataError(str(error)) from error
                attempt += 1
        finally:
            del self._underway[thread]

    def underway(self) -> list[str]:
        """Return the reads in progress, and for how long; the longest first."""
        now = time.monotonic()
        reads = sorted(self._underway.copy().values(), key=lambda read: read[1])
        return [f"{self._where(row)} for {now - since:.0f} s" for row, since in reads]

    def close(self) -> None:
        """End waits before a retry; reads in progress are left to their threads."""
        self._closing.set()

    def _shard_of(self, row: int) -> _Source:
        corpus, shard = self._corpus, int(self._corpus.shard[row])
        name = corpus.shard_name(shard)
        return _Source(
            name,
            lambda: reading(corpus.open_shard(shard), pread=pread),
            partial(corpus.dataset_is_there, shard),
            self._gap,
        )

    def _media_of(self, row: int) -> _Source:
        files, number = self._corpus.media(row)
        return _Source(
            files.location(number),
            lambda: files.open(number, pread=pread),
            partial(files.root_is_there, number),
            max(self._gap, REMOTE_GAP if is_url(files.location(number)) else MEDIA_GAP),
        )

    def _read_on(self, source: _Source, spans: Spans, pieces: list[np.ndarray]) -> None:
        """Read the spans behind those that `pieces` holds, and add each to it as soon as it is there."""
        offsets, sizes, known = spans.offset.tolist(), spans.size.tolist(), len(pieces)
        bytes_read = 0
        try:
            with source.opened() as read:
                for first, end in joined(offsets[known:], sizes[known:], gap=source.gap):
                    numbers = range(known + first, known + end)
                    start, last = offsets[numbers[0]], numbers[-1]
                    data = _read_whole(read, offsets[last] + sizes[last] - start, start)
                    bytes_read += len(data)
                    whole = np.frombuffer(data, dtype=np.uint8)
                    pieces += [whole[offsets[i] - start :][: sizes[i]] for i in numbers]
        finally:
            with self._lock:
                self.bytes_read += bytes_read
                self.bytes_used += sum(sizes[known : len(pieces)])

    def _wait_or_stop(self, row: int, source: _Source, attempt: int, error: OSError) -> None:
        where = f"{source.name}, sample {words_for(self._corpus, row)[0]}"
        # No mount has gone, unless it came back between the two looks: else another try would find the same.
        if isinstance(error, FileNotFoundError) and source.rest_is_there() and not _is_there(source):
            raise ShardVanishedError(where) from error
        if attempt >= self._retries:
            raise DataError(
                f"{where}: {error.strerror or error}, {attempt + 1} tries; see to it that the storage is mounted and "
                "answers, then start the same command again (data.retries gives it more time)"
            ) from error
        seconds = wait_s(attempt, who=where)
        with self._lock:
            self.num_retries += 1
        logger.warning(
            "%s: %s; try %d of %d in %.1f s",
            where, error.strerror or error, attempt + 2, self._retries + 1, seconds,
        )  # fmt: skip
        if self._closing.wait(seconds):
            raise DataError(f"{where}: closed before another try") from error

    def _where(self, row: int) -> str:
        return f"{self._corpus.shard_name(int(self._corpus.shard[row]))}, sample {words_for(self._corpus, row)[0]}"


def _is_there(source: _Source) -> bool:
    with suppress(FileNotFoundError), source.opened() as read:
        read(1, 0)  # a URL is not looked at before
        return True
    return False


def _read_whole(read: Read, size: int, offset: int) -> bytes:
    """Read `size` bytes, or those up to the end of the file; single reads may return fewer before that."""
    data = read(size, offset)
    while len(data) < size and (more := read(size - len(data), offset + len(data))):
        data += more
    return data
