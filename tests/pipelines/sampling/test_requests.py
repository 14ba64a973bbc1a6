"""Views of a batch: augmented alike in every world, testing views where they should lie, images repeated to clips."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.io.random import Stream, philox
from pipelines.config import DataConfig, RandAugment
from pipelines.decoding.transforms import apply_views
from pipelines.loader import Loader
from pipelines.reading.source import STATUS_OK, STATUS_PADDED
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop, View, draw_erase, draw_jitter, draw_rand_augment
from pipelines.sampling.requests import (
    BatchRequest,
    ClipRequest,
    check_views,
    evaluation_batches,
    evaluation_request,
    training_request,
    windows_every,
)
from pipelines.stream import Batch, ClipStream, evaluation_clips
from tests.support import loaders

SIZE, FRAMES, BATCH = 32, 4, 4
PLAIN = DataConfig(sampling_rate=1, repeat_aug=2, read_threads=2, prefetch=2, decode_threads=1)
AUGMENTED = replace(PLAIN, rand_augment="rand-m7-mstd0.5-p1-inc1", erase=0.5, colour_jitter=0.3, area=(0.08, 1.0))


@pytest.fixture(scope="module")
def corpus(shards: Path) -> Corpus:
    return open_corpus([shards])


@pytest.fixture(scope="module")
def footage(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from tests.support.datasets import run_build

    out, ledger = tmp_path_factory.mktemp("footage") / "shards", media / "frames/ledger.csv"
    return open_corpus([run_build(out, "--frames", media / "frames", "--ledger", ledger)])


def take(corpus: Corpus, config: DataConfig, batches: int, **settings: Any) -> list[Batch]:
    wanted = {"num_frames": FRAMES, "size": SIZE, "seed": 3, "global_batch": BATCH} | settings
    return loaders.take(Loader(corpus, config, **wanted), batches)


def stream_of(corpus: Corpus, requests: list[BatchRequest], *, max_clips: int, num_views: int) -> list[Batch]:
    stream = ClipStream(
        corpus,
        PLAIN,
        iter(requests),
        max_clips=max_clips,
        num_frames=FRAMES,
        num_views=num_views,
        size=SIZE,
        device=torch.device("cpu"),
    )
    batches = list(stream)
    stream.close()
    return batches


def drawn(corpus: Corpus, config: DataConfig, *, rows: Any = (3, 5), size: int = SIZE) -> BatchRequest:
    rows = np.array(rows)
    return training_request(
        corpus, config, rows=rows, positions=np.arange(len(rows)), epoch=0, seed=1, num_frames=FRAMES, size=size
    )


def views_of(request: BatchRequest) -> list[View]:
    return [view for clip in request.clips for view in clip.views]


@pytest.mark.parametrize("windows", ["own", "shared"])
def test_augmented_clips_are_the_same_in_every_world_and_for_every_thread_count(corpus: Corpus, windows: Any) -> None:
    config = replace(AUGMENTED, windows=windows)
    alone = take(corpus, config, 4)
    threads = replace(config, read_threads=1, prefetch=1, decode_threads=2)
    for ours, theirs in zip(alone, take(corpus, threads, 4), strict=True):
        assert torch.equal(ours.clips, theirs.clips)
    halves = [take(corpus, config, 4, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
    plain = take(corpus, replace(PLAIN, windows=windows, area=(0.08, 1.0)), 4)
    changed = torch.stack([(a.clips != b.clips).flatten(2).any(2) for a, b in zip(alone, plain, strict=True)])
    assert changed.float().mean() > 0.9


def test_what_is_delivered_is_the_drawn_change_of_the_plain_crop(corpus: Corpus) -> None:
    (plain,) = take(corpus, replace(PLAIN, area=(0.08, 1.0)), 1)
    (augmented,) = take(corpus, AUGMENTED, 1)
    request = training_request(
        corpus, AUGMENTED, rows=plain.rows[:, 0].numpy(), positions=plain.positions.numpy(), epoch=0, seed=3,
        num_frames=FRAMES, size=SIZE,
    )  # fmt: skip
    expected = plain.clips.clone()
    apply_views(expected.flatten(0, 1), views_of(request))
    assert torch.equal(augmented.clips, expected)


def test_a_clip_does_not_depend_on_the_rest_of_its_batch(corpus: Corpus) -> None:
    request = drawn(corpus, replace(AUGMENTED, windows="shared"), rows=(3, 5, 6))
    together = stream_of(corpus, [request], max_clips=3, num_views=2)[0]
    for i in (2, 0):
        alone = BatchRequest(0, request.positions[i : i + 1], request.clips[i : i + 1], 2)
        assert torch.equal(stream_of(corpus, [alone], max_clips=1, num_views=2)[0].clips[0], together.clips[i])


def test_each_kind_of_augmentation_leaves_the_others_draws_alone(corpus: Corpus) -> None:
    everything = views_of(drawn(corpus, AUGMENTED))
    assert len({view.ops for view in everything}) == len(everything)  # every view its own
    assert any(view.erase for view in everything)
    without = {name: views_of(drawn(corpus, replace(AUGMENTED, **{name: nothing}))) for name, nothing in NOTHING}
    for i, view in enumerate(everything):
        assert without["rand_augment"][i] == view._replace(ops=view.ops[-3:])  # jitter's three are the last
        assert without["colour_jitter"][i] == view._replace(ops=view.ops[:-3])
        assert without["erase"][i] == view._replace(erase=None)
    for i, view in enumerate(everything):
        position, number = divmod(i, 2)
        streams = [
            philox(1, stream, epoch=0, position=position, view=number)
            for stream in (Stream.RAND_AUGMENT, Stream.JITTER, Stream.ERASE)
        ]
        rule = RandAugment.parse(AUGMENTED.rand_augment)
        assert view.ops == draw_rand_augment(streams[0], rule) + draw_jitter(streams[1], AUGMENTED.colour_jitter)
        assert view.erase == draw_erase(streams[2], size=SIZE, probability=AUGMENTED.erase)
    assert [view.crop for view in everything] == [view.crop for view in views_of(drawn(corpus, CROPS_ONLY))]
    assert all(view == View(view.crop) for view in views_of(drawn(corpus, CROPS_ONLY)))


NOTHING: tuple[tuple[str, Any], ...] = (("rand_augment", ""), ("colour_jitter", 0), ("erase", 0))
CROPS_ONLY = replace(AUGMENTED, **dict(NOTHING))


@pytest.mark.parametrize("changed", [{}, {"short_side": (40, 60)}, {"windows": "shared"}])
def test_views_of_a_sample_are_drawn_independently(corpus: Corpus, changed: dict[str, Any]) -> None:
    """The places of two views' boxes in 320 samples: none alike, and a view says nothing of its neighbour."""
    row = 9  # 40 x 64 pixels
    request = drawn(corpus, replace(AUGMENTED, **changed), rows=[row] * 320)
    views = views_of(request)
    assert len({view.crop for view in views}) > 0.95 * len(views)
    places = np.array([(view.crop.top, view.crop.left, view.crop.height) for view in views], dtype=float)
    first, second = places[::2], places[1::2]
    assert (first == second).all(axis=1).mean() < 0.02
    likeness = np.corrcoef(first.T, second.T)[:3, 3:]  # of the samples' first views with their second ones
    assert np.abs(likeness).max() < 5 / np.sqrt(320)


def test_windows_of_a_sample_and_their_segments_are_drawn_independently(corpus: Corpus) -> None:
    """Two own windows of four segments in 320 samples of 33 frames: eight starts, each saying nothing of the others."""
    config = replace(PLAIN, sampling="segments", num_segments=4, frames_per_segment=1)
    request = drawn(corpus, config, rows=[9] * 320)
    starts = np.array([clip.frames for clip in request.clips], dtype=float).reshape(320, 8)
    assert all(set(column) == set(range(8 * (i % 4), 8 * (i % 4) + 8)) for i, column in enumerate(starts.T))
    likeness = np.corrcoef(starts.T) - np.eye(8)
    assert np.abs(likeness).max() < 5 / np.sqrt(320)


def test_short_side_jitter_replaces_the_random_resized_crop(corpus: Corpus) -> None:
    config = replace(PLAIN, short_side=(40, 60))
    for view in views_of(drawn(corpus, config, rows=range(14))):
        assert view.crop.height == view.crop.width
        assert round(SIZE * 40 / 60) <= view.crop.height <= round(SIZE * 48 / 40)  # the frames' short sides: 40 and 48
    with pytest.raises(ValueError, match=r"data\.short_side=\[40, 60\] is shorter than model\.img_size=64"):
        check_views(config, num_frames=FRAMES, size=64)


def test_testing_views_are_every_crop_of_every_clip_in_order(corpus: Corpus) -> None:
    row = 9  # 33 frames of 40 x 64 pixels (width x height)
    request = evaluation_request(
        corpus, PLAIN, rows=np.array([row]), positions=np.array([0]), num_frames=FRAMES, num_clips=3, num_crops=3
    )
    assert (int(corpus.num_frames[row]), int(corpus.width[row]), int(corpus.height[row])) == (33, 40, 64)
    assert request.num_views == 9
    assert [clip.frames.tolist() for clip in request.clips] == [[0, 1, 2, 3], [14, 15, 16, 17], [29, 30, 31, 32]]
    tops = (0, 12, 24)
    for clip in request.clips:
        assert clip.views == tuple(View(Crop(top, 0, 40, 40, False)) for top in tops)
    (batch,) = evaluation_clips(
        corpus, PLAIN, rows=np.array([row]), num_frames=FRAMES, size=SIZE, num_clips=3, num_crops=3
    )
    assert batch.clips.shape == (1, 9, FRAMES, SIZE, SIZE, 3)
    for view in range(9):
        one = ClipRequest(row, request.clips[view // 3].frames, (request.clips[view // 3].views[view % 3],))
        (alone,) = stream_of(corpus, [BatchRequest(0, np.array([0]), (one,), 1)], max_clips=1, num_views=1)
        assert torch.equal(alone.clips[0, 0], batch.clips[0, view])


@pytest.mark.parametrize(("num_clips", "frames"), [(1, [[4, 12, 20, 28]]), (2, [[2, 10, 18, 26], [6, 14, 22, 30]])])
def test_testing_clips_of_segments_interleave(corpus: Corpus, num_clips: int, frames: list[list[int]]) -> None:
    """33 frames in 4 segments of d = 33 / 4: one window starts at int(d/2 + d*s), two at d/4 + d*s and 3d/4 + d*s."""
    config = replace(PLAIN, sampling="segments", num_segments=4, frames_per_segment=1)
    request = evaluation_request(
        corpus, config, rows=np.array([9]), positions=np.array([0]), num_frames=4, num_clips=num_clips
    )
    assert [clip.frames.tolist() for clip in request.clips] == frames


def test_testing_views_are_pils_pixels(footage: Corpus) -> None:
    """On real footage, every crop against PIL's resize of its box: at most 2 of 255 off, 0.3 on average."""
    from pipelines.reading.source import ClipSource

    rows = np.arange(len(footage))
    (batch,) = evaluation_clips(
        footage, PLAIN, rows=rows, num_frames=FRAMES, size=64, num_clips=2, num_crops=3, batch_size=len(rows)
    )
    request = evaluation_request(footage, PLAIN, rows=rows, positions=rows, num_frames=FRAMES, num_clips=2, num_crops=3)
    source = ClipSource(footage, iter([request]), read_threads=1, prefetch=1)
    encoded = source.next()
    source.close()
    assert encoded is not None
    compared = 0
    for i, clip in enumerate(request.clips):
        short = min(int(footage.height[clip.row]), int(footage.width[clip.row]))
        for s, (crop, *_) in enumerate(clip.views):
            assert (crop.height, crop.width) == (short, short)
            frame = Image.open(io.BytesIO(encoded.frames[i * FRAMES].tobytes()))
            box = (crop.left, crop.top, crop.left + short, crop.top + short)
            reference = np.asarray(frame.crop(box).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
            difference = np.abs(reference - batch.clips[i // 2, i % 2 * 3 + s, 0].numpy())
            assert difference.max() <= 2
            assert difference.mean() < 0.3
            compared += 1
    assert compared == 6 * len(rows)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_rows", [1, 4, 7, 12, 13])
def test_every_row_counts_once_and_ranks_get_equal_batches(world: int, num_rows: int) -> None:
    ranks = [list(evaluation_batches(num_rows, batch_size=2, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    counted = []
    for step in zip(*ranks, strict=True):
        assert len({len(positions) for positions, _ in step}) == 1
        for positions, num_padded in step:
            assert len(positions) <= 2
            counted.extend(positions[: len(positions) - num_padded].tolist())
    assert counted == list(range(num_rows))  # in order, too
    assert sum(num_padded for batches in ranks for _, num_padded in batches) < world or num_rows < world


def test_padding_is_marked_and_of_the_same_shape(corpus: Corpus) -> None:
    rows = np.array([4, 2, 8])
    ranks = [
        list(evaluation_clips(corpus, PLAIN, rows=rows, num_frames=FRAMES, size=SIZE, batch_size=4, rank=r, world=2))
        for r in range(2)
    ]
    ((first,), (second,)) = ranks
    assert first.clips.shape == second.clips.shape == (2, 1, FRAMES, SIZE, SIZE, 3)
    assert first.status.tolist() == [[STATUS_OK], [STATUS_OK]]
    assert second.status.tolist() == [[STATUS_OK], [STATUS_PADDED]]
    assert [*first.rows[:, 0].tolist(), *second.rows[:, 0].tolist()] == [4, 2, 8, 8]
    assert [*first.positions.tolist(), *second.positions.tolist()] == [0, 1, 2, 2]


@pytest.mark.parametrize("sampling", ["strided", "segments"])
def test_an_image_repeats_to_a_clip(corpus: Corpus, sampling: Any) -> None:
    row = next(row for row in range(len(corpus)) if corpus.num_frames[row] == 1)
    config = replace(PLAIN, sampling=sampling, num_segments=2, frames_per_segment=2)
    for request in (
        drawn(corpus, config, rows=[row]),
        evaluation_request(
            corpus, config, rows=np.array([row]), positions=np.array([0]), num_frames=FRAMES, num_clips=2, num_crops=1
        ),
    ):
        assert all(clip.frames.tolist() == [0] * FRAMES for clip in request.clips)
        (batch,) = stream_of(corpus, [request], max_clips=2, num_views=1)
        assert batch.clips.shape == (1, 2, FRAMES, SIZE, SIZE, 3)
        assert (batch.clips == batch.clips[:, :, :1]).all()
        assert batch.clips.any()


def test_a_clip_every_so_many_seconds(tmp_path: Path) -> None:
    from tests.support.media import make_dataset

    timed = open_corpus([make_dataset(tmp_path, samples=3, frames=[5, 21, 40], source_fps=10)])
    config = replace(PLAIN, sampling_rate=3, target_fps=15)  # every second frame
    rows, starts = windows_every(timed, config, rows=np.array([0, 2]), num_frames=FRAMES, every_s=1.2)
    assert rows.tolist() == [0, 2, 2, 2]  # the last frames of the longest would be 36 + 6
    assert starts.tolist() == [0, 0, 12, 24]
    stream = evaluation_clips(timed, config, rows=rows, starts=starts, num_frames=FRAMES, size=SIZE, batch_size=3)
    clips = torch.cat([batch.clips for batch in stream])
    stream.close()
    frames = [[0, 2, 4, 1], [0, 2, 4, 6], [12, 14, 16, 18], [24, 26, 28, 30]]
    for i, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        request = evaluation_request(
            timed, config, rows=rows[i : i + 1], positions=np.array([0]), starts=starts[i : i + 1], num_frames=FRAMES
        )
        assert request.clips[0].frames.tolist() == frames[i]
        (alone,) = stream_of(timed, [request], max_clips=1, num_views=1)
        assert torch.equal(alone.clips[0], clips[i]), (row, start)


def test_seconds_need_a_frame_rate_and_strides(corpus: Corpus) -> None:
    rows = np.array([3, 5])
    with pytest.raises(ValueError, match=r"2 of 2 samples have no frame rate .*--source-fps"):
        windows_every(corpus, PLAIN, rows=rows, num_frames=FRAMES, every_s=1)
    with pytest.raises(ValueError, match="sampling=segments"):
        windows_every(corpus, replace(PLAIN, sampling="segments"), rows=rows, num_frames=FRAMES, every_s=1)
