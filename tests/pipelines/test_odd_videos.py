"""Clips of odd videos that stay where they are show what their JPEGs show: turned, scaled, at the same times."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.io.storage import Storage
from mae3d.video.reader import open_video
from pipelines.config import DataConfig
from pipelines.decoding.clip_decoder import BadFrameError, ClipDecoder
from pipelines.reading.source import STATUS_OK, STATUS_SUBSTITUTED, ClipSource
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.requests import BatchRequest, ClipRequest
from pipelines.stream import evaluation_clips
from preprocess.__main__ import main
from preprocess.inspect.verify import verify
from tests.support.archives import write_archive
from tests.support.media import frame_number, make_video
from tests.support.streams import make_coded, picture, table_of, windows

SETTINGS = {
    "as they are": (),
    "fewer and smaller": ("--fps", "6", "--segment-seconds", "0.7", "--short-side", "37"),
    "more": ("--fps", "40", "--short-side", "40"),
}


@pytest.fixture(scope="module")
def archive(shared: Any) -> Path:
    made: Path = shared("archive_of_all_kinds", write_archive)
    return made


def clips(corpus: Corpus, requests: list[ClipRequest]) -> list[torch.Tensor]:
    """Read and decode clips, each as it was requested."""
    batches = (BatchRequest(0, np.array([0]), (request,), 1) for request in requests)
    source, decoder = ClipSource(corpus, batches, read_threads=1, prefetch=1), ClipDecoder(corpus)
    decoded = []
    try:
        for request in requests:
            fetched = source.fetch(request)
            assert not fetched.is_substitute, fetched.damage
            decoded.append(decoder.decode(fetched))
    finally:
        source.close()
    return decoded


def requests_for(corpus: Corpus, *, number: int) -> list[ClipRequest]:
    """Return some windows of every sample."""
    return [
        ClipRequest(row, np.array(window), ())
        for row in range(len(corpus))
        for window in windows(int(corpus.num_frames[row]), number, seed=row)
    ]


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """The mean difference of the brightness of the worst frame, and that of its colours over squares of 4 x 4."""
    difference = ours.float() - theirs.float()
    luma = (difference @ torch.tensor([0.299, 0.587, 0.114])).abs().mean(dim=(1, 2))
    colour = torch.nn.functional.avg_pool2d(difference.permute(0, 3, 1, 2), 4).abs().mean(dim=(1, 2, 3))
    return float(luma.max()), float(colour.max())


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_clips_show_what_their_jpegs_show(archive: Path, settings: str, tmp_path: Path) -> None:
    given = ["--videos", str(archive), "--workers", "1", *SETTINGS[settings]]
    assert main(["build", *given, "--quality", "100", "--out", str(tmp_path / "jpeg")]) == 0
    assert main(["index", *given, "--out", str(tmp_path / "files")]) == 0
    jpeg, files = (open_corpus([tmp_path / name]) for name in ("jpeg", "files"))
    requests = requests_for(files, number=3)
    worst: dict[str, tuple[float, float]] = {}
    for request, ours, theirs in zip(requests, clips(files, requests), clips(jpeg, requests), strict=True):
        assert ours.shape == theirs.shape
        name = files.name(request.row)
        worst[name] = tuple(map(max, worst.get(name, (0.0, 0.0)), differences(ours, theirs)))  # type: ignore[assignment]
    # JPEGs have colours at half the size, which a GIF has not, and others interpolate them otherwise.
    assert {name: pair for name, pair in worst.items() if pair[0] >= 2 or pair[1] >= 4} == {}
    assert len(worst) >= 16
    assert verify(tmp_path / "files", decode=True) == []


def test_frames_are_those_of_their_numbers_whatever_window_takes_them(tmp_path: Path) -> None:
    """A clock that is odd would show other numbers in both layouts."""
    (tmp_path / "in").mkdir()
    make_coded(tmp_path / "in" / "a.mkv", "libx264", {"x264-params": "open-gop=1:keyint=12"}, count=60)
    make_coded(tmp_path / "in" / "b.mp4", "mpeg4", {"bf": "2"}, count=60)
    given = ["--videos", str(tmp_path / "in"), "--workers", "1", "--segment-frames", "23"]
    assert main(["index", *given, "--out", str(tmp_path / "out")]) == 0
    corpus = open_corpus([tmp_path / "out"])
    assert sorted(corpus.num_frames.tolist()) == [20] * 6
    firsts = corpus.datasets[0].first
    for request in requests_for(corpus, number=5):
        (clip,) = clips(corpus, [request])
        seen = [frame_number(Image.fromarray(frame.numpy())) for frame in clip]
        assert seen == (int(firsts[request.row]) + request.frames).tolist()


def damaged_before(folder: Path) -> Path:
    """Three videos; of one, packets amid the second group were spoilt before anybody looked."""
    folder.mkdir()
    for name in "abc":
        make_coded(folder / f"{name}.mp4", "libx264", {"x264-params": "keyint=40:bframes=0"}, count=80)
    table = table_of(folder / "b.mp4")
    data = bytearray((folder / "b.mp4").read_bytes())
    for number in range(50, 54):
        start, size = int(table.packets.offset[number]), int(table.packets.size[number])
        data[start + size // 3 : start + size] = bytes(size - size // 3)
    (folder / "b.mp4").write_bytes(data)
    return folder


@pytest.mark.parametrize("where", ["folder", "url"])
def test_damage_from_before_the_index_costs_no_clip_of_sound_frames(tmp_path: Path, where: str) -> None:
    archive = damaged_before(tmp_path / "in")
    root = str(archive)
    if where == "url":
        storage = Storage("memory://damaged/in")
        for path in archive.iterdir():
            storage.put(path, path.name)
        root = storage.url
    given = ["--videos", root, "--workers", "1", "--scratch", str(tmp_path), "--whole"]
    assert main(["index", *given, "--out", str(tmp_path / "out")]) == 0
    corpus = open_corpus([tmp_path / "out"])
    sound = [ClipRequest(1, np.array(frames), ()) for frames in ([0, 5, 39], [12, 12], [40, 41, 49])]
    for clip, request in zip(clips(corpus, sound), sound, strict=True):
        assert [frame_number(Image.fromarray(frame.numpy())) for frame in clip] == request.frames.tolist()
    behind = ClipRequest(1, np.array([60, 70]), ())  # as players show them, with traces of the damage
    if where == "folder":
        with open_video(archive / "b.mp4") as video:
            played = {round(25 * seconds): picture(frame) for seconds, frame in video.frames()}
        (clip,) = clips(corpus, [behind])
        assert all(np.array_equal(frame, played[number]) for number, frame in zip((60, 70), clip.numpy(), strict=True))
    else:
        source = ClipSource(corpus, iter(()), read_threads=1, prefetch=1)
        with pytest.raises(BadFrameError, match=r"is damaged|does not decode|do not come out"):
            ClipDecoder(corpus).decode(source.fetch(behind))
        source.close()
    starts = np.array([48, 48, 48])
    config = DataConfig(sampling_rate=1, target_fps=25, read_threads=1, prefetch=1, decode_threads=1, retries=0)
    stream = evaluation_clips(corpus, config, rows=np.arange(3), starts=starts, num_frames=16, size=16, batch_size=3)
    (batch,) = list(stream)
    stream.close()
    assert batch.status[[0, 2]].tolist() == [[STATUS_OK]] * 2
    assert batch.status[1].item() == STATUS_SUBSTITUTED
    assert {damage.frame // 40 for damage in stream.damage} == {1}


def test_a_file_that_was_replaced_by_another_of_its_size_decodes_to_nothing(tmp_path: Path) -> None:
    """Even if its checksums were right, a video that is opened gives its own frames or none."""
    make_video(tmp_path / "in" / "a.ts", 20, codec="libx264", fps=25)
    make_video(tmp_path / "in" / "b.ts", 20, codec="libx264", fps=25)
    given = ["--videos", str(tmp_path / "in"), "--workers", "1"]
    assert main(["index", *given, "--out", str(tmp_path / "out")]) == 0
    corpus = open_corpus([tmp_path / "out"])
    request = ClipRequest(0, np.array([3, 7]), ())
    source = ClipSource(corpus, iter(()), read_threads=1, prefetch=1)
    fetched = source.fetch(request)
    path = tmp_path / "in" / "a.ts"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BadFrameError, match="does not decode"):
        ClipDecoder(corpus).decode(fetched)
    source.close()


def test_two_indexes_over_one_archive_are_two_datasets_of_the_same_videos(tmp_path: Path) -> None:
    for number in range(3):
        make_video(tmp_path / "in" / f"{number}.mp4", 12)
    given = ["--videos", str(tmp_path / "in"), "--workers", "1"]
    for name, options in (("1", []), ("2", ["--fps", "5"]), ("3", [])):
        assert main(["index", *given, *options, "--out", str(tmp_path / name)]) == 0
    prints = [open_corpus([tmp_path / name]).fingerprint for name in "123"]
    assert prints[0] == prints[2] != prints[1]
    moved = shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    places = {str(tmp_path / "in"): str(moved)}
    assert [open_corpus([tmp_path / name], moved=places).fingerprint for name in "123"] == prints
    corpus = open_corpus([tmp_path / name for name in "12"], moved=places)
    assert corpus.file_name(0) == corpus.file_name(3) == str(tmp_path / "elsewhere" / "0.mp4")
