"""Reads: near ones together, failed ones again, hung ones told; damage is found, replaced and named."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import DataConfig
from pipelines.reading import read_threads, source
from pipelines.reading import shard_reader as reads
from pipelines.reading.shard_reader import DataError, ShardReader, joined, read_gap, wait_s
from pipelines.reading.source import ClipSource, EncodedBatch, substitute
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import BatchRequest, ClipRequest
from preprocess.dataset.index import Dataset, Spans
from tests.support.damage import flip_a_bit, overwrite, zero_a_block

FRAMES = np.array([0, 2, 2, 5])


@pytest.fixture
def corpus(shards: Path, tmp_path: Path) -> Corpus:
    """A copy of the small dataset that may be damaged."""
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return open_corpus([copy])


def request(*rows: int) -> BatchRequest:
    clips = tuple(ClipRequest(row, FRAMES % 6, (View(Crop(0, 0, 30, 30, False)),)) for row in rows)
    return BatchRequest(0, np.arange(len(rows)), clips, 1)


def fetch(corpus: Corpus, *rows: int, **settings: Any) -> EncodedBatch:
    stream = ClipSource(corpus, iter([request(*rows)]), **{"read_threads": 2, "prefetch": 1} | settings)
    try:
        batch = stream.next()
        assert batch is not None
        assert stream.next() is None
        return batch
    finally:
        stream.close()


class Store:
    """Takes the place of `reads.pread`: fails, or hangs, as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.errors: list[OSError] = []
        self.hang = threading.Event()
        self.hang.set()
        self.calls = 0
        self._pread = reads.pread
        monkeypatch.setattr(reads, "pread", self)
        monkeypatch.setattr(reads, "FIRST_WAIT_S", 0.01)

    def __call__(self, descriptor: int, size: int, offset: int) -> bytes:
        self.calls += 1
        self.hang.wait(20)
        if self.errors:
            raise self.errors.pop()
        return self._pread(descriptor, size, offset)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    store = Store(monkeypatch)
    yield store
    store.hang.set()


def test_spans_are_joined_up_to_the_gap() -> None:
    offsets, sizes = [0, 1000, 2000, 9000], [400, 500, 10, 10]
    assert joined(offsets, sizes, gap=0) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert joined(offsets, sizes, gap=600) == [(0, 3), (3, 4)]
    assert joined(offsets, sizes, gap=599) == [(0, 1), (1, 3), (3, 4)]
    assert joined(offsets, sizes, gap=1 << 20) == [(0, 4)]


def test_the_gap_is_nothing_for_folders_and_256_kib_for_urls() -> None:
    assert read_gap(DataConfig(shards="out/shards")) == 0
    assert read_gap(DataConfig(shards=("out/shards", "s3://bucket/shards"))) == 256 << 10
    assert read_gap(DataConfig(shards="s3://bucket/shards", read_gap=7)) == 7


@pytest.mark.parametrize("gap", [0, 5000, 1 << 20])
def test_every_gap_gives_the_same_bytes_and_the_count_of_what_was_read(corpus: Corpus, gap: int) -> None:
    reader = ShardReader(corpus, gap=gap, retries=0)
    for row in range(1, len(corpus)):
        spans = corpus.spans(row, np.arange(0, corpus.num_frames[row], 2))
        tar = corpus.shard_path(int(corpus.shard[row])).read_bytes()
        expected = [tar[o : o + s] for o, s in zip(spans.offset.tolist(), spans.size.tolist(), strict=True)]
        assert [piece.tobytes() for piece in reader.read(row, spans)] == expected
    assert reader.bytes_used <= reader.bytes_read
    assert (reader.bytes_read / reader.bytes_used == 1) == (gap == 0)


@pytest.mark.parametrize("gap", [0, 1 << 20])
def test_frames_beyond_32_bits_are_read(corpus: Corpus, gap: int) -> None:
    """In a shard with a hole, which takes no room on the disk."""
    offsets = [(1 << 31) + 512, 5 << 30, (5 << 30) + 2048]
    with corpus.shard_path(int(corpus.shard[3])).open("r+b") as shard:
        for number, offset in enumerate(offsets):
            shard.seek(offset)
            shard.write(bytes([number]) * 700)
    spans = Spans(np.arange(3), np.array(offsets), np.full(3, 700), np.zeros(3, np.uint32))
    pieces = ShardReader(corpus, gap=gap, retries=0).read(3, spans)
    assert [piece.tobytes() for piece in pieces] == [bytes([number]) * 700 for number in range(3)]


def test_a_frame_that_is_taken_twice_is_read_once(corpus: Corpus, store: Store) -> None:
    batch = fetch(corpus, 3)
    assert store.calls == 3
    assert len(batch.frames) == 4
    assert batch.frames[1] is batch.frames[2]


def test_a_read_that_brings_less_than_was_asked_goes_on(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fetch(corpus, 3, 4)
    monkeypatch.setattr(reads, "pread", lambda fd, size, offset: os.pread(fd, min(size, 100), offset))
    pieces = fetch(corpus, 3, 4)
    assert all(np.array_equal(a, b) for a, b in zip(whole.frames, pieces.frames, strict=True))
    assert pieces.damage == ()


def test_latency_is_waited_for_by_all_threads_at_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, now, most = threading.Lock(), 0, 0
    read = os.pread

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        return read(descriptor, size, offset)

    monkeypatch.setattr(reads, "pread", slow)
    stream = ClipSource(corpus, iter([request(1, 2, 3, 4)] * 6), read_threads=DataConfig().read_threads, prefetch=4)
    while stream.next() is not None:
        pass
    stream.close()
    assert most == 16  # four batches ahead of four clips each


def test_waits_double_are_bounded_and_differ_between_samples() -> None:
    waits = [wait_s(attempt, who="a") for attempt in range(10)]
    assert waits == [wait_s(attempt, who="a") for attempt in range(10)]
    for attempt, wait in enumerate(waits):
        assert 0.5 <= wait / min(2**attempt, 30) <= 1
    assert len({wait_s(0, who=str(sample)) for sample in range(100)}) > 90


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET])
def test_fault_37_a_failed_read_is_tried_again_with_a_new_descriptor(
    corpus: Corpus, store: Store, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []
    monkeypatch.setattr(Corpus, "open_shard", _recording(opened, Corpus.open_shard))
    store.errors = [OSError(number, os.strerror(number)) for _ in range(2)]
    stream = ClipSource(corpus, iter([request(3)]), read_threads=1, prefetch=1, retries=2)
    batch = stream.next()
    stream.close()
    assert batch is not None
    assert batch.damage == ()
    assert stream.reader.num_retries == 2
    assert len(opened) == 3
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(os.strerror(number) in line and corpus.key(3) in line for line in told)


def _recording(calls: list[int], function: Any) -> Any:
    def recorded(self: Any, shard: int) -> Any:
        calls.append(shard)
        return function(self, shard)

    return recorded


def test_fault_37_a_store_that_stays_away_stops_with_its_name_and_the_remedy(corpus: Corpus, store: Store) -> None:
    store.errors = [OSError(errno.ESTALE, os.strerror(errno.ESTALE)) for _ in range(100)]
    with pytest.raises(DataError) as stopped:
        fetch(corpus, 3, retries=3)
    assert store.calls == 4
    for part in ("shard-0000", corpus.key(3), os.strerror(errno.ESTALE), "4 tries", "mounted", "data.retries"):
        assert part in str(stopped.value)


def test_fault_37_tries_count_for_one_read_not_for_all_of_a_clip(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "FIRST_WAIT_S", 0.001)
    tried: list[int] = []

    def every_read_fails_once(descriptor: int, size: int, offset: int) -> bytes:
        tried.append(offset)
        if tried.count(offset) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return os.pread(descriptor, size, offset)

    monkeypatch.setattr(reads, "pread", every_read_fails_once)
    clip = fetch(corpus, 3, retries=1)
    assert clip.damage == ()
    assert len(set(tried)) > 2
    assert all(tried.count(offset) == 2 for offset in tried)  # what was there is not read again


def test_fault_37_a_vanished_dataset_is_the_storage_and_not_damage(corpus: Corpus, store: Store) -> None:
    folder = corpus.shard_path(0).parent
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(DataError, match="2 tries"):
        fetch(corpus, 3, retries=1)
    threading.Timer(0.05, lambda: folder.with_name("unmounted").rename(folder)).start()
    assert fetch(corpus, 3, retries=20).damage == ()  # mounted again in time


def test_fault_37_a_dataset_that_is_mounted_again_between_two_looks_is_no_damage(
    corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = corpus.shard_path(0).parent
    folder.rename(folder.with_name("unmounted"))

    def mounted_again(shard: int) -> bool:
        if not folder.exists():
            folder.with_name("unmounted").rename(folder)
        return True

    monkeypatch.setattr(corpus, "dataset_is_there", mounted_again)
    assert fetch(corpus, 3, retries=1).damage == ()


def test_fault_37_a_hung_store_is_told_by_name_and_does_not_keep_us_from_closing(
    corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source, "SLOW_S", 0.05)
    monkeypatch.setattr(read_threads, "CLOSE_S", 0.2)
    store.hang.clear()
    stream = ClipSource(corpus, iter([request(3)] * 3), read_threads=2, prefetch=2)
    threading.Timer(0.3, store.hang.set).start()
    assert stream.next() is not None
    waiting = [record.getMessage() for record in caplog.records]
    assert waiting
    assert all("waits for the storage" in line and corpus.key(3) in line for line in waiting)
    store.hang.clear()
    monkeypatch.setattr(store, "errors", [])
    stream._read_ahead()
    hung = ClipSource(corpus, iter([request(4)]), read_threads=2, prefetch=1)
    time.sleep(0.05)
    start = time.monotonic()
    hung.close()
    assert time.monotonic() - start < 5
    assert corpus.key(4) in caplog.records[-1].getMessage()
    store.hang.set()
    stream.close()


def test_fault_37_closing_ends_the_wait_for_another_try(
    corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(reads, "LONGEST_WAIT_S", 1000.0)
    store.errors = [OSError(errno.EIO, "") for _ in range(10)]
    stream = ClipSource(corpus, iter([request(3)]), read_threads=1, prefetch=1)
    while not stream.reader.num_retries:
        time.sleep(0.005)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < read_threads.CLOSE_S


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), pa.ArrowInvalid("not a page")])
def test_fault_20_damage_is_told_where_the_index_cannot_be_read_either(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unreadable(self: Any, column: str, whole: str, i: int) -> str:
        raise error

    overwrite(corpus, 3, flip_a_bit)
    monkeypatch.setattr(Dataset, "_text", unreadable)
    (damage,) = fetch(corpus, 3).damage
    assert "number 3" in str(damage)


@pytest.mark.parametrize("how", ["flipped bit", "zeroed block", "truncated shard", "vanished shard"])
def test_fault_20_damage_is_replaced_alike_everywhere_and_named(corpus: Corpus, how: str) -> None:
    path = corpus.shard_path(int(corpus.shard[5]))
    if how == "flipped bit":
        overwrite(corpus, 5, flip_a_bit, frames=slice(2, 3))
        reason = "its crc32 is"
    elif how == "zeroed block":
        overwrite(corpus, 5, zero_a_block)
        reason = "its crc32 is"
    elif how == "truncated shard":
        os.truncate(path, int(corpus.spans(5, np.array([2])).offset[0]) + 10)
        reason = "the shard ends after 10 of its"
    else:
        path.unlink()
        reason = "the shard has vanished"
    batches = [
        fetch(corpus, 5, 1, 5, read_threads=threads, spares=np.array([8, 9, 10]), retries=0) for threads in (1, 3)
    ]
    for batch in batches:
        first = batch.damage[0]
        assert (first.shard, first.key, first.name) == (str(path), corpus.key(5), corpus.name(5))
        assert first.frame in (0, 2)
        assert reason in first.reason
        assert batch.substituted == (True, False, True)
        assert batch.clips[0].row == batch.clips[2].row
        assert batch.clips[0].row in (8, 9, 10)
        assert all(frame.tobytes()[:2] == b"\xff\xd8" for frame in batch.frames)
    assert [clip.row for clip in batches[0].clips] == [clip.row for clip in batches[1].clips]
    assert batches[0].damage == batches[1].damage


def test_fault_20_too_few_whole_samples_stop_with_the_list(corpus: Corpus) -> None:
    for shard in range(len(corpus.datasets[0].shards)):
        corpus.shard_path(shard).unlink()
    with pytest.raises(DataError) as stopped:
        fetch(corpus, 3)
    assert str(stopped.value).count("the shard has vanished") == source.MAX_SUBSTITUTES + 1
    assert "verify" in str(stopped.value)


def test_a_substitute_fits_its_frame_and_is_drawn_from_the_spares(corpus: Corpus) -> None:
    spares = np.array([0, 3, 6, 9])
    asked = ClipRequest(5, np.array([0, 8, 20]), (View(Crop(7, 9, 40, 50, True)),))
    taken = [substitute(corpus, asked, attempt, spares=spares) for attempt in range(1, 60)]
    assert {clip.row for clip in taken} == set(spares.tolist())
    for clip in taken:
        assert clip.frames.max() < corpus.num_frames[clip.row]
        crop = clip.views[0].crop
        assert crop.flip
        assert crop.top + crop.height <= corpus.height[clip.row]
        assert crop.left + crop.width <= corpus.width[clip.row]
