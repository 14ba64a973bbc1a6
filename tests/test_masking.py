"""mae3d.masking: masks partition the tokens; noise is a pure function of what it is for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.config import MAEConfig
from mae3d.masking import mask_noise, random_mask


def noise_of(positions: list[int], *, seed: int = 3, epoch: int = 2, views: int = 2, tokens: int = 64) -> Tensor:
    return mask_noise(seed=seed, epoch=epoch, positions=positions, views=views, tokens=tokens)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("tokens", [8, 64, 1568])
def test_a_mask_partitions_the_tokens(tokens: int, ratio: float) -> None:
    mask = random_mask(torch.rand(3, tokens), ratio)
    for keep, masked, shown in zip(mask.ids_keep, mask.ids_masked, mask.mask, strict=True):
        assert sorted([*keep.tolist(), *masked.tolist()]) == list(range(tokens))
        assert len(keep) == int(tokens * (1 - ratio))
        assert sorted(masked.tolist()) == shown.nonzero()[:, 0].tolist()


def test_kept_tokens_are_those_with_the_smallest_noise() -> None:
    noise = torch.rand(4, 100)
    mask = random_mask(noise, 0.9)
    assert (noise.gather(1, mask.ids_keep).amax(1) <= noise.gather(1, mask.ids_masked).amin(1)).all()


def test_ids_restore_puts_the_shuffled_back() -> None:
    mask = random_mask(torch.rand(2, 50), 0.7)
    shuffled = torch.cat([mask.ids_keep, mask.ids_masked], dim=1)
    assert torch.equal(shuffled.gather(1, mask.ids_restore), torch.arange(50).expand(2, -1))


def test_ties_are_broken_by_token_order() -> None:
    mask = random_mask(torch.zeros(1, 2000), 0.9)
    assert mask.ids_keep[0].tolist() == list(range(len(mask.ids_keep[0])))


def test_the_config_counts_as_the_mask_does() -> None:
    config = MAEConfig()
    assert random_mask(torch.rand(1, config.num_tokens), config.mask_ratio).ids_keep.shape == (1, config.num_kept)


def test_noise_does_not_depend_on_how_a_batch_is_split() -> None:
    whole = noise_of([5, 6, 7, 8, 9])
    assert torch.equal(torch.cat([noise_of([5]), noise_of([6, 7]), noise_of([8, 9])]), whole)
    assert torch.equal(mask_noise(seed=3, epoch=2, positions=torch.arange(5, 10), views=2, tokens=64), whole)


def test_views_are_inside_samples_and_the_first_views_do_not_depend_on_their_number() -> None:
    two, three = noise_of([1, 2], views=2), noise_of([1, 2], views=3)
    assert torch.equal(two.view(2, 2, -1), three.view(2, 3, -1)[:, :2])


def test_noise_differs_by_seed_epoch_position_and_view() -> None:
    rows = [*noise_of([0, 1]), *noise_of([0, 1], seed=4), *noise_of([0, 1], epoch=3)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_noise_is_uniform_float32_on_the_unit_interval() -> None:
    noise = noise_of(list(range(200)), tokens=500)
    assert noise.dtype == torch.float32
    assert noise.shape == (400, 500)
    assert 0 <= noise.min() < noise.max() < 1
    counts = np.histogram(noise.numpy(), bins=10, range=(0, 1))[0] / noise.numel()
    np.testing.assert_allclose(counts, 0.1, atol=0.005)


def test_large_positions_and_seeds_are_taken() -> None:
    assert torch.isfinite(noise_of([10**12, 2**62], seed=2**63)).all()
