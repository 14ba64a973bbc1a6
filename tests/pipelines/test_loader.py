"""What a trainer receives: right pixels, the same sequence in every world and after every resume; damage replaced."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config import DataConfig
from pipelines.decoding.dali import DaliDecoder, JpegGraph
from pipelines.decoding.self_test import decode_self_test
from pipelines.loader import Loader
from pipelines.reading.source import STATUS_OK, ClipSource
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.requests import short_rows, training_request, usable_rows
from pipelines.stream import Batch, evaluation_clips, labels_of
from tests.support.datasets import SAMPLES, colour_of
from tests.support.loaders import take

CONFIG = DataConfig(sampling_rate=2, repeat_aug=2, flip=0.5, read_threads=2, prefetch=2, decode_threads=1)
FRAMES, SIZE, BATCH = 4, 16, 4


def make(dataset: Corpus, config: DataConfig = CONFIG, **settings: Any) -> Loader:
    wanted = {"num_frames": FRAMES, "size": SIZE, "seed": 5, "global_batch": BATCH} | settings
    return Loader(dataset, config, **wanted)


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return all(
        torch.equal(a.clips, b.clips) and torch.equal(a.rows, b.rows) and a.epoch == b.epoch
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def dataset(shards: Path) -> Corpus:
    return open_corpus([shards])


@pytest.mark.parametrize("windows", ["own", "shared"])
def test_pixels_labels_and_shapes_belong_to_the_rows(dataset: Corpus, windows: Any) -> None:
    config = replace(CONFIG, windows=windows)
    for batch in take(make(dataset, config), 4):
        assert batch.clips.shape == (BATCH, 2, FRAMES, SIZE, SIZE, 3)
        assert batch.clips.dtype == torch.uint8
        assert batch.clips.is_contiguous()
        assert (batch.status == STATUS_OK).all()
        assert (batch.rows == batch.rows[:, :1]).all()
        rows = batch.rows[:, 0].tolist()
        names = [dataset.name(row) for row in rows]
        samples = [next(i for i, sample in enumerate(SAMPLES) if sample[0] == name) for name in names]
        assert batch.labels.tolist() == [[SAMPLES[i][4]] * 2 for i in samples]
        request = training_request(
            dataset, config, rows=np.array(rows), positions=batch.positions.numpy(), epoch=batch.epoch, seed=5,
            num_frames=FRAMES, size=SIZE,
        )  # fmt: skip
        for b, sample in enumerate(samples):
            for view in range(2):
                clip = request.clips[b if windows == "shared" else 2 * b + view]
                expected = torch.tensor([colour_of(sample, int(frame)) for frame in clip.frames])
                got = batch.clips[b, view].float().mean(dim=(1, 2))
                assert (got - expected).abs().max() < 4


def test_shared_windows_take_the_same_frames_and_own_windows_their_own(dataset: Corpus) -> None:
    def frames_of_views(windows: Any) -> list[bool]:
        batches = take(make(dataset, replace(CONFIG, windows=windows, sampling_rate=1)), 6)
        greens = [batch.clips[..., 1].float().mean(dim=(3, 4)) for batch in batches]
        return [bool((g[b, 0] - g[b, 1]).abs().max() < 3) for g in greens for b in range(BATCH)]

    assert all(frames_of_views("shared"))
    assert not all(frames_of_views("own"))


@pytest.mark.parametrize(
    ("world", "accumulation", "order"), [(2, 1, "global"), (2, 2, "global"), (4, 1, "shards"), (1, 4, "shards")]
)
def test_the_pixels_are_the_same_at_every_world_size(
    dataset: Corpus, world: int, accumulation: int, order: Any
) -> None:
    steps, config = 5, replace(CONFIG, order=order)  # the second epoch begins at step 3
    alone = take(make(dataset, config), steps)
    ranks = [
        take(make(dataset, config, rank=rank, world=world, accumulation=accumulation), steps * accumulation)
        for rank in range(world)
    ]
    for step in range(steps):
        parts = [rank[step * accumulation + a] for rank in ranks for a in range(accumulation)]
        assert torch.equal(torch.cat([part.clips for part in parts]), alone[step].clips)
        assert torch.cat([part.positions for part in parts]).tolist() == alone[step].positions.tolist()
        assert {part.epoch for part in parts} == {alone[step].epoch}


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 7])
def test_resuming_after_any_step_goes_on_exactly(dataset: Corpus, cut: int) -> None:
    uncut = take(make(dataset), 8)
    first = make(dataset)
    for _ in range(cut):
        next(first)
    state = first.state_dict()
    first.close()
    assert state["position"] == cut % 3 * BATCH
    assert state["epoch"] == cut // 3
    second = make(dataset)
    second.load_state_dict(state)
    assert same(take(second, 8 - cut), uncut[cut:])
    halves = [make(dataset, rank=rank, world=2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(state)
    parts = [take(half, 1)[0] for half in halves]
    assert torch.equal(torch.cat([part.clips for part in parts]), take_from(dataset, state).clips)


def take_from(dataset: Corpus, state: dict[str, Any]) -> Batch:
    loader = make(dataset)
    loader.load_state_dict(state)
    return take(loader, 1)[0]


def test_half_an_optimizer_step_does_not_count(dataset: Corpus) -> None:
    loader = make(dataset, accumulation=2)
    for _ in range(3):
        next(loader)
    assert loader.state_dict()["position"] == BATCH
    loader.close()


def test_fault_14_short_samples_loop_pad_or_drop_and_are_counted(dataset: Corpus) -> None:
    short = short_rows(dataset, CONFIG, num_frames=FRAMES)
    assert [dataset.name(row) for row in np.flatnonzero(short)] == ["clip_00"]
    assert make(dataset).num_short == 1
    assert len(usable_rows(dataset, CONFIG, num_frames=FRAMES)) == 14
    assert len(usable_rows(dataset, replace(CONFIG, short="drop"), num_frames=FRAMES)) == 13


def test_fault_21_too_few_samples_and_odd_worlds_are_refused(dataset: Corpus) -> None:
    with pytest.raises(ValueError, match=r"14 usable samples are fewer than train\.global_batch=16"):
        make(dataset, global_batch=16)
    with pytest.raises(ValueError, match="works with 1, 2, 4 processes"):
        make(dataset, world=3)


def test_the_gpu_graph_and_torchvision_cut_the_same_pixels(dataset: Corpus, media: Path, tmp_path: Path) -> None:
    """The GPU's graph, run on the CPU, against the CPU path and a PIL reference, on real footage."""
    from tests.support.datasets import run_build

    ledger = media / "frames/ledger.csv"
    real = open_corpus([run_build(tmp_path / "shards", "--frames", media / "frames", "--ledger", ledger)])
    config = replace(CONFIG, windows="shared", sampling_rate=1)
    batch = take(make(real, config, size=64), 1)[0]
    request = training_request(
        real,
        config,
        rows=batch.rows[:, 0].numpy(),
        positions=batch.positions.numpy(),
        epoch=0,
        seed=5,
        num_frames=FRAMES,
        size=64,
    )
    source = ClipSource(real, iter([request]), read_threads=1, prefetch=1)
    graph = JpegGraph(max_frames=BATCH * FRAMES, decode="cpu", resize="cpu", num_views=2, size=64)
    decoder = DaliDecoder(source.next, graph, threads=1)
    encoded, views = decoder.run()
    source.close()
    for view, output in enumerate(views):
        ours = torch.from_dlpack(output.as_tensor()).view(BATCH, FRAMES, 64, 64, 3).int()
        difference = (ours - batch.clips[:, view].int()).abs().float()
        assert difference.mean() < 0.3  # DALI's filter reads past the box's edge, torchvision's does not
        assert difference[:, :, 2:-2, 2:-2].mean() < 0.2
        for b in range(BATCH):
            crop = request.clips[b].views[view].crop
            frame = Image.open(io.BytesIO(encoded.frames[b * FRAMES].tobytes()))
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
            reference = np.asarray(frame.crop(box).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
            reference = reference[:, ::-1] if crop.flip else reference
            assert np.abs(reference - batch.clips[b, view, 0].numpy()).max() <= 2


def test_evaluation_clips_come_in_the_order_asked_and_end(dataset: Corpus) -> None:
    rows = np.array([3, 1, 4, 1, 5])
    stream = evaluation_clips(dataset, CONFIG, rows=rows, num_frames=FRAMES, size=SIZE, batch_size=2)
    batches = list(stream)
    stream.close()
    assert [len(batch.rows) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.rows[:, 0] for batch in batches]).tolist() == rows.tolist()


def test_labels_of_unlabelled_and_of_several(dataset: Corpus) -> None:
    def labelled(*labels: list[int]) -> Corpus:
        return Corpus(
            [
                replace(
                    dataset.datasets[0],
                    label_offsets=np.cumsum([0, *map(len, labels)]),
                    label_values=np.array([label for of_one in labels for label in of_one], dtype=np.int32),
                )
            ]
        )

    assert labels_of(labelled([], [3], [1]), np.array([2, 0, 1])).tolist() == [1, -1, 3]
    assert labels_of(labelled([0, 2], []), np.array([1, 0])).tolist() == [[0, 0, 0], [1, 0, 1]]
    by_view = labels_of(labelled([0, 2], []), np.array([[1, 0, 0]]))
    assert by_view.tolist() == [[[0, 0, 0], [1, 0, 1], [1, 0, 1]]]


def test_segments_must_make_the_models_frames(dataset: Corpus) -> None:
    segments = replace(CONFIG, sampling="segments", num_segments=2, frames_per_segment=2)
    assert take(make(dataset, segments), 1)[0].clips.shape[2] == 4
    with pytest.raises(ValueError, match=r"must be model\.num_frames=6"):
        make(dataset, segments, num_frames=6)


def test_a_loader_is_opened_from_a_folder_by_the_settings_alone(shards: Path, dataset: Corpus) -> None:
    settings = {"num_frames": FRAMES, "size": SIZE, "seed": 5, "global_batch": BATCH}
    with Loader.open(shards, **settings, sampling_rate=2, repeat_aug=2, flip=0.5) as loader:
        assert loader.corpus.label_names == dataset.label_names
        ours = [next(loader) for _ in range(2)]
    assert same(ours, take(make(dataset), 2))
    with Loader.open([shards, str(shards)], **settings, weights=(1, 2)) as both:
        assert both.num_samples == 28
    with Loader.open(shards, **settings | {"size": (16, 24)}, channels=1) as grey:
        assert next(grey).clips.shape[2:] == (FRAMES, 16, 24, 1)
    with pytest.raises(ValueError, match=r"no setting img_size; .*repeat_aug"):
        Loader.open(shards, **settings, img_size=3)
    with pytest.raises(ValueError, match=r"data\.flip"):
        Loader.open(shards, **settings, flip=2)
    for nothing in ("", []):
        with pytest.raises(ValueError, match="no dataset"):
            Loader.open(nothing, **settings)


def test_a_closed_loader_goes_on_where_it_was(dataset: Corpus) -> None:
    uncut = take(make(dataset), 5)
    loader = make(dataset)
    parts = []
    for count in (2, 0, 3):  # the second epoch begins at step 3
        parts += take(loader, count)
    assert same(parts, uncut)
    assert loader.state_dict() == make_at(dataset, 5)
    halves = make(dataset, accumulation=2)
    (first,), again = take(halves, 1), take(halves, 2)
    assert torch.equal(first.clips, again[0].clips), "half a step does not count"


def make_at(dataset: Corpus, steps: int) -> dict[str, Any]:
    loader = make(dataset)
    take(loader, steps)
    return loader.state_dict()


def test_the_length_is_an_epoch_of_this_rank_and_batches_do_not_end_there(dataset: Corpus) -> None:
    loader = make(dataset, world=2, accumulation=2)
    assert len(loader) == 6
    batches = take(loader, 7)
    assert [batch.epoch for batch in batches] == [0] * 6 + [1]
    moved = batches[0].to("meta")
    assert (moved.clips.device.type, moved.labels.device.type, moved.epoch) == ("meta", "meta", 0)
    assert moved.positions is batches[0].positions


def test_dali_decodes_here() -> None:
    assert decode_self_test("cpu")
