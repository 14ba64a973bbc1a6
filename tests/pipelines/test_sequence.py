"""The exact sequence: the same samples, frames, views and masks in every world, and after every resume.

Most of it looks at requests, which are all that is random about the input as plain data; nothing is decoded.
"""

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

from mae3d.distributed import World
from mae3d.model.masking import mask_noise
from pipelines.config import DataConfig, SelectConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.requests import BatchRequest
from tests.support.datasets import build_shards, index_only
from tests.support.ranks import run_ranks

WORLDS, ACCUMULATIONS = (1, 2, 3, 4, 7, 8), (1, 3)
SHARE = 168  # every world divides it; the global batch is this for each micro-batch of a step
PLAIN = DataConfig(sampling_rate=2, repeat_aug=1)
CONFIGS = {
    "global": PLAIN,
    "global, mixed, selected": replace(
        PLAIN, weights=(2, 1), select=SelectConfig(split="train", fraction=0.9, seed=4), short="drop"
    ),
    "shards": replace(PLAIN, order="shards", mix_shards=4, sampling="segments", num_segments=2, frames_per_segment=2),
    "shards, mixed, two windows": replace(PLAIN, order="shards", mix_shards=16, weights=(1, 3), repeat_aug=2),
    "shards, selected, augmented": replace(
        PLAIN, order="shards", mix_shards=6, select=SelectConfig(per_class=180), windows="shared",
        rand_augment="rand-m7-mstd0.5-inc1", colour_jitter=0.4, erase=0.25, short_side=(64, 80),
    ),
}  # fmt: skip


class Draw(NamedTuple):
    """All that is drawn for one sample at one position."""

    epoch: int
    position: int
    rows: tuple[int, ...]
    frames: tuple[tuple[int, ...], ...]
    views: Any
    noise: tuple[float, ...]


@cache
def corpus() -> Corpus:
    """Two datasets of 42 shards with 1 to 60 samples each; 1,599 samples."""
    rng = np.random.default_rng(0)
    return Corpus([index_only(rng.integers(1, 61, 28).tolist(), seed=1), index_only([3, *[60] * 12, 1], seed=2)])


def loader(config: DataConfig, dataset: Corpus | None = None, **settings: Any) -> Loader:
    wanted = {"num_frames": 4, "size": 32, "seed": 5, "global_batch": SHARE} | settings
    return Loader(dataset or corpus(), config, **wanted)


def draws_of(request: BatchRequest) -> Iterator[Draw]:
    positions = request.positions.tolist()
    windows = len(request.clips) // len(positions)
    noise = mask_noise(seed=5, epoch=request.epoch, positions=positions, views=request.num_views, tokens=8)
    for i, (position, of_sample) in enumerate(zip(positions, noise.view(len(positions), -1).tolist(), strict=True)):
        clips = request.clips[i * windows : (i + 1) * windows]
        yield Draw(
            request.epoch,
            position,
            tuple(clip.row for clip in clips),
            tuple(tuple(clip.frames.tolist()) for clip in clips),
            tuple(clip.views for clip in clips),
            tuple(of_sample),
        )


def steps_of(ranks: list[Loader], steps: int) -> list[list[Draw]]:
    """The global sequence by step: each rank's micro-batches one behind the other."""
    accumulation = ranks[0].order.global_batch // len(ranks) // ranks[0].micro_batch
    requests = [list(islice(rank.requests(), steps * accumulation)) for rank in ranks]
    sequence = []
    for step in range(steps):
        taken = slice(step * accumulation, (step + 1) * accumulation)
        sequence.append([draw for rank in requests for request in rank[taken] for draw in draws_of(request)])
    return sequence


def at(one: Loader, step: int) -> Loader:
    """The loader, told to go on after so many steps."""
    epoch, step_of_it = divmod(step, one.steps_per_epoch)
    one.load_state_dict(one.state_dict() | {"epoch": epoch, "position": step_of_it * one.order.global_batch})
    return one


@cache
def alone(name: str) -> list[list[Draw]]:
    """The sequence of one process, never cut: two epochs and a step."""
    one = loader(CONFIGS[name])
    return steps_of([one], 2 * one.steps_per_epoch + 1)


@cache
def across_the_end(name: str, global_batch: int) -> list[list[Draw]]:
    """One process's last step of the first epoch and first one of the second."""
    one = loader(CONFIGS[name], global_batch=global_batch)
    return steps_of([at(one, one.steps_per_epoch - 1)], 2)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "accumulation"), [*product(WORLDS, ACCUMULATIONS)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_sequence_is_the_same_in_every_world_across_an_epochs_end(name: str, world: int, accumulation: int) -> None:
    other = replace(CONFIGS[name], read_threads=world, prefetch=accumulation, decode_threads=3, read_gap=9, retries=1)
    size = SHARE * accumulation
    ranks = [
        loader(other, rank=rank, world=world, accumulation=accumulation, global_batch=size) for rank in range(world)
    ]
    (steps,) = {rank.steps_per_epoch for rank in ranks}
    assert steps_of([at(rank, steps - 1) for rank in ranks], 2) == across_the_end(name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_after_any_step_in_any_world_goes_on_exactly(name: str) -> None:
    uncut, steps = alone(name), loader(CONFIGS[name]).steps_per_epoch
    for cut in range(2 * steps + 1):
        world = WORLDS[cut % len(WORLDS)]
        ranks = [at(loader(CONFIGS[name], rank=rank, world=world), cut) for rank in range(world)]
        assert {rank.epoch for rank in ranks} == {cut / steps}
        assert {rank.state_dict()["position"] for rank in ranks} == {cut % steps * SHARE}
        assert steps_of(ranks, 1) == uncut[cut : cut + 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_epoch_has_no_sample_twice_and_leaves_out_others_each_time(name: str) -> None:
    one = loader(CONFIGS[name])
    epochs = [[draw for step in alone(name)[k * one.steps_per_epoch :][: one.steps_per_epoch] for draw in step]
              for k in (0, 1)]  # fmt: skip
    for number, epoch in enumerate(epochs):
        assert {draw.epoch for draw in epoch} == {number}
        assert [draw.position for draw in epoch] == list(range(one.steps_per_epoch * SHARE))
        assert all(len(set(draw.rows)) == 1 for draw in epoch)
        assert len({draw.rows[0] for draw in epoch}) == len(epoch) <= one.num_samples
    first, second = ({draw.rows[0] for draw in epoch} for epoch in epochs)
    assert first != second
    everything = [draw for epoch in epochs for draw in epoch]
    assert len({draw.noise for draw in everything}) == len(everything)
    assert len({(draw.frames, draw.views) for draw in everything}) > 0.98 * len(everything)


def test_every_dataset_gets_its_share_of_an_epoch() -> None:
    sizes = [len(dataset) for dataset in corpus().datasets]
    for name, weights in (("global, mixed, selected", (2, 1)), ("shards, mixed, two windows", (1, 3))):
        one = loader(CONFIGS[name])
        taken = one.order.shares[0][1], one.order.shares[1][1]
        assert abs(taken[0] * weights[1] - taken[1] * weights[0]) <= max(weights)
        epoch = {draw.rows[0] for step in alone(name)[: one.steps_per_epoch] for draw in step}
        first = sum(row < sizes[0] for row in epoch)
        assert taken[0] - SHARE < first <= taken[0]


def other_threads(dataset: Corpus, config: DataConfig, **settings: Any) -> list[Any]:
    one = loader(config, dataset, size=16, **settings)
    batches = [next(one) for _ in range(7)]
    one.close()
    return batches


@pytest.mark.parametrize("order", ["global", "shards"])
@pytest.mark.parametrize("windows", ["own", "shared"])
def test_threads_change_no_pixel(shards: Path, order: Any, windows: Any) -> None:
    dataset = open_corpus([shards, shards])
    config = DataConfig(
        sampling_rate=2, repeat_aug=2, order=order, mix_shards=2, windows=windows, weights=(2, 1), erase=0.5,
        rand_augment="rand-m9", read_threads=1, prefetch=1, decode_threads=1,
    )  # fmt: skip
    expected = other_threads(dataset, config, global_batch=4)
    for threads in ({"read_threads": 5, "prefetch": 3}, {"decode_threads": 2}):
        for ours, theirs in zip(
            other_threads(dataset, replace(config, **threads), global_batch=4), expected, strict=True
        ):
            assert torch.equal(ours.clips, theirs.clips)
            assert torch.equal(ours.rows, theirs.rows)


def on_rank(world: World, cases: list[tuple[Path, dict[str, Any]]]) -> list[list[tuple[int, list[int]]]]:
    """Two epochs of each case, with a collective every step: who has one step less than the others hangs them all."""
    taken = []
    for path, settings in cases:
        one = Loader(
            open_corpus([path]), DataConfig(sampling_rate=1, repeat_aug=1, decode_threads=1, **settings), num_frames=2,
            size=16, seed=0, global_batch=4, rank=world.ranks.rank, world=world.ranks.size, local_world=2,
        )  # fmt: skip
        steps = []
        for _ in range(2 * one.steps_per_epoch):
            batch = next(one)
            assert world.total(1) == world.ranks.size
            steps.append((batch.epoch, batch.rows[:, 0].tolist()))
        one.close()
        taken.append(steps)
    return taken


def test_fault_21_fault_22_fewer_shards_than_ranks_and_uneven_ones_give_all_ranks_the_same_steps(
    tmp_path: Path, shards: Path
) -> None:
    single = build_shards(tmp_path, "--shard-size", "14")
    corpus = open_corpus([shards])
    names = tmp_path / "names.txt"  # of the four shards of 4, 4, 4, 2 samples: 4, 0, 1, 1
    names.write_text("\n".join(corpus.key(row) for row in (0, 1, 2, 3, 9, 13)))
    cases = [
        (path, {"order": order} | more)
        for path, more in ((single, {}), (shards, {"select": SelectConfig(names=str(names))}))
        for order in ("global", "shards")
    ]
    first, second = run_ranks(on_rank, cases, world=2)
    for ours, theirs, (path, _) in zip(first, second, cases, strict=True):
        assert len(ours) == len(theirs) == 2 * (3 if path == single else 1)
        for epoch in (0, 1):
            rows = [row for rank in (ours, theirs) for number, taken in rank if number == epoch for row in taken]
            assert len(rows) == len(set(rows)) == (12 if path == single else 4)


def test_fault_21_no_step_an_epoch_is_refused_with_the_remedy(shards: Path) -> None:
    for order in ("global", "shards"):
        with pytest.raises(ValueError, match=r"14 usable samples are fewer than train\.global_batch=168.*Lower"):
            loader(replace(PLAIN, order=order), open_corpus([shards]))


@pytest.mark.parametrize("order", ["global", "shards"])
def test_planning_keeps_nothing_of_what_was_planned(order: Literal["global", "shards"]) -> None:
    """A day of batches takes the memory of a few: after four times as many there is no byte more."""
    config = replace(PLAIN, order=order, repeat_aug=2, colour_jitter=0.4)
    requests = loader(config, Corpus([index_only([8] * 6, seed=1)]), global_batch=4).requests()
    taken = []
    tracemalloc.start()
    try:
        for count in (12, 12, 48):  # an epoch, again one, four
            for _ in islice(requests, count):
                pass
            gc.collect()
            taken.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert taken[2] - taken[1] < 6000  # two requests are larger
