"""Number of samples, global batch and seed ─► which sample every rank sees at every step, and the state to go on from.

    order = Order(num_samples=240_000, global_batch=512, seed=0)
    order.slots(epoch=3, step=17, rank=1, world=8)     # positions in the epoch, contiguous by rank
    order.samples(epoch=3, positions=...)              # dataset rows

Everything is a pure function of (seed, epoch, position): the same samples at every world size and after every resume.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Stream tags keep the draws of different purposes apart; each is the second word of a Philox key.
ORDER_STREAM, WINDOW_STREAM, CROP_STREAM = 0x6F726465, 0x77696E64, 0x63726F70


def philox(seed: int, stream: int, *, epoch: int, position: int = 0, view: int = 0) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (counter-based: Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, view, position, epoch]))


def micro_batch(global_batch: int, *, world: int, accumulation: int) -> int:
    """Samples a rank takes at once: global_batch / (world x accumulation), which must be whole.

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


@dataclass(frozen=True)
class Order:
    """A true global permutation each epoch; the num_samples mod global_batch left out differ from epoch to epoch."""

    num_samples: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise ValueError(
                f"{self.num_samples} usable samples are fewer than train.global_batch={self.global_batch}: "
                "an epoch would have no step. Lower train.global_batch or add samples"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch: the same on all ranks."""
        return self.num_samples // self.global_batch

    def slots(self, *, epoch_step: int, rank: int, world: int) -> np.ndarray:
        """Positions in the epoch that `rank` takes at step `epoch_step`: its share of [kG, (k+1)G)."""
        share = self.global_batch // world
        start = epoch_step * self.global_batch + rank * share
        return np.arange(start, start + share, dtype=np.int64)

    def samples(self, positions: np.ndarray, *, epoch: int) -> np.ndarray:
        """Sample numbers (0 ... num_samples - 1) at these positions of the epoch."""
        return _permutation(self.num_samples, self.seed, epoch)[positions]


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return philox(seed, ORDER_STREAM, epoch=epoch).permutation(num_samples)
