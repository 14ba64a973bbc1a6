"""The orders: permutations that are the same for every world, leave out others each epoch, and mix as they say."""

from itertools import islice, product

import numpy as np
import pytest

from mae3d.io.random import Stream, philox
from pipelines.sampling.order import Order, ShardOrder, epoch_shares, micro_batch

# Two datasets whose shards hold 1 to 40 samples, as a selection leaves them.
COUNTS = (7, 40, 1, 33, 12, 40, 26, 40, 3, 19, 40, 40, 8, 31, 40, 22)
SHARD = np.repeat(np.arange(len(COUNTS)) * 2, COUNTS)  # every other shard has no sample that takes part
SIZES = (sum(COUNTS[:10]), sum(COUNTS[10:]))


def make(kind: str, *, seed: int = 3, global_batch: int = 24, mix_shards: int = 4, weights: tuple = ()) -> Order:
    shares = tuple(zip(SIZES, epoch_shares(SIZES, weights), strict=True))
    if kind == "global":
        return Order(SHARD, global_batch=global_batch, seed=seed, shares=shares)
    return ShardOrder(SHARD, global_batch=global_batch, seed=seed, shares=shares, mix_shards=mix_shards)


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    return order.samples(np.arange(order.steps_per_epoch * order.global_batch), epoch=epoch)


@pytest.mark.parametrize(("kind", "weights"), [*product(("global", "shards"), ((), (2, 1), (0, 1)))])
def test_every_world_sees_the_same_samples_at_every_step(kind: str, weights: tuple[float, ...]) -> None:
    order = make(kind, weights=weights)
    for epoch, world in product((0, 1), (1, 2, 3, 4, 6, 8, 12, 24)):
        ranks = [
            np.stack(
                [
                    make(kind, weights=weights).samples(order.slots(epoch_step=k, rank=r, world=world), epoch=epoch)
                    for k in range(order.steps_per_epoch)
                ]
            )
            for r in range(world)
        ]
        assert np.array_equal(np.concatenate(ranks, axis=1).ravel(), epoch_of(order, epoch))


@pytest.mark.parametrize(
    ("kind", "weights", "mix_shards"),
    [("global", (), 0), ("global", (3, 1), 0), *product(["shards"], [(), (3, 1)], [1, 2, 5, 16, 99])],
)
def test_an_epoch_has_no_sample_twice_and_leaves_out_others_each_time(
    kind: str, weights: tuple[float, ...], mix_shards: int
) -> None:
    order = make(kind, weights=weights, mix_shards=mix_shards)
    epochs = [epoch_of(order, epoch).tolist() for epoch in range(8)]
    takes = epoch_shares(SIZES, weights)
    for samples in epochs:
        assert len(samples) == len(set(samples)) == sum(takes) // 24 * 24
        first = sum(sample < SIZES[0] for sample in samples)
        assert takes[0] - 24 < first <= takes[0]
        assert takes[1] - 24 < len(samples) - first <= takes[1]
    left_out = {frozenset(range(sum(SIZES))) - frozenset(samples) for samples in epochs}
    assert len(left_out) > 4
    assert (np.array(epochs[0]) == np.array(epochs[1])).mean() < 0.1
    assert len({sample for samples in epochs for sample in samples}) > 0.95 * sum(SIZES)


def test_one_shard_is_left_out_of_evenly_too() -> None:
    order = ShardOrder(np.zeros(30, dtype=np.int32), global_batch=8, seed=0, mix_shards=4)
    left_out = [sample for epoch in range(200) for sample in set(range(30)) - set(epoch_of(order, epoch).tolist())]
    counts = np.bincount(left_out, minlength=30)
    assert counts.sum() == 200 * 6
    assert counts.min() > 15  # 40 on average


def test_nodes_read_their_own_lanes_and_cut_few_shards_in_two() -> None:
    shard = np.repeat(np.arange(100), 50)
    for nodes, mix_shards in product((1, 2, 4), (4, 8)):
        order = ShardOrder(shard, global_batch=16, seed=1, mix_shards=mix_shards)
        uses, share = 0, 16 // nodes
        for node in range(nodes):
            ahead = order.shards_ahead(epoch=0, step=0, start=node * share, stop=(node + 1) * share)
            shards = []
            for use in ahead:
                if use.first[0] == 1:
                    break
                shards.append(use)
            uses += len(shards)
            assert [use.first for use in shards] == sorted(use.first for use in shards)
            # A shard that two lanes of a node share is needed by both at one time, not at both ends of the epoch.
            assert max(use.last[1] - use.first[1] for use in shards) <= 50 * order.lanes // 16 + 1
            at_once = order.shards_at_once(start=node * share, stop=(node + 1) * share)
            assert at_once == 2 * order.lanes // nodes
            for step in range(order.steps_per_epoch):
                # What is read now and, for every lane, what comes next.
                now = [use for use in shards if use.first[1] <= step <= use.last[1]]
                assert len(now) <= at_once
        # 5000 samples are 312 steps: 8 are left out. A border of two nodes may cut a shard, no other is read twice.
        assert uses <= 100 + nodes - 1


@pytest.mark.parametrize(("weights", "steps"), [*product([(), (3, 1)], [1, 3])])
def test_no_more_shards_are_needed_than_told_however_small_they_are(weights: tuple[float, ...], steps: int) -> None:
    for mix_shards, nodes in product((1, 2, 3, 6, 10), (1, 2, 3)):
        order = make("shards", weights=weights, mix_shards=mix_shards)
        share = 24 // nodes
        for epoch, node in product(range(3), range(nodes)):
            start, stop = node * share, (node + 1) * share
            at_once = order.shards_at_once(start=start, stop=stop, steps=steps)
            by_step = epoch_of(order, epoch).reshape(-1, 24)[:, start:stop]
            for step in range(len(by_step) - steps + 1):
                assert len(np.unique(SHARD[by_step[step : step + steps]])) <= at_once


@pytest.mark.parametrize("kind", ["global", "shards"])
def test_shards_ahead_are_those_of_the_samples_whatever_step_it_begins_at(kind: str) -> None:
    order = make(kind)
    for step in (0, 5, order.steps_per_epoch - 1):
        uses = list(islice(order.shards_ahead(epoch=2, step=step, start=6, stop=12), 60))
        for epoch, begin in ((2, step), (3, 0)):
            by_step = SHARD[epoch_of(order, epoch).reshape(-1, 24)[:, 6:12]]
            here = {use.shard: use for use in uses if use.first[0] == epoch}
            assert sorted(here) == np.unique(by_step[begin:]).tolist()
            for shard, use in here.items():
                steps = np.flatnonzero((by_step == shard).any(axis=1))
                assert (use.first[1], use.last[1]) == (steps[0], steps[-1])
    assert make("global").shards_at_once(start=0, stop=6) == len(COUNTS)


def mixing(order: Order, *, labels: np.ndarray) -> dict[str, float]:
    """How far an epoch is from the storage order: shards and labels a batch, and two correlations."""
    samples = epoch_of(order, 0).astype(np.int64)
    batches = samples.reshape(-1, order.global_batch)
    return {
        "shards": float(np.mean([len(np.unique(order.shard[batch])) for batch in batches])),
        "labels": float(np.mean([len(np.unique(labels[batch])) for batch in batches])),
        "neighbours": float(np.abs(np.diff(samples)).mean() / (len(labels) / 3)),  # 1 = uniform
        "spearman": float(np.corrcoef(np.arange(len(samples)), samples)[0, 1]),
    }


def test_the_order_of_shards_mixes_as_many_shards_as_it_says() -> None:
    """The worst case: 400 labels stored one after the other, two of them in each of 200 shards."""
    count, batch = 100_000, 256
    shard, labels = np.arange(count) // 500, np.arange(count) * 400 // count
    best = mixing(Order(shard, global_batch=batch, seed=0), labels=labels)
    assert (best["shards"] > 140, best["labels"] > 185, 0.98 < best["neighbours"] < 1.02) == (True, True, True)
    assert abs(best["spearman"]) < 0.02
    for mix_shards, batch in ((4, 256), (16, 256), (64, 256), (16, 251)):  # of a prime: one lane, 16 shards a block
        order = ShardOrder(shard, global_batch=batch, seed=0, mix_shards=mix_shards)
        mixed = mixing(order, labels=labels)
        assert 0.9 * mix_shards < mixed["shards"] < 1.2 * mix_shards
        assert 1.7 * mix_shards < mixed["labels"] < 2.4 * mix_shards
        assert mixed["neighbours"] > 0.85 * (mix_shards - 1) / batch  # borders of lanes
        assert abs(mixed["spearman"]) < 0.2  # 200 shards drawn, not 100 000 samples


def test_seeds_streams_and_views_are_independent_and_repeatable() -> None:
    def draw(**place: int) -> float:
        stream = place.pop("stream", Stream.CROP)
        return philox(place.pop("seed", 0), stream, epoch=place.pop("epoch", 0), **place).random()

    draws = [draw(), draw(seed=1), draw(stream=Stream.WINDOW), draw(epoch=1), draw(position=1), draw(view=1)]
    assert len(set(draws)) == len(draws)
    assert draws[0] == draw()


def test_fault_21_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 usable samples are fewer than train\.global_batch=8"):
        Order(np.zeros(7, dtype=np.int32), global_batch=8, seed=0)
    with pytest.raises(ValueError, match=r"3 usable samples that data\.weights takes in an epoch are fewer"):
        Order(np.zeros(9, dtype=np.int32), global_batch=8, seed=0, shares=((7, 1), (2, 2)))


def test_a_batch_that_does_not_divide_names_the_worlds_that_work() -> None:
    assert micro_batch(24, world=3, accumulation=2) == 4
    with pytest.raises(ValueError, match="works with 1, 2, 3, 6 processes"):
        micro_batch(12, world=5, accumulation=2)


def test_shares_of_an_epoch_keep_the_weights_and_repeat_nothing() -> None:
    assert epoch_shares((100, 30), ()) == (100, 30)
    assert epoch_shares((100, 30), (2, 1)) == (60, 30)
    assert epoch_shares((100, 30), (1, 0)) == (100, 0)
    assert epoch_shares((10, 10, 10), (0.1, 0.2, 0.3)) == (3, 6, 10)  # floor(10 / 3), floor(20 / 3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes, weights = rng.integers(1, 1000, 3).tolist(), rng.random(3).round(2).tolist()
        takes = epoch_shares(sizes, weights)
        assert all(take <= size for take, size in zip(takes, sizes, strict=True))
        # One of them is used up to the last sample, as far as whole samples allow.
        assert any(take >= size - 1 for take, size in zip(takes, sizes, strict=True))
        whole = sum(takes)
        assert all(abs(t - whole * w / sum(weights)) < 2 for t, w in zip(takes, weights, strict=True))


@pytest.mark.parametrize(
    ("weights", "told"), [((1,), "1 for 2 datasets"), ((1, -1), "not be negative"), ((0, 0), "not all be 0")]
)
def test_weights_that_are_none_are_refused(weights: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.weights=.*{told}"):
        epoch_shares((5, 5), weights)
