import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mae3d.io.files import replace_file, sha256_of
from preprocess.dataset.index import DatasetError, open_dataset
from preprocess.dataset.layout import JPEG
from preprocess.dataset.schema import write_shard_table
from preprocess.dataset.writer import write_dataset
from tests.support.disk import Disk

SIZES = [
    [100, 512, 513, 7],
    [2000],
    [],
    [1, 2, 3],
]  # bytes of the frames of four planned samples; the third was lost


def sample_row(number: int, sizes: list[int]) -> dict[str, object]:
    lost = not sizes
    return {
        "key": f"{number:09d}",
        "name": f"vidéo {number}",
        "labels": list(range(number)),
        "split": ["train", "val"][number % 2],
        "offset": 1536 + 10_240 * number,
        "num_frames": len(sizes),
        "first": 5 * number,
        "fps": 25.0 if number else math.nan,
        "start_s": 0.25 * number,
        "width": 64 + number,
        "height": 48,
        "sizes": sizes,
        "crc32s": [1000 * number + i for i in range(len(sizes))],
        "file": f"vidéo {number}",
        "line": number + 1,
        "frame": -1,
        "reason": "unreadable" if lost else "",
        "message": "no moov" if lost else "",
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four samples in two shards, two each; the tars are only as large as they should be."""
    root = tmp_path / "set"
    root.mkdir()
    for shard in range(2):
        tar = root / f"shard-{shard:05d}.tar"
        tar.write_bytes(bytes([shard]) * 4096)
        tar.with_suffix(".idx").write_text("v1.2 0\n")
        rows = [sample_row(2 * shard + i, SIZES[2 * shard + i]) for i in range(2)]
        write_shard_table(tar.with_suffix(".parquet"), rows, tar_bytes=4096, tar_sha256=sha256_of(tar))
    write_dataset(
        root,
        tables=sorted(root.glob("shard-*.parquet")),
        settings={"quality": 90},
        label_names=["a", "b", "c"],
    )
    return root


def test_every_column_comes_back(root: Path) -> None:
    dataset = open_dataset(root)
    assert len(dataset) == 3
    assert [dataset.key(i) for i in range(3)] == ["000000000", "000000001", "000000003"]
    assert dataset.name(2) == "vidéo 3"
    assert dataset.find("000000003") == 2
    assert [dataset.labels_of(i) for i in range(3)] == [[], [0], [0, 1, 2]]
    assert dataset.label_offsets.dtype == np.int64
    assert dataset.label_names == ["a", "b", "c"]
    assert [dataset.split_names[code] for code in dataset.splits] == ["train", "val", "val"]
    assert dataset.shard.tolist() == [0, 0, 1]
    assert dataset.parts_at.tolist() == [0, 4, 5]
    assert dataset.num_frames.tolist() == [4, 1, 3]
    assert dataset.first.tolist() == [0, 5, 15]
    assert dataset.width.tolist() == [64, 65, 67]
    assert np.isnan(dataset.fps[0])
    assert dataset.fps[1:].tolist() == [25.0, 25.0]
    assert dataset.shard_path(1) == root / "shard-00001.tar"
    assert [shard.num_samples for shard in dataset.shards] == [2, 1]


def test_frames_are_found_in_any_order_each_once(root: Path) -> None:
    dataset = open_dataset(root)
    spans = dataset.spans(0, np.array([2, 0, 3, 2]))
    start = 1536
    assert spans.part.tolist() == [0, 2, 3]
    assert spans.offset.tolist() == [start, start + (512 + 512) + (512 + 512), start + 1024 + 1024 + 512 + 1024]
    assert spans.size.tolist() == [100, 513, 7]
    assert spans.size.dtype == np.int64
    assert spans.crc32.tolist() == [0, 2, 3]
    assert spans.crc32.dtype == np.uint32
    assert len(dataset.spans(0, np.array([], np.int64)).offset) == 0
    for wrong in ([4], [-1]):
        with pytest.raises(IndexError):
            dataset.spans(0, np.array(wrong))


def test_offsets_step_over_headers_and_padding() -> None:
    sizes = np.array([0, 1, 511, 512, 513])
    assert JPEG.offsets(sizes, start=512).tolist() == [512, 1024, 2048, 3072, 4096]


def test_offsets_and_sizes_beyond_32_bits_come_back(root: Path) -> None:
    """A shard of 6 GiB with a hole in it, whose samples lie beyond 5 GiB."""
    tar = root / "shard-00001.tar"
    with tar.open("r+b") as file:
        file.truncate(6 << 30)
    rows = [sample_row(2 + i, [900, 700]) | {"offset": (5 << 30) + i * (1 << 29)} for i in range(2)]
    write_shard_table(tar.with_suffix(".parquet"), rows, tar_bytes=6 << 30, tar_sha256="0" * 64)
    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={})
    dataset = open_dataset(root)
    assert dataset.shards[1].bytes == 6 << 30
    assert dataset.meta["totals"]["bytes"] == (6 << 30) + 4096
    for i, row in enumerate((2, 3)):
        start = (5 << 30) + i * (1 << 29)
        assert dataset.spans(row, np.array([0, 1])).offset.tolist() == [start, start + 512 + 1024]


def test_what_was_lost_is_listed_and_counted(root: Path) -> None:
    (row,) = pq.read_table(root / "rejected.parquet").to_pylist()
    assert (row["key"], row["line"], row["reason"], row["message"]) == (
        "000000002",
        3,
        "unreadable",
        "no moov",
    )
    totals = open_dataset(root).meta["totals"]
    assert totals["rejected"] == {"unreadable": 1}
    assert totals["samples"] == 3
    assert totals["frames"] == 8
    assert totals["seconds"] == pytest.approx(4 / 25)


def test_fingerprint_follows_the_content_not_the_place(root: Path, tmp_path: Path) -> None:
    fingerprint = open_dataset(root).fingerprint
    shutil.copytree(root, tmp_path / "moved")
    assert open_dataset(tmp_path / "moved").fingerprint == fingerprint
    table = root / "shard-00001.parquet"
    rows = [sample_row(2, []), sample_row(3, [1, 2, 4])]
    write_shard_table(table, rows, tar_bytes=4096, tar_sha256=sha256_of(table.with_suffix(".tar")))
    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={})
    assert open_dataset(root).fingerprint != fingerprint


def test_index_arrays_are_mapped_and_read_only(root: Path) -> None:
    dataset = open_dataset(root)
    for column in (dataset.offset, dataset.num_frames, dataset.label_values):
        assert not column.flags.writeable
        assert not column.flags.owndata


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: (root / "dataset.json").unlink(), "not a dataset"),
        (
            lambda root: ((root / "dataset.json").unlink(), (root / "plan.parquet").touch()),
            "unfinished build",
        ),
        (lambda root: (root / "dataset.json").write_text("{"), "cannot be read"),
        (lambda root: edit_meta(root, "schema", 99), "schema 99"),
        (lambda root: edit_meta(root, "layout", "h264"), "'h264'"),
        (lambda root: (root / "shard-00001.tar").unlink(), "shard-00001.tar: missing"),
        (lambda root: (root / "shard-00001.tar").write_bytes(b"x"), "1 bytes, dataset.json says 4096"),
        (lambda root: (root / "shard-00001.tar").write_bytes(bytes(4097)), "4097 bytes, dataset.json says 4096"),
        (lambda root: flip_last_byte(next(root.glob("frames-*.arrow"))), "sha256"),
        (lambda root: flip_last_byte(next(root.glob("index-*.parquet"))), "sha256"),
        (lambda root: next(root.glob("rows-*.arrow")).unlink(), "missing"),
    ],
)
def test_a_damaged_dataset_is_refused_with_the_file_and_a_remedy(root: Path, damage: object, message: str) -> None:
    damage(root)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(root)
    assert str(root) in str(caught.value)


def test_an_unknown_key_is_an_error(root: Path) -> None:
    with pytest.raises(DatasetError, match="000000002"):
        open_dataset(root).find("000000002")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, disk = tmp_path / "file", Disk(monkeypatch)
    path.write_text("old")

    def write_half() -> None:
        with replace_file(path) as aside:
            aside.write_text("ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    with replace_file(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"
    assert disk.renames == [("file", True)]  # its bytes lay on the disk before it had its name
    assert disk.keeps(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def edit_meta(root: Path, key: str, value: object) -> None:
    meta = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(meta | {key: value}))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_one_thread_at_a_time_reads_texts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's ParquetFile fails or crashes when two threads read it at once, but only now and then."""
    read, at_once, most = pq.ParquetFile.read_row_group, [0], [0]

    def watched(file: pq.ParquetFile, *arguments: Any, **named: Any) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        try:
            return read(file, *arguments, **named)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    dataset = open_dataset(root)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda number: dataset.key(0) if number % 2 else dataset.name(0), range(8)))
    assert texts == [dataset.name(0), dataset.key(0)] * 4
    assert most == [1]
