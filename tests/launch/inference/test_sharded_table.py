"""launch/inference/sharded_table.py: one table, however many processes made it, wherever they were killed."""

import errno
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from launch.common.eval_set import EvalSet
from launch.inference import sharded_table
from launch.inference.evaluate import sample_keys, sample_settings
from launch.inference.sharded_table import (
    MAX_SHARDS,
    ShardedTable,
    TableError,
    fill_missing_shards,
)
from pipelines.config import DataConfig, SelectConfig
from pipelines.samples.corpus import corpus_of
from pipelines.stream import Batch
from tests.support import launch
from tests.support.ranks import run_ranks

ROWS, BATCH = 23, 3


class Alone:
    """A world of which this process is one of `size`, none of which waits for another."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.ranks = type("Place", (), {"rank": rank, "size": size})
        self.is_first = rank == 0

    def barrier(self) -> None:
        pass

    def on_first(self, call: Callable[[], Any]) -> Any:
        return call()


class Counting:
    """A stream whose clips are the numbers of their rows; every seventh cannot be read."""

    def __init__(self, rows: np.ndarray, on_batch: Callable[[], None] = lambda: None) -> None:
        self.batches = iter([rows[i : i + BATCH] for i in range(0, len(rows), BATCH)])
        self.seen: list[list[int]] = []
        self.closed, self.on_batch = False, on_batch

    def __next__(self) -> Batch:
        self.on_batch()
        rows = next(self.batches)
        self.seen.append(rows.tolist())
        status = torch.from_numpy((2 * (rows % 7 == 6)).astype(np.int8))
        numbers = torch.from_numpy(rows)
        views = torch.stack([torch.zeros_like(status), status], dim=1)  # the second view alone is a substitute
        return Batch(numbers, torch.zeros(len(rows), 2), numbers, 0, views, numbers[:, None].expand(-1, 2))

    def close(self) -> None:
        self.closed = True


def keys_of(rows: np.ndarray) -> Mapping[str, pa.Array]:
    return {"key": pa.array([f"{row:06d}" for row in rows.tolist()])}


def columns_of(batch: Batch) -> Mapping[str, pa.Array]:
    values = batch.clips.tolist()
    several = pa.array([[value / 2, value / 4] for value in values], pa.list_(pa.float32()))
    return {"square": pa.array([value**2 for value in values], pa.int64()), "scores": several}


def table_in(
    folder: Path, *, num_rows: int = ROWS, batch_size: int = BATCH, row_bytes: int = 0, **settings: Any
) -> ShardedTable:
    settings = {"model": "abc", "views": {"clips": 2}} | settings
    return ShardedTable(
        folder / "t.parquet", num_rows=num_rows, batch_size=batch_size, settings=settings, row_bytes=row_bytes
    )


def make(table: ShardedTable, world: Any = None, open_stream: Callable[[np.ndarray], Any] = Counting) -> bool:
    return fill_missing_shards(
        table, world=world or Alone(), open_stream=open_stream, keys_of=keys_of, columns_of=columns_of
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_table_holds_every_row_once_in_order_and_null_for_what_was_not_read(tmp_path: Path) -> None:
    assert make(table_in(tmp_path)) is True
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["key", "square", "scores"]
    assert table["key"].to_pylist() == [f"{i:06d}" for i in range(ROWS)]
    assert table["square"].to_pylist() == [None if i % 7 == 6 else i * i for i in range(ROWS)]
    assert table["scores"].to_pylist() == [None if i % 7 == 6 else [i / 2, i / 4] for i in range(ROWS)]
    assert files(tmp_path) == ["t.parquet"]


def test_rows_are_in_memory_by_groups_however_long_the_table_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is a thousandth of the table: of tokens of many samples it may be larger than the memory."""
    monkeypatch.setattr(sharded_table, "MAX_SHARDS", 1)
    monkeypatch.setattr(sharded_table, "ROW_GROUP_BYTES", 1000)
    held, joined = [], pa.concat_tables
    monkeypatch.setattr(
        pa, "concat_tables", lambda tables: held.append(sum(t.nbytes for t in tables)) or joined(tables)
    )
    table = table_in(tmp_path, num_rows=1000)
    assert table.num_shards == 1
    make(table)
    assert 1000 <= max(held) < 1200
    assert pq.read_table(table.path)["key"].to_pylist() == [f"{i:06d}" for i in range(1000)]


def test_a_table_of_failures_alone_keeps_its_types(tmp_path: Path) -> None:
    def all_failed(rows: np.ndarray) -> Counting:
        return Counting(np.full(len(rows), 6))

    make(table_in(tmp_path), open_stream=all_failed)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["scores"].type == pa.list_(pa.float32())
    assert table["scores"].null_count == ROWS


@pytest.mark.parametrize("num_rows", [1, 3, 23, MAX_SHARDS * BATCH, MAX_SHARDS * BATCH + 1, 50_000])
def test_parts_are_whole_batches_that_cover_the_rows_and_not_too_many(tmp_path: Path, num_rows: int) -> None:
    table = table_in(tmp_path, num_rows=num_rows)
    assert [row for part in range(table.num_shards) for row in table.rows(part)] == list(range(num_rows))
    assert table.shard_rows % BATCH == 0
    assert all(len(table.rows(part)) == table.shard_rows for part in range(table.num_shards - 1))
    assert min(num_rows / BATCH, MAX_SHARDS / 2) <= table.num_shards <= MAX_SHARDS


def test_processes_share_the_parts_and_batches_never_change(tmp_path: Path) -> None:
    alone, batches = table_in(tmp_path / "alone"), []
    make(alone, open_stream=lambda rows: batches.append(Counting(rows)) or batches[-1])
    shared, of_rank = table_in(tmp_path / "shared"), []
    shared.begin()
    missing = shared.begin()
    for rank in (2, 1, 0):  # the first process merges
        world = Alone(rank, 3)
        world.on_first = lambda call: (missing, False)  # type: ignore[method-assign]
        make(shared, world, open_stream=lambda rows: of_rank.append(Counting(rows)) or of_rank[-1])
    assert sorted(batch for stream in of_rank for batch in stream.seen) == batches[0].seen
    assert all(stream.closed for stream in of_rank)
    assert shared.path.read_bytes() == alone.path.read_bytes()


def _rank(world: Any, folder: str) -> bool:
    return make(table_in(Path(folder)), world)


def test_two_real_processes_give_the_same_bytes(tmp_path: Path) -> None:
    make(table_in(tmp_path / "one"))
    assert run_ranks(_rank, str(tmp_path / "two"), world=2) == [True, True]
    assert (tmp_path / "two" / "t.parquet").read_bytes() == (tmp_path / "one" / "t.parquet").read_bytes()


def _slowly(folder: Path) -> None:
    make(table_in(folder), open_stream=lambda rows: Counting(rows, lambda: time.sleep(0.004)))


@pytest.mark.slow
def test_fault_40_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 at random moments, before, between and after the shards and the merge, until one start comes through."""
    make(table_in(tmp_path / "uncut"))
    expected, rng, kills = (tmp_path / "uncut" / "t.parquet").read_bytes(), random.Random(1), 0
    for loop in range(6):
        folder, most = tmp_path / str(loop), 0.02
        while not (folder / "t.parquet").exists():
            kills += launch.killed_after(rng.uniform(0, most), _slowly, folder)
            most += 0.01
        make(table_in(folder))
        assert (folder / "t.parquet").read_bytes() == expected
        assert files(folder) == ["t.parquet"]
    assert kills >= 12


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def fails_after(batches: int) -> Callable[[np.ndarray], Counting]:
        left = iter([None] * batches)

        def on_batch() -> None:
            if next(left, Stop) is Stop:
                raise Stop

        return lambda rows: Counting(rows, on_batch)

    table = table_in(tmp_path)
    with pytest.raises(Stop):
        make(table, open_stream=fails_after(3))
    assert files(table.folder) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "settings.json"]
    seen: list[Counting] = []
    make(table, open_stream=lambda rows: seen.append(Counting(rows)) or seen[0])
    assert seen[0].seen[0] == [9, 10, 11]


def test_a_merge_that_was_killed_is_done_again_and_a_finished_table_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedTable, "merge", lambda self: None)
        make(table)
    assert table.begin() == []
    assert not table.is_finished
    assert make(table, open_stream=None) is True  # type: ignore[arg-type]
    before = table.path.stat().st_mtime_ns
    table.folder.mkdir()  # killed between the rename and the removal
    assert make(table, open_stream=None) is False  # type: ignore[arg-type]
    assert table.path.stat().st_mtime_ns == before
    assert files(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(tmp_path: Path, finished: bool) -> None:
    table = table_in(tmp_path)
    if finished:
        make(table)
    else:
        table.begin()
        table.write(0, [pa.table({"key": ["a"] * BATCH})])
    other = table_in(tmp_path, model="xyz", views={"clips": 5}, batch_size=4)
    with pytest.raises(TableError) as refused:
        make(other)
    told = str(refused.value)
    assert "model was 'abc' and is 'xyz'; rows_at_once was 3 and is 4; views.clips was 2 and is 5. Give another" in told
    assert str(table.path if finished else table.folder) in told
    assert "rows was" not in told


def test_before_the_first_part_other_settings_cost_nothing(tmp_path: Path) -> None:
    table_in(tmp_path).begin()
    make(table_in(tmp_path, model="xyz"))
    assert b'"xyz"' in pq.read_schema(tmp_path / "t.parquet").metadata[b"mae3d"]


def test_a_table_that_the_disk_cannot_hold_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards and then their copy; shards that are there already need no more room."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"a table of 23 rows of 230 bytes.* of disk are needed") as refused:
        make(table_in(tmp_path, row_bytes=230))
    assert refused.value.errno == errno.ENOSPC
    assert files(tmp_path) == []
    begun = table_in(tmp_path, row_bytes=200)
    begun.begin()
    begun.write(0, [pa.table({"key": ["a"] * BATCH})])
    assert table_in(tmp_path, row_bytes=230).begin() == list(range(1, begun.num_shards))


def test_two_starts_at_once_with_other_settings_never_mix(tmp_path: Path) -> None:
    """Before the first part is there, neither sees the other."""
    ours, others = table_in(tmp_path), table_in(tmp_path, model="xyz")
    ours.begin()
    others.begin()
    others.write(2, [pa.table({"key": ["a"] * BATCH})])
    for part in {*range(ours.num_shards)} - {2}:
        ours.write(part, [pa.table({"key": ["b"] * len(ours.rows(part))})])
    with pytest.raises(TableError, match=r"part-00002\.parquet was made with other settings: model was 'xyz'"):
        ours.merge()
    assert not ours.is_finished


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"PAR1", b"XXXX"), lambda _: b""])
def test_a_damaged_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    table = table_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedTable, "merge", lambda self: None)
        make(table)
    file = table.folder / "part-00003.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TableError, match=r"part-00003\.parquet: .*delete it"):
        make(table)
    file.unlink()
    make(table)
    assert len(pq.read_table(table.path)) == ROWS


def test_a_file_of_another_origin_is_not_replaced(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match="not a table of ours"):
        make(table_in(tmp_path))
    (tmp_path / "t.parquet").write_text("name,label\n")
    with pytest.raises(TableError, match="no Parquet file"):
        make(table_in(tmp_path))


def test_a_part_that_the_first_process_cannot_see_is_named(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    table.begin()
    with pytest.raises(FileNotFoundError, match=r"part-00000\.parquet is missing: .*--out"):
        table.merge()
    assert not table.is_finished


def test_long_tables_are_merged_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.inference.sharded_table.ROW_GROUP_BYTES", 200)
    make(table_in(tmp_path))
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert metadata.num_row_groups > 2
    assert metadata.num_rows == ROWS


@pytest.fixture(scope="module")
def corpus_and_clips(shards: Path) -> tuple[Any, DataConfig]:
    clips = DataConfig(shards=str(shards))
    return corpus_of(clips), clips


def test_keys_names_and_labels_of_samples(corpus_and_clips: tuple[Any, DataConfig]) -> None:
    corpus, _ = corpus_and_clips
    keys = sample_keys(corpus, np.array([5, 2]))
    assert keys["key"].to_pylist() == [corpus.key(5), corpus.key(2)]
    assert keys["name"].to_pylist() == ["clip_05", "clip_02"]
    assert keys["labels"].to_pylist() == [[1], [2]]


def test_settings_tell_other_samples_labels_and_sampling_but_not_where_they_lie(
    corpus_and_clips: tuple[Any, DataConfig], shards: Path, tmp_path: Path
) -> None:
    corpus, clips = corpus_and_clips
    rows = np.arange(14)
    same = sample_settings(EvalSet(corpus, clips, rows))
    assert (
        sample_settings(EvalSet(corpus, DataConfig(shards="elsewhere", select=SelectConfig(split="x")), rows)) == same
    )
    assert sample_settings(EvalSet(corpus, clips, rows[1:])) != same
    assert sample_settings(EvalSet(corpus, DataConfig(shards=str(shards), sampling_rate=2), rows)) != same
    (tmp_path / "labels.csv").write_text("name,label\nclip_03,2\n")
    relabelled = DataConfig(shards=str(shards), labels=str(tmp_path / "labels.csv"))
    assert sample_settings(EvalSet(corpus_of(relabelled), relabelled, rows)) != same
