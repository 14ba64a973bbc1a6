import hashlib
import math
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from preprocess.dataset import writer as merge
from preprocess.dataset.index import Dataset, open_dataset
from preprocess.dataset.schema import write_shard_table
from preprocess.dataset.writer import write_dataset
from tests.support import launch

ROOT = Path(__file__).resolve().parents[3]


def make_tables(root: Path, samples: int, *, shard_size: int, seed: int = 0) -> list[dict[str, object]]:
    """Tables and empty tars of shards with random samples; returns the rows. Every fifth sample was lost."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(samples):
        count = 0 if number % 5 == 3 else int(rng.integers(1, 7))
        rows.append(
            {
                "key": f"{number:09d}",
                "name": f"clip {number}",
                "labels": rng.integers(0, 9, number % 3).tolist(),
                "split": ["val", "train", ""][number % 7 % 3],
                "offset": 1536 * (number + 1),
                "num_frames": count,
                "first": int(rng.integers(0, 1000)),
                "fps": math.nan if number % 4 == 0 else 12.5,
                "start_s": 0.5 * number,
                "width": 64,
                "height": 48 + number,
                "sizes": rng.integers(1, 9000, count).tolist(),
                "crc32s": rng.integers(0, 2**32, count).tolist(),
                "file": "list.csv",
                "line": number,
                "frame": -1,
                "reason": "" if count > 1 else "damaged" if count else "unreadable",
                "message": "",
            }
        )
    for shard, first in enumerate(range(0, samples, shard_size)):
        tar = root / f"shard-{shard:05d}.tar"
        tar.write_bytes(bytes(10_240))
        tar.with_suffix(".idx").write_text("v1.2 0\n")
        some = rows[first : first + shard_size]
        write_shard_table(tar.with_suffix(".parquet"), some, tar_bytes=10_240, tar_sha256=f"{shard:064x}")
    return rows


def merged(root: Path) -> Dataset:
    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={"quality": 90})
    return open_dataset(root)


@pytest.mark.parametrize("shard_size", [1, 4, 50])
def test_everything_comes_through_in_order(tmp_path: Path, shard_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_PARTS_PER_BATCH", 7)
    monkeypatch.setattr(merge, "_ROWS_PER_GROUP", 3)
    rows = make_tables(tmp_path, 23, shard_size=shard_size)
    dataset = merged(tmp_path)
    kept = [row for row in rows if row["num_frames"]]
    assert [dataset.key(i) for i in range(len(dataset))] == [row["key"] for row in kept]
    assert [dataset.name(i) for i in reversed(range(len(dataset)))] == [row["name"] for row in reversed(kept)]
    assert dataset.keys.to_pylist() == [row["key"] for row in kept]
    assert [dataset.labels_of(i) for i in range(len(dataset))] == [row["labels"] for row in kept]
    assert [dataset.split_names[code] for code in dataset.splits] == [row["split"] for row in kept]
    for name in ("offset", "num_frames", "first", "fps", "start_s", "width", "height"):
        assert np.array_equal(getattr(dataset, name), [row[name] for row in kept], equal_nan=True), name
    assert dataset.shard.tolist() == [int(str(row["key"])) // shard_size for row in kept]
    for i, row in enumerate(kept):
        spans = dataset.spans(i, np.arange(int(dataset.num_frames[i])))
        assert (spans.size.tolist(), spans.crc32.tolist()) == (row["sizes"], row["crc32s"])
    sizes, crc32s = dataset.part_rows(0, int(dataset.num_frames.sum()))
    assert sizes.tolist() == [size for row in kept for size in row["sizes"]]  # type: ignore[attr-defined]
    assert len(crc32s) == len(sizes)
    assert [len(part) for part in dataset.part_rows(5, 5)] == [0, 0]
    rejected = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [row["key"] for row in rejected] == [row["key"] for row in rows if row["reason"]]
    totals = dataset.meta["totals"]
    assert totals["rejected"] == {"unreadable": 4}
    assert totals["remarks"] == {"damaged": sum(row["num_frames"] == 1 for row in kept)}
    assert totals["samples_without_fps"] == sum(math.isnan(row["fps"]) for row in kept)  # type: ignore[arg-type]


def test_frames_within_one_batch_are_mapped_wherever_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a sample that lies over the border of two batches costs a copy."""
    monkeypatch.setattr(merge, "_PARTS_PER_BATCH", 7)
    make_tables(tmp_path, 23, shard_size=4)
    dataset = merged(tmp_path)
    frames = int(dataset.num_frames.sum())
    assert frames > 21
    sizes, crc32s = dataset.part_rows(0, frames)
    for start in range(frames):
        for stop in range(start + 1, min(start + 9, frames) + 1):
            size, crc32 = dataset.part_rows(start, stop)
            assert np.array_equal(size, sizes[start:stop])
            assert np.array_equal(crc32, crc32s[start:stop])
            assert size.flags.owndata == crc32.flags.owndata == (start // 7 != (stop - 1) // 7)


def test_a_rate_that_is_not_finite_is_no_rate(tmp_path: Path) -> None:
    rows = make_tables(tmp_path, 5, shard_size=5)
    for row, fps in zip(rows, (math.inf, 2.0, math.nan, 2.0, 4.0), strict=True):
        row["fps"] = fps
    tar = tmp_path / "shard-00000.tar"
    write_shard_table(tar.with_suffix(".parquet"), rows, tar_bytes=10_240, tar_sha256="0" * 64)
    totals = merged(tmp_path).meta["totals"]
    assert totals["samples_without_fps"] == 2
    assert totals["seconds"] == pytest.approx(len(rows[1]["sizes"]) / 2 + len(rows[4]["sizes"]) / 4)  # type: ignore[arg-type]


def test_files_are_cut_by_rows_not_by_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_PARTS_PER_BATCH", 7)
    monkeypatch.setattr(merge, "_ROWS_PER_GROUP", 3)
    files = {}
    for shard_size in (2, 9):
        root = tmp_path / str(shard_size)
        make_tables(root, 23, shard_size=shard_size)
        entries = merged(root).meta["files"]
        index = pq.ParquetFile(root / entries["index"]["name"]).metadata
        assert [index.row_group(group).num_rows for group in range(index.num_row_groups)] == [3, 3, 3, 3, 3, 3, 1]
        frames = pyarrow.ipc.open_file(str(root / entries["frames"]["name"]))
        counts = [frames.get_batch(number).num_rows for number in range(frames.num_record_batches)]
        assert set(counts[:-1]) == {7}
        # The column `shard` differs, all else is the same.
        files[shard_size] = [entries[stem]["sha256"] for stem in ("frames", "rejected")]
    assert files[2] == files[9]


def test_a_dataset_of_which_nothing_is_left_can_be_opened(tmp_path: Path) -> None:
    row = make_tables(tmp_path / "other", 4, shard_size=4)[3]
    (tmp_path / "set").mkdir()
    tar = tmp_path / "set" / "shard-00000.tar"
    tar.write_bytes(bytes(10_240))
    tar.with_suffix(".idx").write_text("v1.2 0\n")
    write_shard_table(tar.with_suffix(".parquet"), [row], tar_bytes=10_240, tar_sha256="0")
    dataset = merged(tmp_path / "set")
    assert len(dataset) == 0
    assert dataset.label_values.tolist() == []
    assert dataset.keys.to_pylist() == []
    assert [len(part) for part in dataset.part_rows(0, 0)] == [0, 0]


def test_more_shards_leave_old_rows_and_codes_in_their_places(tmp_path: Path) -> None:
    make_tables(tmp_path, 12, shard_size=4)
    old = merged(tmp_path)
    make_tables(tmp_path, 23, shard_size=4)
    new = merged(tmp_path)
    count = len(old)
    assert len(new) > count
    for name in ("shard", "offset", "parts_at", "num_frames", "splits", "first", "height"):
        assert np.array_equal(getattr(new, name)[:count], getattr(old, name)), name
    assert new.split_names[: len(old.split_names)] == old.split_names
    assert old.key(count - 1) == new.key(count - 1)  # the files of the old generation are still there


_KILL = """
import os, signal, sys
import pandas  # pyarrow would, in every child
from pathlib import Path
from preprocess.dataset.index import open_dataset
from preprocess.dataset.writer import write_dataset

root = Path(sys.argv[1])
calls = at = 0

def counted(call):
    def before(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return before

def in_a_child(work):  # each in a process of its own, which has no threads yet
    child = os.fork()
    if child == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
code = -9
while code:
    at += 1
    code = in_a_child(
        lambda: write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={"quality": 90})
    )
    print(code, end=" ", flush=True)
    in_a_child(lambda: print(len(open_dataset(root))))
"""


def tree(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir() if path.is_file()}


@pytest.mark.slow
def test_fault_15_a_merge_killed_anywhere_leaves_a_dataset_and_is_made_again(tmp_path: Path) -> None:
    """kill -9 before every fsync and rename of a merge that adds shards: the old dataset or the new one opens."""
    root = tmp_path / "set"
    make_tables(root, 12, shard_size=4)
    old = len(merged(root))
    make_tables(root, 23, shard_size=4)
    done = launch.run([sys.executable, "-c", _KILL, str(root)], cwd=ROOT, check=True)
    *killed, (code, new) = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert code == 0
    assert len(killed) >= 12
    assert all(code == -signal.SIGKILL for code, _ in killed)
    opened = [count for _, count in killed]
    assert opened == sorted(opened)  # the old one, and once dataset.json is replaced the new one
    assert (opened[0], new, set(opened)) == (old, len(merged(root)), {old, new})
    fresh = tmp_path / "fresh"
    make_tables(fresh, 12, shard_size=4)
    merged(fresh)
    make_tables(fresh, 23, shard_size=4)
    merged(fresh)
    left = {name: sha256 for name, sha256 in tree(root).items() if not name.startswith(".tmp-")}
    assert left == tree(fresh)
