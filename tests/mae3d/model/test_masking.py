"""Masks partition the tokens, each type by its rule; noise is a pure function of seed, epoch, position and view."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.model.config import MAEConfig, MaskType
from mae3d.model.mae import MAE
from mae3d.model.masking import Mask, make_mask, mask_noise, predicted_ids, random_mask, running_cell

TYPES: tuple[MaskType, ...] = get_args(MaskType)
GRIDS = [(8, 14, 14), (5, 7, 7), (4, 3, 3)]


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
    together = noise_of([5, 6, 7, 8, 9])
    assert torch.equal(torch.cat([noise_of([5]), noise_of([6, 7]), noise_of([8, 9])]), together)
    assert torch.equal(mask_noise(seed=3, epoch=2, positions=torch.arange(5, 10), views=2, tokens=64), together)


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


def config_of(mask_type: MaskType, mask_ratio: float, grid: tuple[int, int, int] = (8, 14, 14)) -> MAEConfig:
    t, h, _ = grid
    return MAEConfig(
        preset="mae_vit_tiny_patch16", img_size=16 * h, num_frames=2 * t, mask_type=mask_type, mask_ratio=mask_ratio
    )


def mask_of(config: MAEConfig, noise: Tensor) -> Mask:
    return make_mask(noise, mask_type=config.mask_type, grid=config.grid, kept=config.num_kept)


def hidden(config: MAEConfig, *, clips: int = 6) -> Tensor:
    """Return the mask, bool (B, t, h, w), under fixed noise."""
    mask = mask_of(config, noise_of(list(range(clips)), views=1, tokens=config.num_tokens))
    return mask.mask.view(-1, *config.grid).bool()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("mask_type", TYPES)
def test_every_type_partitions_the_tokens_and_keeps_what_the_config_says(
    mask_type: MaskType, ratio: float, grid: tuple[int, int, int]
) -> None:
    config = config_of(mask_type, ratio, grid)
    mask = mask_of(config, noise_of([0, 1, 2], views=1, tokens=config.num_tokens))
    tokens = torch.arange(config.num_tokens).expand(3, -1)
    assert mask.ids_keep.shape == (3, config.num_kept)
    assert torch.equal(torch.cat([mask.ids_keep, mask.ids_masked], dim=1).sort(dim=1).values, tokens)
    assert torch.equal(torch.cat([mask.ids_keep, mask.ids_masked], dim=1).gather(1, mask.ids_restore), tokens)
    assert not mask.mask.gather(1, mask.ids_keep).any()
    assert mask.mask.gather(1, mask.ids_masked).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mask_type", TYPES)
def test_the_share_is_the_nearest_that_whole_units_allow(mask_type: MaskType, grid: tuple[int, int, int]) -> None:
    unit = {"random": 1, "block": 1, "tube": grid[0]}.get(mask_type, grid[1] * grid[2])
    for ratio in (0.3, 0.5, 0.6, 0.75):
        config = config_of(mask_type, ratio, grid)
        off = abs(config.num_kept - config.num_tokens * (1 - ratio))
        assert config.num_kept % unit == 0
        assert off <= (1 if unit == 1 else unit / 2) or (mask_type == "interpolation" and config.num_kept == 2 * unit)


@pytest.mark.parametrize("mask_type", TYPES)
def test_a_clips_mask_depends_on_its_own_noise_alone(mask_type: MaskType) -> None:
    config = config_of(mask_type, 0.75)
    noise = noise_of([4, 5, 6], views=1, tokens=config.num_tokens)
    together = mask_of(config, noise).mask
    assert torch.equal(mask_of(config, noise).mask, together)
    assert torch.equal(torch.cat([mask_of(config, noise[i : i + 1]).mask for i in range(3)]), together)
    drawn = mask_type in ("random", "tube", "frame", "block")
    assert (len({tuple(row.tolist()) for row in hidden(config).flatten(1)}) > 1) == drawn


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_random_is_upstreams(ratio: float) -> None:
    config = config_of("random", ratio)
    noise = noise_of([4, 5], tokens=config.num_tokens)
    for ours, upstream in zip(mask_of(config, noise), random_mask(noise, ratio), strict=True):
        assert torch.equal(ours, upstream)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_tube_hides_the_same_places_all_the_time_even_where_the_noise_has_ties(grid: tuple[int, int, int]) -> None:
    config = config_of("tube", 0.75, grid)
    ties = mask_of(config, torch.zeros(1, config.num_tokens)).mask.view(1, *grid).bool()
    for mask in (hidden(config), ties):
        assert (mask == mask[:, :1]).all()
    assert hidden(config)[:, 0].any()


def test_frame_hides_whole_slots() -> None:
    mask = hidden(config_of("frame", 0.75)).flatten(2)
    assert (mask.all(dim=2) | ~mask.any(dim=2)).all()
    assert (mask.all(dim=2).sum(dim=1) == 6).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_prospective_hides_the_last_slots_and_retrospective_is_its_mirror(grid: tuple[int, int, int]) -> None:
    future, past = (hidden(config_of(kind, 0.5, grid)) for kind in ("prospective", "retrospective"))
    seen = int(grid[0] / 2 + 0.5)
    assert not future[:, :seen].any()
    assert future[:, seen:].all()
    assert torch.equal(past, future.flip(1))


@pytest.mark.parametrize(("ratio", "first", "last"), [(0.75, 1, 1), (0.625, 2, 1), (0.5, 2, 2), (0.95, 1, 1)])
def test_interpolation_hides_the_middle(ratio: float, first: int, last: int) -> None:
    mask = hidden(config_of("interpolation", ratio))
    assert not mask[:, :first].any()
    assert mask[:, first : 8 - last].all()
    assert not mask[:, 8 - last :].any()


def cuboids_of(mask: Tensor, edges: tuple[int, int, int]) -> list[Tensor]:
    """Split one clip's (t, h, w) mask into its parts, each one cuboid."""
    a, b, c = edges
    return [part for x in mask.split(a, 0) for y in x.split(b, 1) for part in y.split(c, 2)]


@pytest.mark.parametrize(("grid", "edges"), [((8, 14, 14), (2, 4, 4)), ((5, 7, 7), (2, 2, 2)), ((4, 3, 3), (1, 1, 1))])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_blocks_are_cuboids_of_which_one_may_be_cut(
    grid: tuple[int, int, int], edges: tuple[int, int, int], ratio: float
) -> None:
    for mask in hidden(config_of("block", ratio, grid)):
        cuboids = cuboids_of(mask, edges)
        assert sum(bool(part.any()) and not bool(part.all()) for part in cuboids) <= 1
        assert any(part.any() for part in cuboids)


def test_blocks_that_fit_are_all_whole() -> None:
    mask = hidden(config_of("block", 0.75, (8, 16, 16)))
    assert all(part.all() or not part.any() for clip in mask for part in cuboids_of(clip, (2, 4, 4)))


@pytest.mark.parametrize("mask_type", ["random", "tube", "frame", "block"])
def test_every_token_is_hidden_as_often_as_any_other(mask_type: MaskType) -> None:
    config = config_of(mask_type, 0.75, (8, 4, 4))
    share = hidden(config, clips=2000).float().mean(dim=0)
    np.testing.assert_allclose(share, 0.75, atol=0.05)  # five standard deviations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_type": "tubes"}, "did you mean tube"),
        ({"mask_type": "frame", "mask_ratio": 0.95}, "keeps 0 of 1568 tokens .mask_type=frame keeps or hides 196"),
        ({"mask_type": "prospective", "mask_ratio": 0.01}, "keeps 1568 of 1568"),
        ({"mask_type": "tube", "mask_ratio": 0.999}, "mask_type=tube keeps or hides 8 at a time"),
        ({"mask_type": "interpolation", "num_frames": 4}, "two time slots must stay visible.*more frames"),
        ({"mask_type": "retrospective", "num_frames": 2}, "at least one must stay visible"),
    ],
)
def test_what_hides_nothing_or_everything_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAEConfig(preset="mae_vit_tiny_patch16", **settings)


@pytest.mark.parametrize("mask_type", TYPES)
def test_the_model_learns_under_every_type(mask_type: MaskType) -> None:
    config = MAEConfig(
        preset="mae_vit_tiny_patch16", img_size=32, patch_size=8, num_frames=8, depth=1, decoder_depth=1,
        mask_type=mask_type, mask_ratio=0.5,
    )  # fmt: skip
    clip = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    noise = noise_of([0, 1], views=1, tokens=config.num_tokens)
    out = MAE(config)(clip, noise)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.equal(out.mask, mask_of(config, noise).mask)
    assert out.latent.shape[1] == config.num_kept


@pytest.mark.parametrize("share", [1, 2, 3])
def test_the_running_cell_predicts_each_place_equally_often(share: int) -> None:
    grid = (8, 6, 6)
    predicted = running_cell(grid, predicted=share).view(grid)
    for start in range(5):
        assert (predicted[start : start + 4].sum(dim=0) == share).all()
    for slot in predicted:  # each cell of a slot alike
        assert all(int(part.sum()) == share for part in cuboids_of(slot[None], (1, 2, 2)))
    assert not torch.equal(predicted[0], predicted[1])


def test_the_running_cell_runs_over_grids_that_it_does_not_divide() -> None:
    predicted = running_cell((4, 7, 7)).view(4, 7, 7)
    assert (predicted.sum(dim=0) == 2).all()


@pytest.mark.parametrize("mask_type", TYPES)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_decoder_predicts_its_share_of_the_hidden_tokens_inside_the_cell(mask_type: MaskType, ratio: float) -> None:
    config = replace(config_of(mask_type, 0.75), decoder_mask_ratio=ratio)
    mask = mask_of(config, noise_of([0, 1, 2], views=1, tokens=config.num_tokens))
    cell = running_cell(config.grid, predicted=config.cell_predicted)
    ids = predicted_ids(mask.ids_masked, cell, config.num_predicted)
    hidden = config.num_tokens - config.num_kept
    assert ids.shape == (3, round(hidden * (1 - ratio)))
    for taken, masked in zip(ids, mask.ids_masked, strict=True):
        assert len(set(taken.tolist())) == len(taken)
        assert set(taken.tolist()) <= set(masked.tolist())
        inside = int(cell[masked].sum())
        assert int(cell[taken].sum()) == min(inside, len(taken))
        assert abs(inside - len(taken)) < 0.08 * hidden  # all but a few are the cell's


@pytest.mark.parametrize("ratio", [0.05, 0.9, 1.0, -0.5])
def test_a_running_cell_of_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"decoder_mask_ratio={ratio} (leaves . of the 4 tokens|must be at)"):
        MAEConfig(decoder_mask_ratio=ratio)
