"""`build --layout png`: frames of 8 and 16 bits and any channels, exact from the source to the loader's batch."""

import gc
import io
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import webdataset
from PIL import Image

from mae3d.io.png import decode_png, encode_png
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import open_corpus
from preprocess.__main__ import main
from preprocess.dataset import index
from preprocess.dataset.index import DatasetError, open_dataset
from preprocess.inspect import verify_shard
from preprocess.inspect.filmstrip import write_filmstrip
from preprocess.inspect.verify import verify
from preprocess.jobs.stored_pixels import settled
from preprocess.plan.samples import HOOK, Request
from preprocess.plan.settings import Settings
from tests.support.builds import tree
from tests.support.stacks import random_frames, write_png_folder

PNG = ("--layout", "png")
THERMAL = [random_frames(20 + number) for number in range(3)]
SPECTRAL = [random_frames(20 + number, channels=4) for number in range(3)]


def run(*options: object) -> int:
    return main([str(option) for option in ("build", *options, "--workers", "1")])


@pytest.fixture(scope="module")
def thermal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of numbered 16-bit PNGs, `in/v0` ... `in/v2`, and `out` built of them."""
    root = tmp_path_factory.mktemp("thermal")
    for number, frames in enumerate(THERMAL):
        write_png_folder(root / "in" / f"v{number}", frames)
    assert run("--frames", root / "in", "--out", root / "out", *PNG, "--shard-size", 2) == 0
    return root


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TIFF stacks of 4 channels, a video each, and `out` built of them."""
    root = tmp_path_factory.mktemp("spectral")
    (root / "in").mkdir()
    for number, frames in enumerate(SPECTRAL):
        tifffile.imwrite(root / "in" / f"v{number}.tif", frames, photometric="minisblack", planarconfig="contig")
    assert run("--stacks", root / "in", "--out", root / "out", *PNG, "--source-fps", 30) == 0
    return root


def stored(out: Path, i: int) -> np.ndarray:
    """The frames of a sample as its shard has them."""
    dataset = open_dataset(out)
    spans = dataset.spans(i, np.arange(int(dataset.num_frames[i])))
    tar = dataset.shard_path(int(dataset.shard[i])).read_bytes()
    parts = zip(spans.offset.tolist(), spans.size.tolist(), strict=True)
    return np.stack([decode_png(tar[at : at + size], channels=dataset.layout.channels) for at, size in parts])


def first_batch(out: Path, *, size: int = 16, **settings: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips, rows and status of the first batch of three, whole frames without a flip."""
    plain: dict[str, object] = {"repeat_aug": 1, "area": (1, 1), "aspect": (1.25, 1.25), "flip": 0, "sampling_rate": 1}
    config = DataConfig(**plain | settings)  # type: ignore[arg-type]
    loader = Loader(open_corpus([out]), config, num_frames=16, size=size, seed=0, global_batch=3)
    try:
        batch = next(loader)
        return batch.clips[:, 0].numpy(), batch.rows[:, 0].numpy(), batch.status[:, 0].numpy()
    finally:
        loader.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close what it has read
def test_a_dataset_says_what_its_frames_are_and_others_open_it(thermal: Path, spectral: Path) -> None:
    for root, channels in ((thermal, 1), (spectral, 4)):
        meta = open_dataset(root / "out").meta
        assert (meta["layout"], meta["channels"], meta["bits"]) == ("png", channels, 16)
        assert (meta["settings"]["channels"], meta["settings"]["bits"]) == (channels, 16)
        assert not {"quality", "crf", "window"} & meta["settings"].keys()
        assert verify(root / "out", full=True, decode=True) == []
    (shard, *_) = sorted((spectral / "out").glob("*.tar"))
    first, *_ = list(webdataset.WebDataset([str(shard)], shardshuffle=False))
    gc.collect()  # it leaves its file open
    assert json.loads(first["json"])["channels"] == 4
    picture = np.asarray(Image.open(io.BytesIO(first["000003.png"])))
    np.testing.assert_array_equal(picture.reshape(4, 16, 20).transpose(1, 2, 0), SPECTRAL[0][3])


@pytest.mark.parametrize("kind", ["thermal", "spectral"])
def test_a_batch_has_the_pixels_of_the_source(request: pytest.FixtureRequest, kind: str) -> None:
    out, source = request.getfixturevalue(kind) / "out", {"thermal": THERMAL, "spectral": SPECTRAL}[kind]
    for i, frames in enumerate(source):
        np.testing.assert_array_equal(stored(out, i), frames)
    corpus = open_corpus([out])
    loader = Loader(corpus, DataConfig(repeat_aug=2, flip=0.5), num_frames=8, size=8, seed=0, global_batch=2)
    for batch, _ in zip(loader, range(2), strict=False):
        assert batch.clips.shape == (2, 2, 8, 8, 8, source[0].shape[3])
        assert str(batch.clips.dtype) == "torch.uint16"
        assert 20000 < batch.clips.float().mean() < 45000  # noise, scaled
    loader.close()


def test_frames_that_are_not_scaled_reach_the_batch_exactly(tmp_path: Path) -> None:
    videos = [random_frames(18 + number, size=(16, 16)) for number in range(3)]
    for number, frames in enumerate(videos):
        write_png_folder(tmp_path / "in" / f"v{number}", frames)
    assert run("--frames", tmp_path / "in", "--out", tmp_path / "out", *PNG) == 0
    clips, rows, status = first_batch(tmp_path / "out", aspect=(1, 1))
    assert (clips.dtype, sorted(rows.tolist()), status.tolist()) == (np.uint16, [0, 1, 2], [0, 0, 0])
    for clip, row in zip(clips, rows.tolist(), strict=True):
        starts = range(len(videos[row]) - 15)
        assert any(np.array_equal(clip, videos[row][start : start + 16]) for start in starts)
    mirrored, _, _ = first_batch(tmp_path / "out", aspect=(1, 1), flip=1)
    np.testing.assert_array_equal(mirrored, clips[:, :, :, ::-1])


def test_a_damaged_frame_is_substituted_and_found(thermal: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in (thermal / "out").iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    dataset = open_dataset(out)
    tar = dataset.shard_path(0)
    data = bytearray(tar.read_bytes())
    for at in dataset.spans(1, np.arange(21)).offset.tolist():
        data[at + 60] ^= 1
    tar.write_bytes(data)
    assert any("000000001.000000.png" in finding for finding in verify(out, full=True, decode=True))
    clips, rows, status = first_batch(out)
    assert sorted(status.tolist()) == [0, 0, 2]
    assert 1 not in rows
    assert clips.dtype == np.uint16


def test_every_frame_is_decoded_if_requested(thermal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {4: encode_png(THERMAL[0][0].astype(np.uint8)), 7: b""}
    decoded = iter(range(1000))

    def other(data: bytes, *, channels: int) -> np.ndarray:
        return decode_png(frames.get(next(decoded), data), channels=channels)

    monkeypatch.setattr(verify_shard, "decode_png", other)
    findings = verify(thermal / "out", full=True, decode=True, workers=1)
    assert [finding.split(": ")[1] for finding in findings] == ["000000000.000004.png", "000000000.000007.png"]
    assert "of 8 bits, the index says 20x16 of 16" in findings[0]
    assert "not a PNG" in findings[1]


def test_a_call_that_was_killed_and_made_again_writes_the_same_bytes(thermal: Path) -> None:
    given, again = ("--frames", thermal / "in", *PNG, "--shard-size", 2), thermal / "again"
    shutil.copytree(thermal / "out", again)
    for name in ("shard-00000.parquet", "dataset.json"):
        (again / name).unlink()
    assert run(*given, "--out", again) == 0
    assert tree(again) == tree(thermal / "out")


def test_other_commands_take_the_layout(thermal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ("--frames", tmp_path / "in", *PNG, "--out", out)
    for number in (0, 1):
        write_png_folder(tmp_path / "in" / f"v{number}", THERMAL[number])
    assert run(*given, "--plan-only") == 0
    assert run(*given) == 0
    write_png_folder(tmp_path / "in" / "v2", THERMAL[2])
    assert run(*given, "--append") == 0
    assert run(*given, "--append", "--bits", 8) == 2
    assert "bits = 16 there, 8 given" in capsys.readouterr().err
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.5,val=0.5"]) == 0
    assert main(["report", str(out)]) == 0
    assert main(["curate", str(out)]) == 0
    assert main(["inspect", str(out), "0", "--to", str(tmp_path / "x.png")]) == 0
    assert len(open_dataset(out)) == 3
    strip = np.asarray(Image.open(tmp_path / "x.png"))
    assert strip.std() > 30  # stretched to what can be seen
    write_filmstrip(open_dataset(out), 2, tmp_path / "y.png")


def test_programs_from_before_refuse_the_layout_by_name(thermal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LAYOUTS", ("jpeg", "video", "files"))
    with pytest.raises(DatasetError, match="layout 'png'"):
        open_dataset(thermal / "out")


def test_fault_09_sixteen_bits_are_kept_mapped_or_refused_never_squeezed(
    thermal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in (("--layout", "jpeg"), ("--layout", "video", "--fps", 7.5, "--source-fps", 30)):
        assert run("--frames", thermal / "in", *layout, "--out", tmp_path / "no") == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert all(words in message for words in ("1 channel of 16 bits", "--layout png", "--window LOW HIGH"))
    assert not list((tmp_path / "no").glob("shard*"))
    assert run("--frames", thermal / "in", "--window", 0, 65535, "--out", tmp_path / "eight") == 0
    dataset = open_dataset(tmp_path / "eight")
    tar = dataset.shard_path(0).read_bytes()
    spans = dataset.spans(0, np.arange(1))
    jpeg = tar[int(spans.offset[0]) : int(spans.offset[0] + spans.size[0])]
    seen = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(float)
    assert np.corrcoef(seen.ravel(), THERMAL[0][0].ravel())[0, 1] > 0.95


def test_samples_of_another_kind_are_rejected_one_by_one(tmp_path: Path) -> None:
    write_png_folder(tmp_path / "in" / "a", THERMAL[0])
    write_png_folder(tmp_path / "in" / "b", random_frames(3, channels=3, bits=8))
    write_png_folder(tmp_path / "in" / "c", random_frames(3, bits=8))
    assert run("--frames", tmp_path / "in", "--out", tmp_path / "out", *PNG) == 0
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [row["name"] for row in rejected] == ["b", "c"]
    assert "3 channels of 8 bits" in rejected[0]["message"]
    assert "1 channel of 16 bits" in rejected[0]["message"]


def test_kinds_that_are_requested_and_not_there_are_refused_before_the_build(
    thermal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, words in ((("--bits", 8), "--window"), (("--channels", 4), "not 4 channels")):
        assert run("--frames", thermal / "in", *PNG, *more, "--out", tmp_path / "out") == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "1 channel of 16 bits" in message
        assert words in message
    assert not list((tmp_path / "out").glob("*.tar"))


def write_ffv1(path: Path, frames: np.ndarray) -> None:
    """Write grey frames, (T, H, W, 1) uint16, as a thermal camera does."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "gray16le"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[..., 0], "gray16le")))
        container.mux(stream.encode())


def test_a_video_of_16_bits_is_kept_or_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    write_ffv1(tmp_path / "in" / "a.mkv", THERMAL[0])
    given = ("--videos", tmp_path / "in")
    assert run(*given, *PNG, "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(stored(tmp_path / "out", 0), THERMAL[0])
    assert run(*given, "--out", tmp_path / "no") == 2
    assert "--layout png" in capsys.readouterr().err
    assert run(*given, *PNG, "--window", 0, 65535, "--bits", 8, "--out", tmp_path / "eight") == 0
    np.testing.assert_array_equal(stored(tmp_path / "eight", 0), np.rint(THERMAL[0] / 257))


def test_large_frames_are_scaled_in_all_their_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40, dtype=np.uint16)[None, None, :, None].repeat(32, 1).repeat(2, 0)
    write_png_folder(tmp_path / "in" / "a", ramp)
    assert run("--frames", tmp_path / "in", "--out", tmp_path / "out", *PNG, "--short-side", 16) == 0
    frame = stored(tmp_path / "out", 0)[0]
    assert frame.shape == (16, 20, 1)
    write_png_folder(tmp_path / "step" / "a", np.where(ramp > 30000, 65535, 0).astype(np.uint16))
    assert run("--frames", tmp_path / "step", "--out", tmp_path / "two", *PNG, "--short-side", 16) == 0
    assert set(stored(tmp_path / "two", 0)[0, 8, :, 0].tolist()) >= {0, 65535}  # overshoot is cut off
    assert np.all(np.diff(stored(tmp_path / "two", 0)[0, 8, :, 0].astype(int)) > -3000)
    assert np.abs(frame[8, 2:-2, 0].astype(int) - ramp[0, 0].reshape(20, 2).mean(1)[2:-2]).max() <= 2


def test_the_frames_of_a_program_need_their_channels_and_bits_said() -> None:
    request = Request(HOOK, 0, "a", "a", (), "", -1, 0, 0, prefix="my_scans:Stacks")
    with pytest.raises(ValueError, match="--channels and --bits"):
        settled(Settings(layout="png"), [request], [])
    given = Settings(layout="png", channels=2, bits=16)
    assert settled(given, [request], []) == given
    assert settled(Settings(), [request], []) == Settings()
