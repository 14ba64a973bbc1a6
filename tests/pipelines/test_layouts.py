"""Datasets of layout video are read as those of layout jpeg are, and beside them: order, windows, views, damage."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae3d.io.storage import Storage
from mae3d.video.groups import GroupDecoder
from pipelines.config import DataConfig
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.decoding.crops import Cropper, cut_on_device
from pipelines.loader import Loader
from pipelines.reading.source import STATUS_OK, STATUS_SUBSTITUTED, FetchedClip
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import ClipRequest
from pipelines.storage.ownership import owned_files
from pipelines.stream import Batch, evaluation_clips
from tests.support.damage import Vouched, flip_a_bit, overwrite
from tests.support.datasets import SAMPLES, build_shards, colour_of
from tests.support.loaders import take

CONFIG = DataConfig(sampling_rate=2, target_fps=8, repeat_aug=2, flip=0.5, read_threads=2, prefetch=2, decode_threads=2)
FRAMES, SIZE, BATCH = 4, 16, 4
CLOCK = ("--shard-size", "4", "--source-fps", "8")


@pytest.fixture(scope="module")
def video(shared: Any) -> Path:
    """The samples of `shards` in groups of 4 frames."""
    options = (*CLOCK, "--layout", "video", "--fps", "8", "--group", "4", "--crf", "10")
    built: Path = shared("video_shards", lambda folder: build_shards(folder, *options))
    return built


@pytest.fixture(scope="module")
def jpeg(shared: Any) -> Path:
    built: Path = shared("timed_shards", lambda folder: build_shards(folder, *CLOCK))
    return built


def make(roots: list[Path], config: DataConfig = CONFIG, **settings: Any) -> Loader:
    wanted = {"num_frames": FRAMES, "size": SIZE, "seed": 5, "global_batch": BATCH} | settings
    return Loader(open_corpus(roots), config, **wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("windows", ["own", "shared"])
@pytest.mark.parametrize(
    ("layout", "decode"), [("jpeg", "mixed"), ("jpeg", "cpu"), ("video", "mixed"), ("video", "cpu")]
)
def test_a_gpus_batches_are_those_of_a_cpu(jpeg: Path, video: Path, layout: str, decode: Any, windows: Any) -> None:
    root, config = jpeg if layout == "jpeg" else video, replace(CONFIG, windows=windows)
    on_gpu = make([root], replace(config, decode=decode), device="cuda")
    for ours, theirs in zip(take(on_gpu, 5), take(make([root], config), 5), strict=True):
        assert ours.clips.is_cuda
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert (ours.status == STATUS_OK).all()
        assert (ours.clips.cpu().int() - theirs.clips.int()).abs().max() <= 6  # flat colours
    assert on_gpu.counts()["decode_errors"] == 0


@pytest.mark.parametrize("windows", ["own", "shared"])
def test_batches_are_those_of_the_other_layout(jpeg: Path, video: Path, windows: Any) -> None:
    config = replace(CONFIG, windows=windows)
    for ours, theirs in zip(take(make([video], config), 5), take(make([jpeg], config), 5), strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.positions, theirs.positions)
        assert (ours.status == STATUS_OK).all()
        assert (ours.clips.int() - theirs.clips.int()).abs().max() <= 6  # flat colours: the codecs differ by a little


@pytest.mark.parametrize("layouts", ["video", "both"])
def test_every_world_and_every_resume_gets_the_same_clips(jpeg: Path, video: Path, layouts: str) -> None:
    roots = [video] if layouts == "video" else [jpeg, video]
    alone = take(make(roots), 5)
    if layouts == "both":
        assert {int(row) < len(SAMPLES) for batch in alone for row in batch.rows.flatten()} == {True, False}
    ranks = [take(make(roots, rank=rank, world=2), 5) for rank in range(2)]
    for step in range(5):
        assert torch.equal(torch.cat([rank[step].clips for rank in ranks]), alone[step].clips)
    first = make(roots)
    next(first)
    next(first)
    state = first.state_dict()
    first.close()
    resumed = make(roots)
    resumed.load_state_dict(state)
    for ours, theirs in zip(take(resumed, 3), alone[2:], strict=True):
        assert torch.equal(ours.clips, theirs.clips)


def test_a_clip_has_the_frames_that_were_asked_for(video: Path) -> None:
    corpus = open_corpus([video])
    decoder = ClipDecoder(corpus)
    for row in range(1, len(corpus)):
        sample = next(i for i, one in enumerate(SAMPLES) if one[0] == corpus.name(row))
        count = int(corpus.num_frames[row])
        for frames in (np.arange(count)[::3], np.array([count - 1]), np.arange(count) // 2, np.array([5, 1, 5, 0])):
            clip = decoder.decode(fetched(corpus, row, frames))
            expected = torch.tensor([colour_of(sample, int(frame)) for frame in frames])
            assert clip.shape == (len(frames), corpus.height[row], corpus.width[row], 3)
            assert (clip.float().mean(dim=(1, 2)) - expected).abs().max() < 5


def fetched(corpus: Corpus, row: int, frames: np.ndarray) -> FetchedClip:
    """A clip with its bytes, without a source."""
    spans = corpus.spans(row, frames)
    shard = corpus.shard_path(int(corpus.shard[row])).read_bytes()
    places = zip(spans.offset.tolist(), spans.size.tolist(), strict=True)
    parts = [np.frombuffer(shard[offset : offset + size], np.uint8) for offset, size in places]
    return FetchedClip(ClipRequest(row, frames, ()), parts)


def evaluated(corpus: Corpus, **settings: Any) -> list[Batch]:
    rows = np.arange(len(corpus))
    stream = evaluation_clips(corpus, CONFIG, rows=rows, num_frames=FRAMES, size=SIZE, batch_size=4, **settings)
    batches = list(stream)
    stream.close()
    return batches


def test_shards_behind_a_url_are_read_as_those_in_a_folder(video: Path, tmp_path: Path) -> None:
    storage = Storage("memory://layouts/video")
    for path in video.iterdir():
        storage.put(path, path.name)
    config = replace(CONFIG, order="global")
    there = Loader(
        open_corpus([storage.url], cache=tmp_path), config, num_frames=FRAMES, size=SIZE, seed=5, global_batch=4
    )
    for ours, theirs in zip(take(there, 3), take(make([video], config), 3), strict=True):
        assert torch.equal(ours.clips, theirs.clips)
    kept = {path.name.partition("-")[0] for _, path in cached(tmp_path)}
    assert {"index", "rows", "groups"} < kept


def cached(folder: Path) -> list[tuple[Path, Path]]:
    """The files that the cache counts as its own."""
    return [(cache, path) for cache in folder.iterdir() for path, _ in owned_files(cache)]


def test_windows_of_one_sample_are_decoded_once(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = GroupDecoder.decode

    def counted(self: GroupDecoder, group: bytes, wanted: Any) -> Any:
        decoded.append(group)
        return decode(self, group, wanted)

    monkeypatch.setattr(GroupDecoder, "decode", counted)
    corpus = open_corpus([video])
    several = evaluated(corpus, num_clips=5, num_crops=3)
    assert len(decoded) == len(set(decoded))
    assert [batch.clips.shape[1] for batch in several] == [15] * 4
    alone = evaluated(corpus, num_clips=5)
    for with_crops, one in zip(several, alone, strict=True):
        assert torch.equal(with_crops.clips[:, 1::3], one.clips)  # the middle crop is the only one's


@pytest.fixture
def own(video: Path, tmp_path: Path) -> Corpus:
    """A copy of the dataset that may be damaged."""
    return open_corpus([shutil.copytree(video, tmp_path / "copy")])


def test_fault_13_a_flipped_bit_costs_the_windows_that_touch_its_group(own: Corpus) -> None:
    row = 9
    overwrite(own, row, flip_a_bit, frames=slice(6, 7))  # group 1: frames 4 to 7
    touched = 0
    for batch in evaluated(own, num_clips=4):
        for position, rows, status in zip(batch.positions.tolist(), batch.rows, batch.status, strict=True):
            replaced = status == STATUS_SUBSTITUTED
            assert torch.equal(replaced, rows != position)
            assert not replaced.any() or position == row
            touched += int(replaced.sum())
    assert 1 <= touched < 4
    stream = evaluation_clips(own, CONFIG, rows=np.array([row]), num_frames=FRAMES, size=SIZE, num_clips=4)
    list(stream)
    (damage,) = set(stream.damage)
    stream.close()
    assert (damage.key, damage.frame) == (own.key(row), 4)
    assert "crc32" in damage.reason


def test_fault_13_a_group_whose_bytes_are_as_written_and_do_not_decode_is_substituted(own: Corpus) -> None:
    row = 9
    overwrite(own, row, lambda data: b"\0\0\1\x67" + bytes(len(data) - 4))
    vouched = Vouched(own.datasets)
    batches = evaluated(vouched, num_clips=1)
    positions, rows, status = (
        torch.cat([getattr(batch, name).reshape(-1) for batch in batches]) for name in ("positions", "rows", "status")
    )
    assert torch.equal(rows != positions, status == STATUS_SUBSTITUTED)
    assert positions[status == STATUS_SUBSTITUTED].tolist() == [row]


def test_a_gpu_cuts_the_views_that_a_cpu_cuts() -> None:
    """Tried on the CPU, by the path that a GPU takes."""
    rng = np.random.default_rng(0)
    clips = [torch.from_numpy(rng.integers(0, 256, (3, h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (33, 21))]
    views = [
        (View(Crop(3, 5, 30, 41, True)), View(Crop(0, 0, 40, 60, False))),
        (View(Crop(1, 0, 32, 21, False)), View(Crop(8, 2, 9, 11, True))),
    ]
    cropper = Cropper(size=16, threads=1)
    there = cut_on_device(clips, views, size=16, device=torch.device("cpu"))
    here = cropper.cut(clips, views, boxed=False)
    assert there.shape == here.shape
    assert (there.int() - here.int()).abs().max() <= 1
    assert abs(float((there.float() - here.float()).mean())) < 0.1
