"""Shards of the samples that take part, global batch and seed ─► which sample every rank sees at every step.

    order = Order(corpus.shard[rows], global_batch=512, seed=0)
    order.slots(epoch_step=17, rank=1, world=8)        # positions in the epoch, contiguous by rank
    order.samples(positions, epoch=3)                  # sample numbers: positions in `rows`

Everything is a pure function of (seed, epoch, position): the same samples at every world size and after every resume.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mae3d.io.random import Stream, philox


def micro_batch(global_batch: int, *, world: int, accumulation: int) -> int:
    """Return the samples that a rank takes at once: global_batch / (world x accumulation), which must be whole.

    Raises:
        ValueError: it is not whole; the message lists the world sizes that work.
    """
    if global_batch % (world * accumulation):
        worlds = [w for w in range(1, global_batch + 1) if global_batch % (w * accumulation) == 0]
        shown = ", ".join(map(str, worlds[:12])) + (", …" if len(worlds) > 12 else "")
        raise ValueError(
            f"train.global_batch={global_batch} cannot be split over {world} processes x {accumulation} accumulation "
            f"steps; it works with {shown or 'no'} processes. Change these, train.accumulation or train.global_batch"
        )
    return global_batch // (world * accumulation)


def epoch_shares(sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Return the samples that an epoch takes of each dataset: floor(N w / sum w), N the greatest without repetition.

    Args:
        sizes: samples of each dataset.
        weights: one for each dataset, not negative, not all 0; none = everything of every dataset.

    Raises:
        ValueError: another number of weights than datasets, a negative one, nothing but zeros.
    """
    if not weights:
        return tuple(sizes)
    if len(weights) != len(sizes):
        raise ValueError(f"data.weights={list(weights)}: {len(weights)} for {len(sizes)} datasets; give one for each")
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"data.weights={list(weights)} must not be negative and not all be 0")
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 as a tenth, so that no share falls short by rounding
    total = min(size * sum(exact) / weight for size, weight in zip(sizes, exact, strict=True) if weight)
    return tuple(int(int(total) * weight / sum(exact)) for weight in exact)


class ShardUse(NamedTuple):
    """The steps between which a shard is read, as (epoch, step of the epoch)."""

    shard: int
    first: tuple[int, int]
    last: tuple[int, int]


class Order:
    """A true global permutation each epoch; the samples left out (N mod global_batch) differ from epoch to epoch."""

    name = "global"

    def __init__(self, shard: np.ndarray, *, global_batch: int, seed: int, shares: Sequence[tuple[int, int]] = ()):
        """Check that an epoch has a step.

        Args:
            shard: (N,) the shard of each sample; samples of one shard are neighbours.
            global_batch: G, samples of one optimizer step, over all ranks.
            seed: of the order.
            shares: (samples, how many of them an epoch takes) of each dataset; none = all of one.

        Raises:
            ValueError: an epoch would have no step.
        """
        self.shard, self.global_batch, self.seed = shard, global_batch, seed
        self.shares = tuple(shares) or ((len(shard), len(shard)),)
        assert sum(size for size, _ in self.shares) == len(shard)
        self.samples_per_epoch = sum(take for _, take in self.shares)
        if self.samples_per_epoch < global_batch:
            weighted = " that data.weights takes in an epoch" if self.samples_per_epoch < len(shard) else ""
            raise ValueError(
                f"{self.samples_per_epoch} usable samples{weighted} are fewer than train.global_batch={global_batch}: "
                "an epoch would have no step. Lower train.global_batch or add samples"
            )
        self._sequence = lru_cache(maxsize=2)(self._draw)  # reading ahead crosses the end of an epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch: the same on all ranks."""
        return self.samples_per_epoch // self.global_batch

    def slots(self, *, epoch_step: int, rank: int, world: int) -> np.ndarray:
        """Return the positions in the epoch that `rank` takes at step `epoch_step`: its share of [kG, (k+1)G)."""
        share = self.global_batch // world
        start = epoch_step * self.global_batch + rank * share
        return np.arange(start, start + share, dtype=np.int64)

    def samples(self, positions: np.ndarray, *, epoch: int) -> np.ndarray:
        """Return the sample numbers (0 ... N - 1) at these positions of the epoch."""
        return self._sequence(epoch)[positions]

    def shards_ahead(self, *, epoch: int, step: int, start: int, stop: int) -> Iterator[ShardUse]:
        """Yield the shards that the given positions of each step read, in order of first need, without end.

        Args:
            epoch: where to begin.
            step: of that epoch; what was needed only before it is left out.
            start: first position within a step, such as rank * global_batch / world of a node's first rank.
            stop: the position after the last one.
        """
        while True:
            sequence = self._sequence(epoch)[: self.steps_per_epoch * self.global_batch]
            shard = self.shard[sequence.reshape(-1, self.global_batch)[:, start:stop]].ravel()
            steps = np.repeat(np.arange(self.steps_per_epoch), stop - start)
            first = np.full(int(self.shard.max()) + 1, -1)
            last = first.copy()
            first[shard[::-1]], last[shard] = steps[::-1], steps  # the last assignment to an element holds
            used = np.flatnonzero(last >= step)
            for i in used[np.argsort(first[used], kind="stable")].tolist():
                yield ShardUse(i, (epoch, int(first[i])), (epoch, int(last[i])))
            epoch, step = epoch + 1, 0

    def shards_at_once(self, *, start: int, stop: int, steps: int = 1) -> int:
        """Return the most shards that positions [start, stop) of `steps` successive steps need, with the next ones."""
        return len(np.unique(self.shard))

    def __str__(self) -> str:
        return "a permutation of all samples"

    def _draw(self, epoch: int) -> np.ndarray:
        """Draw the epoch's samples by position, (samples_per_epoch,) int32."""
        rng = philox(self.seed, Stream.ORDER, epoch=epoch)
        everything = rng.permutation(np.arange(len(self.shard), dtype=np.int32))
        return everything if len(self.shares) == 1 else everything[self._taken(everything)]

    def _taken(self, samples: np.ndarray) -> np.ndarray:
        """Return the indices in `samples` of those that the epoch takes: the first of each dataset."""
        ends = np.cumsum([size for size, _ in self.shares])
        dataset = np.searchsorted(ends, samples, side="right")
        takes = [np.flatnonzero(dataset == i)[:take] for i, (_, take) in enumerate(self.shares)]
        return np.sort(np.concatenate(takes))


class ShardOrder(Order):
    """Shuffled shards whose samples are mixed over `mix_shards` of them, for storage that hates random reads.

    An epoch's shards are shuffled and laid end to end, cut into L lanes of one length; lane l fills positions
    [l G/L, (l + 1) G/L) of every step. L is the greatest divisor of G up to mix_shards, and each lane mixes blocks of
    mix_shards / L shards. So a node whose positions are whole lanes reads the shards of its lanes only: all nodes
    together read each shard once, but for those that a border between two nodes cuts.
    """

    name = "shards"

    def __init__(
        self,
        shard: np.ndarray,
        *,
        global_batch: int,
        seed: int,
        shares: Sequence[tuple[int, int]] = (),
        mix_shards: int = 16,
    ):
        """Check as `Order` does; `mix_shards` is the number of shards that are mixed at a time."""
        super().__init__(shard, global_batch=global_batch, seed=seed, shares=shares)
        self.lanes = max(n for n in range(1, min(mix_shards, global_batch) + 1) if global_batch % n == 0)
        self.block_shards = -(-mix_shards // self.lanes)

    def shards_at_once(self, *, start: int, stop: int, steps: int = 1) -> int:
        """Return the most shards that positions [start, stop) of `steps` successive steps need, with the next ones.

        A lane needs the block that it is in and the next one, and the blocks that are so small that they lie wholly
        within these steps.
        """
        width = self.global_batch // self.lanes
        lanes = -(-stop // width) - start // width
        samples = np.sort(np.unique(self.shard, return_counts=True)[1])
        # The epoch's smallest shards that fit between the first and the last sample which these steps take of a lane;
        # a share of a dataset may end in a shard of which it takes one sample.
        inside = int(np.searchsorted(np.cumsum(samples), steps * width - 2, side="right")) + len(self.shares) - 1
        blocks = 2 + inside // self.block_shards
        return min(lanes * blocks * self.block_shards, len(samples))

    def __str__(self) -> str:
        mixed = self.lanes * self.block_shards
        return f"shuffled shards, {mixed} of them mixed at a time ({self.lanes} lanes x {self.block_shards})"

    def _draw(self, epoch: int) -> np.ndarray:
        rng = philox(self.seed, Stream.ORDER, epoch=epoch)
        sequence = self._by_shuffled_shards(rng, np.arange(len(self.shard), dtype=np.int32))
        if len(self.shares) > 1:  # whole shards of each dataset; then the shards of all are shuffled together
            sequence = self._by_shuffled_shards(rng, sequence[self._taken(sequence)])
        used = self.steps_per_epoch * self.global_batch
        left_out = sequence[used:]
        lanes = sequence[:used].reshape(self.lanes, -1)
        # Every other lane runs backwards: the shard that two lanes share is then needed by both at the same time.
        lanes[1::2] = lanes[1::2, ::-1].copy()
        shards = self.shard[lanes]
        begins = np.zeros(lanes.shape, dtype=bool)
        begins[:, 1:] = shards[:, 1:] != shards[:, :-1]
        block = np.cumsum(begins, axis=1, dtype=np.int32) // self.block_shards
        block += np.concatenate([[0], np.cumsum(block[:-1, -1] + 1)])[:, None]
        mixed = lanes.ravel()[_grouped(rng, block.ravel())]
        by_step = mixed.reshape(self.lanes, self.steps_per_epoch, -1).transpose(1, 0, 2)
        return np.concatenate([by_step.ravel(), left_out])

    def _by_shuffled_shards(self, rng: np.random.Generator, samples: np.ndarray) -> np.ndarray:
        """Order samples by shard, shards in random order, the samples of each in random order."""
        rank_of_shard = rng.permutation(int(self.shard.max()) + 1)
        return samples[_grouped(rng, rank_of_shard[self.shard[samples]])]


def _grouped(rng: np.random.Generator, group: np.ndarray) -> np.ndarray:
    """Return positions ordered by group, those of one group in random order."""
    shuffled = rng.permutation(np.arange(len(group), dtype=np.int32))
    keys = group[shuffled]
    # Numpy sorts 16-bit keys in linear time.
    return shuffled[np.argsort(keys.astype(np.uint16) if keys.max() < 1 << 16 else keys, kind="stable")]
