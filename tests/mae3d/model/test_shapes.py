"""Frames that are not square, of any channels and 16 bits: what holds of squares of colour holds of them."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise
from mae3d.model.patches import gather_patches, patch_view, unpatchify

WIDE = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=(8, 20), patch_size=4, num_frames=4, in_chans=2, mean=(0.2, 0.6), depth=2,
    embed_dim=24, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.6,
)  # fmt: skip


def clip_of(config: EncoderConfig, *, batch: int = 2) -> Tensor:
    shape = (batch, config.num_frames, config.height, config.width, config.in_chans)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def noise_of(config: EncoderConfig, *, batch: int = 2) -> Tensor:
    return mask_noise(seed=0, epoch=0, positions=range(batch), views=1, tokens=config.num_tokens)


def turned_state(model: MAE) -> dict[str, Tensor]:
    """The weights of a model that does to turned clips, rows for columns, what `model` does to clips."""
    config, state = model.config, model.state_dict()
    (t, h, w), p = config.grid, config.patch_size

    def turned(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("positions.spatial"):
            return tensor.unflatten(1, (h, w)).transpose(1, 2).flatten(1, 2)
        if name.endswith("positions.joint"):
            cls, tokens = tensor.split([tensor.shape[1] - t * h * w, t * h * w], dim=1)
            return torch.cat([cls, tokens.unflatten(1, (t, h, w)).transpose(2, 3).flatten(1, 3)], dim=1)
        if name == "encoder.patch_embed.weight":
            return tensor.unflatten(1, (-1, p, p, config.in_chans)).transpose(2, 3).flatten(1)
        if name.startswith("decoder.head."):
            return tensor.unflatten(0, (-1, p, p, config.in_chans)).transpose(1, 2).flatten(0, 3)
        return tensor

    return {name: turned(name, tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("separable", [True, False])
def test_a_turned_clip_has_the_turned_prediction(separable: bool) -> None:
    """So no part takes rows for columns, or one side for the other."""
    model = MAE(replace(WIDE, sep_pos_embed=separable, decoder_sep_pos_embed=separable))
    tall = MAE(replace(model.config, img_size=(20, 8)))
    tall.load_state_dict(turned_state(model))
    clip, noise, (t, h, w) = clip_of(WIDE), noise_of(WIDE), WIDE.grid
    turned_noise = noise.unflatten(1, (t, h, w)).transpose(2, 3).flatten(1)
    ours, theirs = model(clip, noise, full=True), tall(clip.transpose(2, 3).contiguous(), turned_noise, full=True)
    assert ours.pred.shape == (2, t * h * w, 4 * 4 * 2)
    torch.testing.assert_close(ours.loss, theirs.loss)
    frames = [
        unpatchify(out.pred, grid=one.config.grid, patch_size=4, channels=2)
        for out, one in ((ours, model), (theirs, tall))
    ]
    torch.testing.assert_close(frames[0], frames[1].transpose(2, 3), atol=1e-5, rtol=1e-5)


def test_patches_of_any_shape_and_channels_are_put_together_again() -> None:
    config = replace(WIDE, img_size=(12, 8), in_chans=5, mean=0.4)
    clip = clip_of(config)
    patches = gather_patches(patch_view(clip, frames_per_patch=2, patch_size=4, channels=5), None)
    assert torch.equal(unpatchify(patches, grid=config.grid, patch_size=4, channels=5), clip)


@pytest.mark.parametrize("channels", [1, 4])
def test_sixteen_bits_of_the_same_pixels_give_the_same_result(channels: int) -> None:
    config = replace(WIDE, in_chans=channels, mean=(0.3,) * channels)
    model, clip, noise = MAE(config), clip_of(config), noise_of(config)
    deep = (clip.int() * 257).to(torch.uint16)  # 65535 = 255 x 257
    torch.testing.assert_close(model(deep, noise).loss, model(clip, noise).loss)
    floats = (clip.permute(0, 4, 1, 2, 3) / 255 - 0.3) / config.std
    torch.testing.assert_close(model(floats, noise).loss, model(clip, noise).loss)


@pytest.mark.parametrize("kind", ["block", "tube", "frame", "interpolation"])
def test_masks_hide_as_many_tokens_of_any_grid(kind: Any) -> None:
    config = replace(WIDE, num_frames=8, pred_t_dim=4, img_size=(12, 44), mask_type=kind)
    out = MAE(config)(clip_of(config), noise_of(config))
    assert (out.mask.sum(dim=1) == config.num_tokens - config.num_kept).all()
    by_slot = out.mask.unflatten(1, config.grid)
    if kind == "tube":
        assert (by_slot == by_slot[:, :1]).all()
    if kind in ("frame", "interpolation"):
        assert (by_slot == by_slot[:, :, :1, :1]).all()


def test_a_classifier_takes_other_shapes_and_channels() -> None:
    config = ClassifierConfig.of(WIDE, num_classes=3)
    assert Classifier(config)(clip_of(config)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"4 frames, 8 x 20 pixels"):
        Classifier(config)(clip_of(config).transpose(2, 3))
    with pytest.raises(ValueError, match=r"uint8 \(B, T, H, W, 2\)"):
        Classifier(config)(clip_of(config)[..., :1])


def test_a_shape_survives_json_and_a_square_is_one_number() -> None:
    stored = json.loads(json.dumps(asdict(WIDE)))
    assert MAEConfig(**stored) == WIDE
    assert (WIDE.height, WIDE.width, WIDE.grid) == (8, 20, (2, 2, 5))
    assert replace(WIDE, img_size=(8, 8)) == replace(WIDE, img_size=8)
    before = {name: value for name, value in asdict(MAEConfig()).items() if name != "in_chans"}
    assert MAEConfig(**before).in_chans == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": (8, 22)}, r"img_size=\[8, 22\].*patch_size=4; \[8, 24\] is one"),
        ({"img_size": (8, 8, 8)}, r"\[8, 8, 8\].*height and width"),
        ({"in_chans": 0, "mean": 0.5}, "in_chans=0.*at least 1"),
        ({"in_chans": 4}, r"mean=\(0.2, 0.6\).*in_chans=4"),
        ({"std": (0.1, 0.2, 0.3)}, "std=.*in_chans=2"),
    ],
)
def test_what_fits_no_frame_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(WIDE, **settings)


def test_another_number_of_channels_takes_one_mean_and_deviation() -> None:
    config = ClassifierConfig.of(WIDE, in_chans=1)
    assert (config.mean, config.std) == (pytest.approx(0.4), WIDE.std)
    assert ClassifierConfig.of(WIDE, in_chans=1, mean=0.7).mean == 0.7
