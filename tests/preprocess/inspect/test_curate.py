"""`curate`: what is flagged, by whose measure; the same bytes from any workers and kills; for this dataset alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.curation import CURATION_NAME, read_flags
from preprocess.dataset.index import DatasetError, open_dataset
from preprocess.inspect import curate as module
from preprocess.inspect.curate_options import CurateSettings
from preprocess.inspect.measures import FEW, SIDE, SMALL, mirrored, picture_hashes
from preprocess.inspect.measures import _cuts as cuts_of
from preprocess.inspect.near_duplicates import compare, find_duplicates
from preprocess.inspect.report import write_report
from tests.support.datasets import run_build
from tests.support.pages import check_page

FRAMES, SIZE = 20, 64
Clip = list[Image.Image]


def panned(seed: int, *, begin: int = 0) -> Clip:
    """A camera that pans over a picture of its own."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8))
    picture = noise.resize((256, 128), Image.Resampling.BICUBIC)
    return [picture.crop((i, 32, i + SIZE, 32 + SIZE)) for i in range(begin, begin + FRAMES)]


def clips() -> dict[str, Clip]:
    dark = Image.new("RGB", (SIZE, SIZE), (4, 4, 4))
    return {
        "a_first": panned(1),
        "b_bright": [frame.point(lambda level: min(255, int(1.2 * level))) for frame in panned(1)],
        "c_shifted": panned(1, begin=2),
        "d_other": panned(2),
        "e_still": [panned(3)[0]] * FRAMES,
        "f_black": [dark] * FRAMES,
        "g_frozen": [*panned(4)[:7], *[panned(4)[7]] * (FRAMES - 7)],
        "h_cut": [*panned(5)[:9], *panned(6)[9:]],
        "i_black": [dark] * FRAMES,
        "j_picture": [panned(7)[0]],
        "k_mirrored": [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in panned(2)],
        "l_other": panned(8),
    }


EXPECTED = {
    "near_duplicate": {"b_bright", "c_shifted"},
    "still": {"e_still", "f_black", "i_black"},
    "black": {"f_black", "i_black"},
    "frozen": {"e_still", "f_black", "g_frozen", "i_black"},
    "cut": {"h_cut"},
}


def write(folder: Path, made: dict[str, Clip]) -> Path:
    """Frame folders and a ledger."""
    for name, frames in made.items():
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames, 1):
            frame.save(folder / "train" / name / f"img_{number:05d}.jpg", quality=90)
    (folder / "ledger.csv").write_text("".join(f"{name} 1 {len(frames)} 0\n" for name, frames in made.items()))
    return folder


def built(folder: Path, made: dict[str, Clip], *options: str) -> Path:
    frames = write(folder / "frames", made)
    return run_build(folder / "shards", "--frames", frames, "--source-fps", "10", "--shard-size", "1", *options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated dataset of twelve shards of a sample each."""
    out = built(tmp_path_factory.mktemp("curated"), clips())
    assert main(["curate", str(out), "--workers", "1"]) == 0
    return out


def flags_of(out: Path) -> dict[str, set[str]]:
    dataset, table = open_dataset(out), pq.read_table(out / CURATION_NAME)
    return {flag: {dataset.name(i) for i, is_set in enumerate(table[flag].to_pylist()) if is_set} for flag in EXPECTED}


def test_each_kind_is_flagged_and_nothing_else(shards: Path) -> None:
    assert flags_of(shards) == EXPECTED
    rows = {
        open_dataset(shards).name(i): row for i, row in enumerate(pq.read_table(shards / CURATION_NAME).to_pylist())
    }
    assert rows["b_bright"]["duplicate_of"] == rows["c_shifted"]["duplicate_of"] == rows["a_first"]["key"]
    assert rows["a_first"]["duplicate_of"] is None
    assert (rows["h_cut"]["cut_frames"], rows["h_cut"]["cut_s"]) == ([9], [pytest.approx(0.9)])
    assert rows["g_frozen"]["frozen_s"] == pytest.approx(1.2)
    assert (rows["f_black"]["black_share"], rows["j_picture"]["motion"]) == (1, None)


def test_files_are_the_same_for_any_workers_and_a_kill(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = built(tmp_path, clips())
    measured: list[int] = []
    original = module.thumbnails

    def breaking(dataset: Any, i: int, *, most: int) -> Any:
        measured.append(i)
        if i == 5 and measured.count(5) == 1:
            raise OSError(5, "the disk has gone", "shard")
        return original(dataset, i, most=most)

    monkeypatch.setattr(module, "thumbnails", breaking)
    assert main(["curate", str(out), "--workers", "1"]) == 3
    assert not (out / CURATION_NAME).exists()
    assert main(["curate", str(out), "--workers", "3"]) == 0
    assert sorted(measured) == sorted([*range(12), 5])
    assert (out / CURATION_NAME).read_bytes() == (shards / CURATION_NAME).read_bytes()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert main(["curate", str(out)]) == 0  # finished already
    assert len(measured) == 13
    assert main(["verify", str(out)]) == 0


def test_an_appended_dataset_is_curated_again(tmp_path: Path) -> None:
    out = built(tmp_path, {"a": panned(1), "b": panned(2)})
    assert main(["curate", str(out), "--no-cuts"]) == 0
    with pytest.raises(DatasetError, match=r"'cut'.*--no-cuts"):
        read_flags(open_dataset(out), ["cut"])
    before = (out / CURATION_NAME).read_bytes()
    built(tmp_path, {"a": panned(1), "b": panned(2), "c": panned(1)}, "--append")
    assert (out / CURATION_NAME).read_bytes() == before
    with pytest.raises(DatasetError, match=r"another state.*curate"):
        read_flags(open_dataset(out), ["still"])
    assert main(["curate", str(out)]) == 0
    assert read_flags(open_dataset(out), ["near_duplicate"])["near_duplicate"].tolist() == [False, False, True]


def test_flags_of_another_dataset_are_refused(tmp_path: Path) -> None:
    first, second = (built(tmp_path / name, {"a": panned(seed)}) for name, seed in (("x", 1), ("y", 2)))
    assert main(["curate", str(first), "--no-cuts"]) == 0
    (second / CURATION_NAME).write_bytes((first / CURATION_NAME).read_bytes())
    with pytest.raises(DatasetError, match=r"another state.*curate"):
        read_flags(open_dataset(second), ["still"])


def test_another_program_s_file_and_a_missing_library_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = built(tmp_path, {"a": panned(1)})
    monkeypatch.setitem(sys.modules, "scenedetect.detectors", None)
    assert main(["curate", str(out)]) == 2
    assert "mae3d[curate]" in capsys.readouterr().err
    (out / CURATION_NAME).write_bytes(b"a thesis")
    assert main(["curate", str(out), "--no-cuts"]) == 2
    assert (out / CURATION_NAME).read_bytes() == b"a thesis"
    assert main(["curate", "s3://bucket/shards"]) == 2


def test_the_report_counts_and_shows_flagged_samples(shards: Path, tmp_path: Path) -> None:
    write_report(shards, tmp_path / "report.html", samples=0)
    check_page(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for flag, names in EXPECTED.items():
        assert f"<div>{len(names)}<span>{flag}</span></div>" in text
    assert text.count("<img") == 2 * 2 + 3 + 2 + 3 + 1


@pytest.mark.parametrize("layout", ["video", "files"])
def test_samples_of_every_layout_are_looked_at(tmp_path: Path, layout: str) -> None:
    from tests.support.media import make_video

    make_video(tmp_path / "in" / "v.mp4", 12)
    make_video(tmp_path / "in" / "w.mp4", 12)
    if layout == "files":
        out = tmp_path / "index"
        assert main(["index", "--videos", str(tmp_path / "in"), "--out", str(out), "--workers", "1"]) == 0
    else:
        out = run_build(tmp_path / "shards", "--videos", tmp_path / "in", "--layout", "video", "--fps", "10")
    assert main(["curate", str(out)]) == 0
    rows = pq.read_table(out / CURATION_NAME).to_pylist()
    assert [(row["near_duplicate"], row["frames_read"], row["frames_damaged"]) for row in rows] == [
        (False, 12, 0),
        (True, 12, 0),
    ]


def test_cuts_are_counted_in_the_sample_s_frames_though_not_all_are_read() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    thumbs = scenes.repeat([9, 11], axis=0)
    assert cuts_of(thumbs, 3 * np.arange(20), CurateSettings()) == [27]


def test_two_takes_of_one_place_are_no_duplicates() -> None:
    """The same background; a small thing moves to the right in one, and down in the other."""
    place = np.random.default_rng(0).integers(0, 256, (SMALL, SMALL)).astype(np.uint8)
    takes = np.broadcast_to(place, (3, FEW, SMALL, SMALL)).copy()
    for i in range(FEW):
        at = 1 + i * (SMALL - 3) // FEW
        takes[:2, i, 2:4, at : at + 2] = 255 - takes[:2, i, 2:4, at : at + 2]
        takes[2, i, at : at + 2, 2:4] = 255 - takes[2, i, at : at + 2, 2:4]
    same, other = compare(takes, np.array([[0, 1], [0, 2]]), CurateSettings())
    assert same == pytest.approx(0, abs=1e-5)
    assert other == np.inf
    look = np.corrcoef(takes[0].mean(0).ravel(), takes[2].mean(0).ravel())[0, 1]
    assert 1 - look < CurateSettings().duplicate_distance  # the pictures alone would be near enough


def test_a_mirrored_picture_has_the_hash_with_mirrored_bits() -> None:
    grey = np.random.default_rng(0).normal(size=(5, SIDE, SIDE)).astype(np.float32)
    assert (picture_hashes(grey[..., ::-1]) == mirrored(picture_hashes(grey))).all()
    assert np.bitwise_count(picture_hashes(grey)[0] ^ mirrored(picture_hashes(grey))[0]) > 20


def test_a_sample_is_left_out_only_for_one_that_stays_and_is_near() -> None:
    """A chain of pictures that turn one into another: neighbours are near, the ends are not."""
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 256, (2, FEW, SMALL, SMALL)).astype(np.float32)
    share = np.linspace(0, 1, 9)[:, None, None, None]
    pictures = ((1 - share) * ends[0] + share * ends[1]).astype(np.uint8)
    grey = pictures.repeat(SIDE // SMALL, 2).repeat(SIDE // SMALL, 3).astype(np.float32)
    hashes = picture_hashes(grey.reshape(-1, SIDE, SIDE)).reshape(9, FEW)
    settings = CurateSettings()
    stays, distance = find_duplicates(hashes, pictures, np.zeros(9, bool), settings)
    left_out = np.flatnonzero(stays != np.arange(9))
    assert 3 <= len(left_out) <= 7
    assert (stays[stays[left_out]] == stays[left_out]).all()
    assert (distance[left_out] <= settings.duplicate_distance).all()
    flat, _ = find_duplicates(hashes, pictures, np.ones(9, bool), settings)
    assert flat.tolist() == list(range(9))
    turned = np.concatenate([pictures[:1], pictures[:1, ..., ::-1]])
    both = np.stack([hashes[0], mirrored(hashes[0])])
    assert find_duplicates(both, turned, np.zeros(2, bool), settings)[0].tolist() == [0, 1]
    assert find_duplicates(both, turned, np.zeros(2, bool), CurateSettings(mirrored=True))[0].tolist() == [0, 0]
