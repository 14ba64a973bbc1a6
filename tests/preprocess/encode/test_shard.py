import errno
import gc
import json
import math
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import wds2idx
import webdataset
from nvidia.dali import fn, pipeline_def

from mae3d.video.errors import MediaError
from preprocess.dataset.index import open_dataset
from preprocess.encode.images import decode_image
from preprocess.encode.shared_shard import build_shard
from preprocess.jobs.output import FolderOutput
from preprocess.jobs.output_state import survey
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Folder
from preprocess.workers.decoder import Decoder
from tests.support.media import frame_number, make_dataset, make_frame_folder


def planned(number: int, name: str, frames: int) -> PlannedSample:
    where = {"prefix": "img_", "digits": 5, "suffix": ".jpg", "file": "ledger.csv", "line": number + 1}
    return PlannedSample(
        number, 0, "frames", 0, name, name, [number, 7], "", first=1, stop=frames + 1, start_s=math.nan, **where
    )  # type: ignore[arg-type]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three folders; the second has lost its last frame since the plan was made. Names that could trip a reader."""
    for name, count in (("clips/one.two three", 4), ("lost", 2), ("naïve " + "x" * 200, 3)):
        make_frame_folder(tmp_path / "frames" / name, count)
    return tmp_path / "frames"


def build(frames: Path, out: Path) -> None:
    out.mkdir()
    samples = [planned(0, "clips/one.two three", 4), planned(1, "lost", 3), planned(2, "naïve " + "x" * 200, 3)]
    result = build_shard(0, samples, roots=[Folder(frames)], settings=Settings(), folder=nullcontext(out))
    assert (result.num_samples, result.num_frames) == (2, 7)
    assert [(name, reason) for name, reason, _ in result.rejected] == [("lost", "missing_frame")]


def test_members_are_plain_contiguous_and_anonymous(frames: Path, tmp_path: Path) -> None:
    build(frames, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            "000000000.json",
            *(f"000000000.{i:06d}.jpg" for i in range(4)),
            "000000002.json",
            *(f"000000002.{i:06d}.jpg" for i in range(3)),
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
            (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        }
        description = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]
        frame = tar.extractfile("000000002.000001.jpg")
        assert frame is not None
        assert frame.read() == (frames / ("naïve " + "x" * 200) / "img_00002.jpg").read_bytes()
    assert description == {
        "name": "clips/one.two three",
        "range": [1, 5],
        "num_frames": 4,
        "fps": None,
        "start_s": None,
        "width": 64,
        "height": 48,
    }


@pytest.mark.parametrize("fails", ["first", "middle", "last"])
def test_a_sample_that_fails_after_it_wrote_leaves_nothing_in_the_tar(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A decoder that is killed cannot take back its bytes; the files are those of a sample that wrote none."""
    write, at = Decoder.write, {"first": 0, "middle": 1, "last": 2}[fails]

    def build_one(out: Path, junk: bytes) -> None:
        def fails_at_it(self: Decoder, sample: PlannedSample, files: Any, **arguments: Any) -> Any:
            if sample.number != at:
                return write(self, sample, files, **arguments)
            with arguments["tar"].open("r+b") as tar:
                tar.seek(arguments["start"])
                tar.write(junk)
            raise MediaError("crashed", "the decoder died of SIGKILL")

        monkeypatch.setattr(Decoder, "write", fails_at_it)
        out.mkdir()
        names = ["clips/one.two three", "lost", "naïve " + "x" * 200]
        samples = [planned(number, name, 2) for number, name in enumerate(names)]
        result = build_shard(0, samples, roots=[Folder(frames)], settings=Settings(), folder=nullcontext(out))
        assert [(name, reason) for name, reason, _ in result.rejected] == [(names[at], "crashed")]

    build_one(tmp_path / "clean", b"")
    build_one(tmp_path / "junk", b"left over" * 100_000)
    for path in (tmp_path / "clean").iterdir():
        assert path.read_bytes() == (tmp_path / "junk" / path.name).read_bytes(), path.name


def test_the_table_holds_every_planned_sample(frames: Path, tmp_path: Path) -> None:
    build(frames, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "shard-00000.parquet").to_pylist()
    assert [row["num_frames"] for row in rows] == [4, 0, 3]
    assert (rows[1]["reason"], rows[1]["frame"], rows[1]["line"]) == ("missing_frame", 3, 2)
    assert "img_00003.jpg" in rows[1]["message"]
    assert rows[2]["labels"] == [2, 7]


def test_the_idx_is_what_dali_would_write(frames: Path, tmp_path: Path) -> None:
    build(frames, tmp_path / "out")
    tar = tmp_path / "out" / "shard-00000.tar"
    with wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
        creator.create_index()
    assert tar.with_suffix(".idx").read_text() == (tmp_path / "theirs.idx").read_text()


def kept(out: Path) -> list[int | None]:
    """How many samples the first two shards have; None = to be built."""
    return [shard.num_samples for shard in survey(range(2), FolderOutput(out), out)]


def test_a_shard_is_done_when_all_its_files_are_there(frames: Path, tmp_path: Path) -> None:
    build(frames, tmp_path / "out")
    stem = tmp_path / "out" / "shard-00000"
    assert kept(tmp_path / "out") == [2, None]
    stem.with_suffix(".tar").write_bytes(b"half")
    assert kept(tmp_path / "out") == [None, None]


@pytest.mark.parametrize("suffix", [".tar", ".idx", ".parquet"])
def test_a_shard_without_one_of_its_files_is_not_done(frames: Path, tmp_path: Path, suffix: str) -> None:
    build(frames, tmp_path / "out")
    (tmp_path / "out" / "shard-00000").with_suffix(suffix).unlink()
    assert kept(tmp_path / "out") == [None, None]


def test_a_shard_that_cannot_be_read_is_not_made_again(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(frames, tmp_path / "out")

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pq, "ParquetFile", stale)
    with pytest.raises(OSError, match=r"Stale file handle: .*shard-00000\.parquet"):
        kept(tmp_path / "out")


def test_a_shard_depends_on_its_arguments_only(frames: Path, tmp_path: Path) -> None:
    build(frames, tmp_path / "one")
    build(frames, tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close what it has read
def test_fault_08_webdataset_reads_the_shards(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=6, frames=[3, 4, 5, 6, 7, 8])
    dataset = open_dataset(shards)
    urls = [str(dataset.shard_path(shard)) for shard in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [dataset.key(i) for i in range(6)]
    for i, sample in enumerate(samples):
        assert json.loads(sample["json"])["name"] == dataset.name(i)
        jpegs = [value for key, value in sorted(sample.items()) if key.endswith(".jpg")]
        assert [frame_number(decode_image(jpeg)) for jpeg in jpegs] == [16 * i + f for f in range(3 + i)]


def test_fault_08_dali_reads_the_shards_with_their_idx(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=6, frames=4)
    tars = sorted(str(path) for path in shards.glob("*.tar"))

    @pipeline_def(batch_size=6, num_threads=1, device_id=None)
    def first_and_last():  # type: ignore[no-untyped-def]
        return tuple(
            fn.decoders.image(jpeg)
            for jpeg in fn.readers.webdataset(
                paths=tars,
                index_paths=[tar.replace(".tar", ".idx") for tar in tars],
                ext=["000000.jpg", "000003.jpg"],
                missing_component_behavior="error",
            )
        )

    first, last = first_and_last().run()
    dataset = open_dataset(shards)
    for i in range(6):
        spans = dataset.spans(i, np.array([0, 3]))
        tar = dataset.shard_path(int(dataset.shard[i])).read_bytes()
        for pixels, offset, size in zip((first, last), spans.offset, spans.size, strict=True):
            ours = np.asarray(decode_image(tar[offset : offset + size]), int)
            assert np.abs(ours - np.asarray(pixels.at(i), int)).max() <= 8  # two JPEG decoders
