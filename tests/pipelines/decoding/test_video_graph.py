"""The graph that decodes H.264 on a GPU, run on the CPU with the same frames as VP9, and how streams come to use it.

What is under test is which frames, boxes and mirrors come out; whether a GPU decodes H.264 only a GPU can show.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mae3d.video.groups import GroupError
from pipelines import stream as stream_module
from pipelines.config import DataConfig
from pipelines.decoding.channels import with_channels
from pipelines.decoding.clips import ThreadDecoding, copied_views
from pipelines.decoding.crops import cut_on_device
from pipelines.decoding.dali import DaliDecoder, VideoGraph
from pipelines.reading.source import STATUS_SUBSTITUTED, EncodedBatch, FetchedClip
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import BatchRequest, ClipRequest
from pipelines.stream import Batch, ClipStream
from tests.support import vp9
from tests.support.damage import Vouched, overwrite
from tests.support.datasets import build_shards
from tests.support.loaders import requests_for

SIZE, FRAMES, BATCH = 16, 4, 2
ORDER = np.arange(1, 13)
CONFIG = DataConfig(sampling_rate=2, target_fps=8, repeat_aug=2, read_threads=2, prefetch=2, decode_threads=1)


def noise(count: int, height: int, width: int, *, true: tuple[int, int]) -> list[np.ndarray]:
    """Smooth pictures that differ in each corner and from each other, padded by their edge as stored ones are."""
    rng = np.random.default_rng(height)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 5, 6)).astype(np.float32))
    frames = torch.nn.functional.interpolate(coarse, true, mode="bicubic").clamp(0, 255).permute(0, 2, 3, 1)
    padding = ((0, 0), (0, height - true[0]), (0, width - true[1]), (0, 0))
    return list(np.pad(frames.numpy().astype(np.uint8), padding, "edge"))


VIDEOS = {0: (noise(8, 64, 96, true=(50, 84)), (50, 84)), 1: (noise(5, 48, 80, true=(48, 80)), (48, 80))}


def packed(fetched: FetchedClip) -> tuple[bytes, list[int]]:
    """The whole video, and the clip's frames by their own numbers."""
    frames, _ = VIDEOS[fetched.clip.row]
    return vp9.video_of([vp9.frame_of(pixels) for pixels in frames]), fetched.clip.frames.tolist()


def batch_of(clips: list[ClipRequest]) -> EncodedBatch:
    request = BatchRequest(0, np.arange(len(clips)), tuple(clips), len(clips[0].views))
    return EncodedBatch(request, request.clips, ([],) * len(clips), (False,) * len(clips))


@pytest.mark.parametrize(("channels", "size"), [(3, (SIZE, SIZE)), (1, (12, 20))])
def test_frames_in_any_order_with_repeats_and_boxes_of_clips_of_two_sizes(channels: int, size: tuple[int, int]) -> None:
    clips = [
        ClipRequest(0, np.array([5, 1, 5, 0]), (View(Crop(20, 30, 30, 54, True)), View(Crop(0, 0, 50, 84, False)))),
        ClipRequest(1, np.array([4, 2, 2, 3]), (View(Crop(0, 0, 48, 80, False)), View(Crop(7, 11, 30, 41, True)))),
        ClipRequest(0, np.array([7, 7, 7, 7]), (View(Crop(1, 2, 47, 63, False)), View(Crop(10, 0, 25, 84, True)))),
    ]
    batch = batch_of(clips)
    graph = VideoGraph(max_clips=4, decode="cpu", num_views=2, size=size, pack=packed, channels=channels)
    decoder = DaliDecoder(lambda: batch, graph, threads=2)
    for _ in range(3):
        encoded, outputs = decoder.run()
        assert encoded is batch
        views = copied_views(encoded, outputs, torch.device("cpu"))
        assert views.shape == (3, 2, FRAMES, *size, channels)
        sources = []
        for clip in clips:
            frames, (height, width) = VIDEOS[clip.row]
            pictures = np.stack([frames[i][:height, :width] for i in clip.frames])
            sources.append(torch.from_numpy(with_channels(pictures, channels)))
        expected = cut_on_device(sources, [clip.views for clip in clips], size=size, device=torch.device("cpu"))
        difference = (views.flatten(0, 1).float() - expected.float()).abs().mean(dim=(2, 3, 4))
        assert difference.max() < 4  # 4:2:0, and filters that reach beyond a box; another frame differs by 40


def test_a_frame_that_is_not_there_is_an_error_and_never_black() -> None:
    clip = ClipRequest(1, np.array([0, 1, 2, 5]), (View(Crop(0, 0, 48, 80, False)),))
    graph = VideoGraph(max_clips=1, decode="cpu", num_views=1, size=SIZE, pack=packed)
    decoder = DaliDecoder(lambda: batch_of([clip]), graph, threads=1)
    with pytest.raises(RuntimeError):
        decoder.run()


def test_a_clip_that_cannot_be_packed_fails_at_its_own_batch_and_a_restart_gives_it_back() -> None:
    views = (View(Crop(0, 0, 48, 80, False)),)
    batches = [batch_of([ClipRequest(1, np.array([i, i]), views)]) for i in range(5)]
    fed = iter(batches)

    def pack(fetched: FetchedClip) -> tuple[bytes, list[int]]:
        if fetched.clip.frames[0] == 2:
            raise GroupError("it holds 0 frames, not 3")
        return packed(fetched)

    graph = VideoGraph(max_clips=1, decode="cpu", num_views=1, size=SIZE, pack=pack)
    decoder = DaliDecoder(lambda: next(fed, None), graph, threads=1)
    assert [decoder.run()[0] for _ in range(2)] == batches[:2]
    with pytest.raises(RuntimeError):
        decoder.run()
    assert decoder.restart() is batches[2]
    assert [decoder.run()[0] for _ in range(2)] == batches[3:]
    with pytest.raises(StopIteration):
        decoder.run()


@pytest.fixture(scope="module")
def video(shared: Any) -> Path:
    options = (
        "--shard-size",
        "4",
        "--source-fps",
        "8",
        "--layout",
        "video",
        "--fps",
        "8",
        "--group",
        "4",
        "--crf",
        "10",
    )
    built: Path = shared("video_shards", lambda folder: build_shards(folder, *options))
    return built


class OnCpu:
    """GpuDecoding's outputs copied on the CPU."""

    def __init__(self, decoder: DaliDecoder, device: torch.device):
        self._decoder = decoder
        self.run, self.restart, self.close = decoder.run, decoder.restart, decoder.close

    def clips(self, encoded: EncodedBatch, outputs: tuple[Any, ...]) -> torch.Tensor:
        return copied_views(encoded, outputs, torch.device("cpu"))


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream for a GPU decodes the same frames as VP9 on the CPU."""

    def on_cpu(next_batch: Any, graph: VideoGraph, *, threads: int, device_id: int) -> DaliDecoder:
        assert (graph.decode, device_id) == ("mixed", 0)
        return DaliDecoder(next_batch, replace(graph, decode="cpu"), threads=threads)

    monkeypatch.setattr(stream_module, "DaliDecoder", on_cpu)
    monkeypatch.setattr(stream_module, "GpuDecoding", OnCpu)
    monkeypatch.setattr("pipelines.decoding.packing.window_in_ivf", vp9.window_in_ivf)


def batches_of(corpus: Corpus, windows: Literal["own", "shared"], *, decode: Any = "mixed") -> list[Batch]:
    config = replace(CONFIG, windows=windows, decode=decode)
    requests = requests_for(corpus, config, ORDER, batch=BATCH, num_frames=FRAMES, size=SIZE)
    stream = ClipStream(
        corpus,
        config,
        requests,
        max_clips=BATCH * (1 if windows == "shared" else 2),
        num_frames=FRAMES,
        num_views=2 if windows == "shared" else 1,
        size=SIZE,
        device=torch.device("cuda:0" if decode == "mixed" else "cpu"),
    )
    assert isinstance(stream._decoding, OnCpu if decode == "mixed" else ThreadDecoding)
    stream._device = torch.device("cpu")
    batches = list(stream)
    stream.close()
    return batches


@pytest.mark.parametrize("windows", ["own", "shared"])
@pytest.mark.usefixtures("pretended_gpu")
def test_a_stream_gives_the_clips_that_the_cpu_gives(video: Path, windows: Any) -> None:
    corpus = open_corpus([video])
    ours, theirs = batches_of(corpus, windows), batches_of(corpus, windows, decode="cpu")
    assert len(ours) == len(theirs) == len(ORDER) // BATCH
    for mixed, cpu in zip(ours, theirs, strict=True):
        assert torch.equal(mixed.rows, cpu.rows)
        assert torch.equal(mixed.status, cpu.status)
        assert mixed.clips.shape == cpu.clips.shape
        assert (
            mixed.clips.int() - cpu.clips.int()
        ).abs().max() <= 2  # flat colours: a frame's green is 8 from the next


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("windows", ["own", "shared"])
def test_fault_23_a_group_that_dali_cannot_decode_is_substituted_and_no_batch_is_lost(
    video: Path, windows: Any, tmp_path: Path
) -> None:
    import shutil

    undamaged = batches_of(open_corpus([video]), windows)
    own = open_corpus([shutil.copytree(video, tmp_path / "copy")])
    overwrite(own, 9, lambda data: b"\0\0\1\x67" + bytes(len(data) - 4))
    batches = batches_of(Vouched(own.datasets), windows)
    assert [batch.positions.tolist() for batch in batches] == [batch.positions.tolist() for batch in undamaged]
    for batch, good in zip(batches, undamaged, strict=True):
        for b, row in enumerate(good.rows[:, 0].tolist()):
            if row == 9:
                assert (batch.status[b] == STATUS_SUBSTITUTED).all()
                assert 9 not in batch.rows[b].tolist()
            else:
                assert (batch.rows[b] == row).all()
                assert (batch.clips[b].int() - good.clips[b].int()).abs().max() <= 2  # rescued on the CPU


@pytest.mark.usefixtures("pretended_gpu")
def test_without_mixed_no_stream_decodes_h264_by_dali(video: Path) -> None:
    corpus = open_corpus([video])
    for decode in ("auto", "cpu"):
        stream = ClipStream(
            corpus, replace(CONFIG, decode=decode), iter(()), max_clips=2, num_frames=FRAMES, num_views=1, size=SIZE,
            device=torch.device("cuda:0"),
        )  # fmt: skip
        assert isinstance(stream._decoding, ThreadDecoding)
        stream.close()
