"""The global order: a permutation, the same for every world, and one that leaves out others each epoch."""

import numpy as np
import pytest

from pipelines.order import CROP_STREAM, WINDOW_STREAM, Order, micro_batch, philox


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_every_world_sees_the_same_samples_at_every_step(world: int) -> None:
    order = Order(num_samples=101, global_batch=12, seed=3)
    for epoch in (0, 1):
        seen = []
        for step in range(order.steps_per_epoch):
            positions = np.concatenate([order.slots(epoch_step=step, rank=r, world=world) for r in range(world)])
            assert positions.tolist() == list(range(step * 12, step * 12 + 12))
            seen += order.samples(positions, epoch=epoch).tolist()
        assert len(seen) == len(set(seen)) == 96
        assert set(seen) <= set(range(101))


def test_epochs_differ_and_leave_out_other_samples() -> None:
    order = Order(num_samples=101, global_batch=10, seed=0)
    epochs = [frozenset(order.samples(np.arange(100), epoch=e).tolist()) for e in range(8)]
    left_out = [set(range(101)) - epoch for epoch in epochs]
    assert len({frozenset(s) for s in left_out}) > 4
    first, second = (order.samples(np.arange(100), epoch=e) for e in (0, 1))
    assert (first == second).mean() < 0.1


def test_seeds_streams_and_views_are_independent_and_repeatable() -> None:
    def draw(**place: int) -> float:
        stream = place.pop("stream", CROP_STREAM)
        return philox(place.pop("seed", 0), stream, epoch=place.pop("epoch", 0), **place).random()

    draws = [draw(), draw(seed=1), draw(stream=WINDOW_STREAM), draw(epoch=1), draw(position=1), draw(view=1)]
    assert len(set(draws)) == len(draws)
    assert draws[0] == draw()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 usable samples are fewer than train\.global_batch=8"):
        Order(num_samples=7, global_batch=8, seed=0)


def test_a_batch_that_does_not_divide_names_the_worlds_that_work() -> None:
    assert micro_batch(24, world=3, accumulation=2) == 4
    with pytest.raises(ValueError, match="works with 1, 2, 3, 6 processes"):
        micro_batch(12, world=5, accumulation=2)
