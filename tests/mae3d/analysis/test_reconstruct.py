"""mae3d.analysis.reconstruct: a perfect prediction gives the original back, a prediction of zeros the plain fill."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.analysis.reconstruct import GREY, clip_losses, copy_losses, nearest_visible, reconstruct
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE, MAEOutput
from mae3d.model.masking import mask_noise
from mae3d.model.patches import patch_statistics, target_frames

VARIANTS: list[dict[str, Any]] = [
    {"norm_pix_loss": True},
    {"norm_pix_loss": False, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"norm_pix_loss": True, "pred_t_dim": 8, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
]


class Oracle(MAE):
    """A model that predicts the target exactly, times a factor."""

    factor = 1.0

    def forward(self, clip: Tensor, noise: Tensor, full: bool = False) -> MAEOutput:
        target = self.targets(clip, None)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        return super().forward(clip, noise, full)._replace(pred=self.factor * target)


def oracle(variant: dict[str, Any]) -> tuple[Oracle, Tensor, Tensor]:
    config = MAEConfig(
        **{"preset": "mae_vit_tiny_patch16", "img_size": 16, "patch_size": 4, "num_frames": 8, "depth": 1} | variant
    )
    clip = torch.randint(0, 256, (2, 8, 16, 16, 3), dtype=torch.uint8)
    noise = mask_noise(seed=0, epoch=0, positions=[0, 1], views=1, tokens=config.num_tokens)
    return Oracle(config), clip, noise


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_perfect_prediction_is_the_original(variant: dict[str, Any]) -> None:
    model, clip, noise = oracle(variant)
    result = reconstruct(model, clip, noise)
    frames = clip[:, target_frames(8, model.config.pred_t_dim)].numpy()
    np.testing.assert_array_equal(result.original, frames)
    np.testing.assert_array_equal(result.predicted, frames)
    np.testing.assert_array_equal(result.pasted, frames)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_prediction_is_the_plain_fill(variant: dict[str, Any]) -> None:
    model, clip, noise = oracle(variant)
    model.factor = 0.0
    result = reconstruct(model, clip, noise)
    np.testing.assert_array_equal(result.predicted, result.empty)
    if not model.config.norm_pix_loss:
        colour = np.round(255 * np.array(model.config.mean))
        np.testing.assert_array_equal(result.empty, np.broadcast_to(colour, result.empty.shape))


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_pixels_are_those_of_the_mask(variant: dict[str, Any]) -> None:
    model, clip, noise = oracle(variant)
    model.factor = 0.0
    result = reconstruct(model, clip, noise)
    mask = model(clip, noise).mask.view(2, 4, 4, 4).bool().numpy()
    per_token = result.hidden.shape[1] // 4
    expected = mask.repeat(per_token, 1).repeat(4, 2).repeat(4, 3)
    np.testing.assert_array_equal(result.hidden, expected)
    assert (result.masked[expected] == GREY).all()
    for shown in (result.masked, result.pasted):
        np.testing.assert_array_equal(shown[~expected], result.original[~expected])
    np.testing.assert_array_equal(result.pasted[expected], result.predicted[expected])


def test_the_nearest_frame_that_shows_a_place_fills_it() -> None:
    frames = np.broadcast_to(10 * np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 1, 3, 3)).copy()
    hidden = np.ones((6, 1, 3), dtype=bool)
    hidden[[0, 4], 0, 0] = False  # frame 2 is as near to 0 as to 4
    hidden[:, 0, 1] = False
    filled = nearest_visible(frames, hidden)[:, 0, :, 0]
    assert filled[:, 0].tolist() == [0, 0, 0, 40, 40, 40]
    assert filled[:, 1].tolist() == [0, 10, 20, 30, 40, 50]
    assert (filled[:, 2] == round((0 + 40 + 150) / 8)).all()


@pytest.mark.parametrize("mask_type", ["tube", "prospective"])
def test_what_is_hidden_follows_the_configs_type(mask_type: str) -> None:
    model, clip, noise = oracle({"mask_type": mask_type, "mask_ratio": 0.5})
    hidden = reconstruct(model, clip, noise).hidden
    if mask_type == "tube":
        assert (hidden == hidden[:, :1]).all()
    else:
        assert not hidden[:, :2].any()
        assert hidden[:, 2:].all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", ["prospective", "retrospective", "interpolation", "frame"])
def test_copying_a_still_clip_has_no_loss(variant: dict[str, Any], mask: str) -> None:
    model, clip, noise = oracle(variant | {"mask_type": mask, "mask_ratio": 0.5})
    assert copy_losses(model, clip[:, :1].expand(-1, 8, -1, -1, -1).contiguous(), noise).abs().max() < 1e-9


@pytest.mark.parametrize(("mask", "source"), [("prospective", [3] * 4), ("retrospective", [4] * 4)])
@pytest.mark.parametrize("frames", [4, 8])
def test_the_frame_beside_the_hidden_ones_is_copied(mask: str, source: list[int], frames: int) -> None:
    """Frame i has the level 10 i all over: the loss is the mean square of the distances, by hand."""
    model, clip, noise = oracle(
        {"norm_pix_loss": False, "mask_type": mask, "mask_ratio": 0.5, "std": 0.5, "pred_t_dim": frames}
    )
    clip[:] = 10 * torch.arange(8, dtype=torch.uint8)[:, None, None, None]
    hidden = range(4, 8) if mask == "prospective" else range(4)
    targets = [i for i in target_frames(8, frames) if i in hidden]
    expected = np.mean([(10 * (i - source[0]) / 255 / 0.5) ** 2 for i in targets])
    assert copy_losses(model, clip, noise).numpy() == pytest.approx(expected, rel=1e-5)


def test_a_place_that_no_frame_shows_is_filled_with_its_mean() -> None:
    model, clip, noise = oracle({"norm_pix_loss": True, "mask_type": "tube", "mask_ratio": 0.75})
    model.factor = 0.0
    np.testing.assert_allclose(copy_losses(model, clip, noise), clip_losses(model, clip, noise).loss, rtol=1e-5)
