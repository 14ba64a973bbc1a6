"""mae3d.model.patches: orders, round trips, normalisation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.model.patches import (
    denormalise,
    gather_patches,
    normalise,
    patch_statistics,
    patch_view,
    target_frames,
    unpatchify,
)

COLOURS = [(0.45, 0.225), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.4, 0.5, 0.6), 0.2)]


SIDES = [(12, 12), (12, 20), (20, 12)]  # height and width


def clip_of(batch: int = 2, frames: int = 4, sides: tuple[int, int] = (12, 12)) -> Tensor:
    return torch.randint(0, 256, (batch, frames, *sides, 3), dtype=torch.uint8)


@pytest.mark.parametrize("sides", SIDES)
def test_tokens_run_over_t_h_w_and_values_over_u_p_q_c(sides: tuple[int, int]) -> None:
    clip = clip_of(frames=6, sides=sides)
    u, p, h, w = 3, 4, sides[0] // 4, sides[1] // 4
    patches = gather_patches(patch_view(clip, frames_per_patch=u, patch_size=p), None)
    for token, value in [(0, 0), (5, 17), (17, 143), (9, 100)]:
        t, row, column = token // (h * w), token // w % h, token % w
        du, dp, dq, c = value // (p * p * 3), value // (p * 3) % p, value // 3 % p, value % 3
        assert patches[1, token, value] == clip[1, t * u + du, row * p + dp, column * p + dq, c]


@pytest.mark.parametrize("sides", [*SIDES, (24, 12)])
@pytest.mark.parametrize(("u", "p"), [(1, 4), (2, 2), (4, 12)])
def test_unpatchify_undoes_patchify(u: int, p: int, sides: tuple[int, int]) -> None:
    clip = clip_of(sides=tuple(-(-side // p) * p for side in sides))  # type: ignore[arg-type]
    view = patch_view(clip, frames_per_patch=u, patch_size=p)
    assert torch.equal(unpatchify(gather_patches(view, None), grid=tuple(view.shape[1:4]), patch_size=p), clip)


@pytest.mark.parametrize("sides", SIDES)
def test_both_layouts_give_the_same_patches(sides: tuple[int, int]) -> None:
    clip = clip_of(sides=sides)
    other = clip.permute(0, 4, 1, 2, 3).float().contiguous()
    ids = torch.tensor([[3, 0], [8, 17]])
    ours, theirs = (gather_patches(patch_view(x, frames_per_patch=2, patch_size=4), ids) for x in (clip, other))
    assert torch.equal(ours.float(), theirs)


@pytest.mark.parametrize("sides", SIDES)
def test_gathering_equals_indexing_all_patches(sides: tuple[int, int]) -> None:
    view = patch_view(clip_of(sides=sides), frames_per_patch=2, patch_size=4)
    ids = torch.stack([torch.randperm(2 * sides[0] * sides[1] // 16) for _ in range(2)])
    all_patches = gather_patches(view, None)
    assert torch.equal(gather_patches(view, ids), all_patches[torch.arange(2)[:, None], ids])


def test_chosen_frames_are_the_ones_that_are_cut() -> None:
    clip = clip_of(frames=8)
    frames = target_frames(8, 4)
    view = patch_view(clip, frames_per_patch=1, patch_size=4, frames=frames)
    shown = unpatchify(gather_patches(view, None), grid=(4, 3, 3), patch_size=4)
    assert torch.equal(shown, clip[:, frames])


@pytest.mark.parametrize(("num_frames", "pred_t_dim"), [(16, 8), (16, 16), (8, 4), (32, 16), (64, 16), (6, 2), (4, 1)])
def test_target_frames_rise_from_the_first_and_lie_in_their_token(num_frames: int, pred_t_dim: int) -> None:
    frames = target_frames(num_frames, pred_t_dim)
    per_token = num_frames // pred_t_dim
    assert len(frames) == pred_t_dim
    assert frames[0] == 0
    assert all(frame // per_token == i for i, frame in enumerate(frames))


def test_published_target_frames() -> None:
    assert target_frames(16, 8) == [0, 2, 4, 6, 8, 10, 12, 15]


@pytest.mark.parametrize(("mean", "std"), COLOURS)
def test_normalise_is_the_formula_and_denormalise_undoes_it(mean: object, std: object) -> None:
    pixels = clip_of()
    values = normalise(pixels.flatten(3), mean=mean, std=std).view(pixels.shape)  # type: ignore[arg-type]
    expected = (pixels.numpy() / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)
    back = denormalise(values, mean=mean, std=std)  # type: ignore[arg-type]
    assert torch.equal(back.round().to(torch.uint8), pixels)


def test_floats_are_taken_as_normalised() -> None:
    values = torch.randn(3, 6)
    assert torch.equal(normalise(values, mean=0.45, std=0.225), values)


@pytest.mark.parametrize("scale", [3, 1e-3, 1e-5])  # the 1e-6 in the root counts for flat patches
def test_patch_statistics_are_numpys_unbiased_ones(scale: float) -> None:
    patches = torch.randn(2, 5, 48, dtype=torch.float64) * scale + 1
    mean, deviation = patch_statistics(patches)
    np.testing.assert_allclose(mean[..., 0].numpy(), patches.numpy().mean(-1), atol=1e-5)
    np.testing.assert_allclose(deviation[..., 0].numpy(), np.sqrt(patches.numpy().var(-1, ddof=1) + 1e-6), rtol=1e-5)


def test_a_flat_patch_has_a_finite_normalisation() -> None:
    mean, deviation = patch_statistics(torch.full((1, 1, 12), 0.7))
    assert torch.isfinite((0.7 - mean) / deviation).all()


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(2, 4, 8, 8, 3),
        torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8),
        torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
    ],
)
def test_another_layout_is_refused_with_its_shape(clip: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(B, T, H, W, 3\)"):
        patch_view(clip, frames_per_patch=2, patch_size=4)
