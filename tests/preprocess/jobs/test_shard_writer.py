"""Samples of a program become a dataset: whole or absent, the same bytes for the same calls, nothing lost silently."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mae3d.io.lock import Locked
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore
from mae3d.io.storage import Storage
from preprocess import DatasetError, ShardWriter, open_dataset
from preprocess.__main__ import main
from preprocess.inspect.verify import verify
from tests.support.builds import tree
from tests.support.datasets import colour_of

SIZE = (40, 56)  # height and width


def flat(sample: int, frames: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames of flat colours that say which sample and frame they are."""
    return np.stack([np.full((*size, 3), colour_of(sample, frame), np.uint8) for frame in range(frames)])


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(out: Path | str, count: int = 5, **settings: Any) -> ShardWriter:
    """A dataset of `count` good samples and two that are not."""
    with ShardWriter(out, **{"fps": 30, "shard_size": 3} | settings) as writer:
        for i in range(count):
            key = writer.add(flat(i, frames=2 + i), name=f"clip_{i}", label=["dog", "cat"][i % 2], split="train")
            assert key == f"{i:09d}"
        assert writer.add([png(flat(9)[0]), b"no picture"], name="broken", label="dog") is None
        writer.reject("gone", "unreadable", "my decoder: no such file")
    return writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "shards"
    write(out)
    return out


def test_what_is_written_is_whole_and_holds_each_frame_and_label(written: Path) -> None:
    assert verify(written, full=True, decode=True) == []
    dataset = open_dataset(written)
    assert dataset.label_names == ["cat", "dog"]  # sorted, as a build sorts them
    assert [dataset.name(i) for i in range(5)] == [f"clip_{i}" for i in range(5)]
    assert [dataset.labels_of(i) for i in range(5)] == [[1], [0], [1], [0], [1]]
    assert dataset.num_frames.tolist() == [2, 3, 4, 5, 6]
    assert set(dataset.fps.tolist()) == {30.0}
    assert dataset.split_names[dataset.splits[0]] == "train"
    assert len(dataset.shards) == 3
    for i in range(5):
        spans = dataset.spans(i, np.arange(dataset.num_frames[i]))
        with dataset.shard_path(int(dataset.shard[i])).open("rb") as tar:
            for frame, (offset, size) in enumerate(zip(spans.offset, spans.size, strict=True)):
                tar.seek(offset)
                pixels = np.asarray(Image.open(io.BytesIO(tar.read(size)))).astype(int)
                assert pixels.shape == (*SIZE, 3)
                assert np.abs(pixels - colour_of(i, frame)).max() <= 3


def test_what_was_left_out_is_listed_with_its_reason(written: Path) -> None:
    rows = pq.read_table(written / "rejected.parquet").to_pylist()
    assert [(row["name"], row["reason"], row["frame"]) for row in rows] == [
        ("broken", "bad_frame", 1), ("gone", "unreadable", -1),
    ]  # fmt: skip
    assert rows[1]["message"] == "my decoder: no such file"


def test_the_other_commands_take_it_for_a_dataset_of_their_own(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write(out)
    assert tree(out) == tree(written), "the same calls, the same bytes"
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.5,val=0.5"]) == 0
    assert set(open_dataset(out).split_names) == {"train", "val"}
    assert main(["report", str(out), "--no-images", "--to", str(tmp_path / "page.html")]) == 0
    frames = tmp_path / "more" / "train" / "v"
    frames.mkdir(parents=True)
    Image.fromarray(flat(3)[0]).save(frames / "img_00001.jpg")
    (tmp_path / "more" / "ledger.csv").write_text("v 1 1 bird\n")
    more = [
        "--frames",
        str(tmp_path / "more"),
        "--fps",
        "30",
        "--source-fps",
        "30",
        "--append",
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    assert main(["build", *more]) == 0
    dataset = open_dataset(out)
    assert (len(dataset), dataset.label_names) == (6, ["cat", "dog", "bird"])
    assert verify(out, full=True) == []


def test_an_error_in_the_block_leaves_the_folder_empty(tmp_path: Path) -> None:
    def fail(writer: ShardWriter) -> None:
        for name in ("a", "b", "c"):
            writer.add(flat(0), name=name)
        raise KeyError("of the caller")

    def reject(writer: ShardWriter) -> None:
        writer.reject("a", "gone", "lost")

    with pytest.raises(KeyError), ShardWriter(tmp_path / "shards", shard_size=2) as writer:
        fail(writer)
    assert list((tmp_path / "shards").iterdir()) == []
    with pytest.raises(DatasetError, match="no usable sample"), ShardWriter(tmp_path / "shards"):
        pass
    with pytest.raises(ValueError, match=r"not one of 1 samples.*a: gone: lost"), ShardWriter(tmp_path / "s") as writer:
        reject(writer)
    assert list((tmp_path / "shards").iterdir()) == []


KILLED = """
import os, signal, sys
from tests.preprocess.jobs.test_shard_writer import flat
from preprocess import ShardWriter
writer = ShardWriter(sys.argv[1], fps=30, shard_size=3)
for i in range(5):
    writer.add(flat(i, frames=2 + i), name=f"clip_{i}")
print(sorted(os.listdir(sys.argv[1])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_after_a_kill_there_is_no_dataset_and_the_same_program_begins_anew(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], capture_output=True, encoding="utf-8")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "shard-00000.tar" in killed.stdout
    with pytest.raises(DatasetError, match="unfinished"):
        open_dataset(out)
    write(out)
    assert tree(out) == tree(written)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_frames_that_fail_to_come_cost_nothing_but_their_sample(written: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from np.random.default_rng(0).integers(0, 256, (20, *SIZE, 3), dtype=np.uint8)  # longer than what follows
        raise RuntimeError("of the caller's decoder")

    with ShardWriter(tmp_path / "shards", fps=30, shard_size=3) as writer:
        for i in range(6):
            with pytest.raises(RuntimeError):
                writer.add(failing(), name="never", label="dog")
            if i == 5:
                break
            with pytest.raises(ValueError, match=r"float32 \(40, 56, 3\).*uint8"):
                writer.add(flat(0).astype(np.float32) / 255, name="never")
            writer.add(flat(i, frames=2 + i), name=f"clip_{i}", label=["dog", "cat"][i % 2], split="train")
        writer.add([png(flat(9)[0]), b"no picture"], name="broken", label="dog")
        writer.reject("gone", "unreadable", "my decoder: no such file")
    assert tree(tmp_path / "shards") == tree(written)


def test_a_dataset_is_replaced_only_on_request_and_other_folders_never(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write(out, count=2)
    with pytest.raises(DatasetError, match="overwrite=True"):
        ShardWriter(out)
    write(out, overwrite=True)
    assert tree(out) == tree(written)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match=r"letter\.txt"):
            ShardWriter(tmp_path / "home", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_folder_has_one_writer_until_it_is_closed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        writer.add(flat(0), name="a")
        with pytest.raises(Locked, match="ShardWriter"):
            ShardWriter(tmp_path / "shards")
    with pytest.raises(ValueError, match="closed"):
        writer.add(flat(0), name="a")


def test_the_files_of_a_process_that_has_taken_the_lock_over_are_left_alone(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shards", shard_size=1)
    writer.add(flat(0), name="a")
    held = FolderLockStore(tmp_path / "shards").read(LOCK_NAME)
    writer._lock._lost = held  # as its heart finds after a long silence
    with pytest.raises(Locked, match="taken over"):
        writer.add(flat(1), name="b")
    writer.abort()
    assert {"plan.parquet", "shard-00000.tar"} <= {path.name for path in (tmp_path / "shards").iterdir()}


def test_metadata_is_in_the_sample_of_the_tar_and_is_checked_at_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        with pytest.raises(ValueError, match="metadata"):
            writer.add(flat(0), name="a", metadata={"when": object()})
        writer.add(flat(0), name="a", metadata={"patient": "p 7", "values": [1, 2.5, None], "long": "é" * 3000})
    with tarfile.open(tmp_path / "shards" / "shard-00000.tar") as tar:
        text = tar.extractfile("000000000.json").read()  # type: ignore[union-attr]
    assert json.loads(text)["metadata"] == {"patient": "p 7", "values": [1, 2.5, None], "long": "é" * 3000}
    assert verify(tmp_path / "shards", full=True, decode=True) == []


def test_the_video_layout_stores_the_same_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps"):
        ShardWriter(tmp_path / "shards", layout="video")
    with ShardWriter(tmp_path / "shards", layout="video", fps=10, group=2) as writer:
        writer.add(flat(4, frames=5), name="a")
        writer.add(list(map(Image.fromarray, flat(5, frames=3))), name="b")
    assert verify(tmp_path / "shards", full=True, decode=True) == []
    dataset = open_dataset(tmp_path / "shards")
    assert (dataset.layout.name, dataset.num_frames.tolist()) == ("video", [5, 3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"qualty": 3}, "no setting qualty.*quality"),
        ({"segment_seconds": 3.0}, "no setting segment_seconds"),
        ({"quality": 101}, "quality"),
        ({"layout": "files"}, "preprocess index"),
        ({"label_names": ["a", "a"]}, "label_names.*'a'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_made(
    settings: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ShardWriter(tmp_path / "shards", **settings)
    assert not (tmp_path / "shards").exists()


def test_a_url_gets_the_same_files_and_none_after_an_error(written: Path, tmp_path: Path) -> None:
    write("memory://lib/shards", scratch=tmp_path)
    storage = Storage("memory://lib/shards")
    hashes = {name: hashlib.sha256(storage.read(name)).hexdigest() for name in storage.sizes()}
    assert hashes == tree(written)
    ShardWriter("memory://lib/shards", scratch=tmp_path, overwrite=True).abort()
    assert storage.sizes() == {}
