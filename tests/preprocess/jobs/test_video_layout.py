"""`build --layout video`: from every source, the same bytes whatever happens, and what other commands make of it."""

import gc
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from mae3d.video.groups import GroupDecoder
from preprocess.__main__ import main
from preprocess.dataset.index import Dataset, DatasetError, open_dataset, parse_meta
from preprocess.encode import group_encoder
from preprocess.inspect.filmstrip import write_filmstrip
from preprocess.inspect.sample import describe
from preprocess.inspect.verify import verify
from tests.support.builds import SMALL, command, make_archive, tree
from tests.support.kills import kill_at_every
from tests.support.media import frame_number, make_frame_folder, make_video, numbered_image

VIDEO = ("--layout", "video", "--fps", "10")
CLOCK = ("--source-fps", "10")  # of frame folders
FOLDERS = (*VIDEO, *CLOCK, "--group", "3")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame folders of 24 clips of 4 frames with a ledger."""
    return make_archive(tmp_path_factory.mktemp("archive") / "frames", size=SMALL)


@pytest.fixture(scope="module")
def built(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("video") / "out"
    assert main(command(frames, out, *FOLDERS)) == 0
    return out


def numbers(dataset: Dataset, i: int) -> list[int]:
    """Return the numbers that the stored frames of a sample show."""
    found, decoder = [], GroupDecoder()
    spans = dataset.spans(i, np.arange(int(dataset.num_frames[i])))
    tar = dataset.shard_path(int(dataset.shard[i])).read_bytes()
    for part, offset, size in zip(spans.part.tolist(), spans.offset.tolist(), spans.size.tolist(), strict=True):
        count = min(dataset.layout.group, int(dataset.num_frames[i]) - part * dataset.layout.group)
        for frame in decoder.decode(tar[offset : offset + size], range(count)):
            picture = np.empty((int(dataset.height[i]), int(dataset.width[i]), 3), np.uint8)
            decoder.rgb(frame, picture)
            found.append(frame_number(Image.fromarray(picture)))
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close what it has read
def test_frame_folders_become_streams_in_their_shards(built: Path) -> None:
    dataset = open_dataset(built)
    assert len(dataset) == 24
    assert all(numbers(dataset, i) == [4 * i + f for f in range(4)] for i in (0, 11, 23))
    meta = dataset.meta
    assert (meta["layout"], meta["codec"], meta["group"]) == ("video", "h264", 3)
    assert meta["settings"]["codec_version"] == group_encoder.codec_version()
    assert not {"quality", "check"} & meta["settings"].keys()
    assert {"groups", "index", "rows", "rejected"} == meta["files"].keys()
    assert "groups_at" in pq.read_schema(built / meta["files"]["index"]["name"]).names
    with tarfile.open(built / "shard-00000.tar") as tar:
        assert tar.getnames()[:4] == ["000000000.json", "000000000.h264", "000000001.json", "000000001.h264"]
        described = json.loads(tar.extractfile("000000000.json").read())  # type: ignore[union-attr]
        assert (described["codec"], described["group"], described["num_frames"]) == ("h264", 3, 4)
        stream = tar.extractfile("000000000.h264").read()  # type: ignore[union-attr]
    samples = list(webdataset.WebDataset([str(built / "shard-00000.tar")], shardshuffle=False))
    gc.collect()  # it leaves its file open
    assert samples[0]["h264"] == stream
    assert len(samples) == 5
    lines = (built / "shard-00000.idx").read_text().splitlines()
    _, offset, size, name = lines[1].split()[4:]
    assert (name, int(size)) == ("000000000.h264", len(stream))
    assert (built / "shard-00000.tar").read_bytes()[int(offset) : int(offset) + int(size)] == stream


def test_videos_are_stored_at_the_rate_of_training(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", 40, fps=20)
    assert main(["build", "--videos", str(tmp_path / "in"), *VIDEO, "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert (int(dataset.num_frames[0]), float(dataset.fps[0])) == (20, 10.0)
    assert numbers(dataset, 0) == list(range(0, 40, 2))
    assert verify(tmp_path / "out", full=True, decode=True) == []


@pytest.mark.slow
def test_any_number_of_workers_and_any_kill_writes_the_same_bytes(frames: Path, built: Path, tmp_path: Path) -> None:
    whole = tree(built)
    assert main(command(frames, tmp_path / "two", *FOLDERS, workers=2)) == 0
    assert tree(tmp_path / "two") == whole
    kills, trees = kill_at_every((60,), lambda out: command(frames, out, *FOLDERS), tmp_path / "kills")
    assert kills >= 1
    assert trees == {repr(whole)}


def test_slices_and_appended_parts_make_the_same_dataset(frames: Path, built: Path, tmp_path: Path) -> None:
    for number in range(2):
        assert main([*command(frames, tmp_path / "sliced", *FOLDERS), "--slice", f"{number}/2"]) == 0
    assert main(["merge", str(tmp_path / "sliced")]) == 0
    assert tree(tmp_path / "sliced") == tree(built)
    more = make_archive(tmp_path / "more", first=24, clips=2, size=SMALL)
    assert main([*command(more, tmp_path / "sliced", *FOLDERS), "--append"]) == 0
    dataset = open_dataset(tmp_path / "sliced")
    assert len(dataset) == 26
    assert numbers(dataset, 25) == [100, 101, 102, 103]
    assert len(list((tmp_path / "sliced").glob("groups-*"))) == 2
    assert verify(tmp_path / "sliced") == []  # the index of before may be in use


def test_other_settings_are_another_dataset(frames: Path, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(frames, built, *VIDEO, *CLOCK)) == 2
    assert "group = 3 there, 8 given" in capsys.readouterr().err
    assert main(command(frames, built, *CLOCK)) == 2
    assert "layout = video there, None given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "video"], r"needs --fps, the rate of training"),
        ([*VIDEO, "--quality", "75"], r"quality: of another layout than video"),
        (["--crf", "23"], r"crf: of another layout than jpeg"),
        ([*VIDEO, "--crf", "60"], r"crf=60.0 must be at least 0 and at most 51"),
        ([*VIDEO, "--preset", "quick"], r"preset = 'quick' must be one of ultrafast, "),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    frames: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(frames, tmp_path / "out", *options)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_single_pictures_have_no_motion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    numbered_image(1).save(tmp_path / "in" / "a.png")
    assert main(["build", "--images", str(tmp_path / "in"), *VIDEO, "--out", str(tmp_path / "out")]) == 2
    assert "--layout video belongs to --frames and --videos" in capsys.readouterr().err


def test_datasets_of_jpegs_keep_their_settings(frames: Path, tmp_path: Path) -> None:
    """A dataset of an earlier version is gone on with: nothing of the other layout is in its settings."""
    assert main(command(frames, tmp_path / "out")) == 0
    settings = open_dataset(tmp_path / "out").meta["settings"]
    assert not {"layout", "crf", "preset", "group", "min_psnr", "codec_version"} & settings.keys()


def test_a_layout_that_is_not_known_is_refused_by_name(built: Path) -> None:
    text = (built / "dataset.json").read_bytes().replace(b'"layout": "video"', b'"layout": "points"')
    with pytest.raises(DatasetError, match=r"layout 'points'; this program reads .*layouts jpeg and video"):
        parse_meta(text, where="x")


@pytest.mark.parametrize("key", ["codec", "group"])
def test_a_dataset_that_does_not_say_how_it_is_coded_is_refused(built: Path, key: str) -> None:
    meta = json.loads((built / "dataset.json").read_text())
    del meta[key]
    with pytest.raises(DatasetError, match=f"has no {key}"):
        parse_meta(json.dumps(meta).encode(), where="x")


def test_a_sample_lies_where_inspect_says(built: Path, tmp_path: Path) -> None:
    dataset = open_dataset(built)
    with tarfile.open(built / "shard-00000.tar") as tar:
        members = tar.getmembers()
    said = "\n".join(describe(dataset, [1]))
    end = members[4].offset if len(members) > 4 else 0
    assert f"bytes {members[2].offset:,} to {end:,}" in said
    assert "a group " in said
    write_filmstrip(dataset, 6, tmp_path / "strip.png")
    strip = Image.open(tmp_path / "strip.png")
    width, height = int(dataset.width[6]), int(dataset.height[6])
    step = (strip.width - width) // 3
    shown = [frame_number(strip.crop((step * i, 0, step * i + width, height))) for i in range(4)]
    assert shown == [24, 25, 26, 27]


def test_a_dataset_is_replaced_whole(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(frames, out, *FOLDERS)) == 0
    assert main([*command(frames, out, *CLOCK), "--overwrite"]) == 0
    assert not list(out.glob("groups-*"))
    assert verify(out) == []


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_picture_is_not_coded(tmp_path: Path, damage: str) -> None:
    make_frame_folder(tmp_path / "in" / "c" / "good", 3, size=SMALL)
    make_frame_folder(tmp_path / "in" / "c" / "bad", 3, size=SMALL)
    picture = tmp_path / "in" / "c" / "bad" / "img_00002.jpg"
    data = bytearray(picture.read_bytes())
    if damage == "cut":
        del data[-2:]
    else:
        scan = data.index(b"\xff\xda") + 40
        data[scan : scan + 200] = b"\xff\xd9" + bytes(198)
    picture.write_bytes(data)
    assert main(["build", "--frames", str(tmp_path / "in"), *VIDEO, *CLOCK, "--out", str(tmp_path / "out")]) == 0
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["name"], row["reason"], row["frame"]) == ("c/bad", "bad_frame", 2)


def test_verify_names_the_damaged_group(built: Path, tmp_path: Path) -> None:
    dataset = open_dataset(built)
    spans = dataset.spans(2, np.array([3]))
    data = {path.name: path.read_bytes() for path in built.iterdir()}
    tar = bytearray(data["shard-00000.tar"])
    tar[int(spans.offset[0]) + 9] ^= 1
    data["shard-00000.tar"] = bytes(tar)
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    findings = verify(tmp_path, decode=True)
    assert findings == [
        "shard-00000.tar: 000000002.h264, group 1: its crc32 is not the one in the index; remove shard-00000.* and run "
        "the build again"
    ]


def test_a_sample_that_comes_out_too_bad_is_rejected_with_its_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, picture in (("noise", None), ("smooth", numbered_image(3))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(3):
            image = picture or Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            image.save(tmp_path / "in" / name / f"img_{number:05d}.png")
    rough = ["--crf", "40", "--max-bad-fraction", "1"]
    assert (
        main(["build", "--frames", str(tmp_path / "in"), *VIDEO, *CLOCK, *rough, "--out", str(tmp_path / "out")]) == 0
    )
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["name"], row["reason"]) == ("noise", "quality")
    assert "lower --crf" in row["message"]
