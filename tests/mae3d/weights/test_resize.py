"""mae3d.weights.resize: every key accounted for, positions interpolated, equal grids untouched."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.encoder import Positions
from mae3d.model.mae import MAE
from mae3d.weights.convert import from_foreign, to_foreign
from mae3d.weights.files import WeightsError, load_classifier, load_model, open_encoder, save_model
from mae3d.weights.resize import (
    TransferError,
    encoder_state,
    load_autoencoder,
    load_encoder,
    resize_positions,
    resized_encoder,
)

SIZES: dict[str, Any] = {"preset": "mae_vit_tiny_patch16", "img_size": 32, "patch_size": 8, "num_frames": 8}
SMALL = MAEConfig(**SIZES, depth=1, decoder_depth=1, mask_ratio=0.5)


def classifier(**settings: Any) -> Classifier:
    return Classifier(ClassifierConfig.of(SMALL, **{"num_classes": 5, **settings})).eval()


def random_clip(size: int = 32, frames: int = 8) -> Tensor:
    return torch.randint(0, 256, (2, frames, size, size, 3), dtype=torch.uint8)


@pytest.fixture(scope="module")
def pretrained() -> MAE:
    return MAE(SMALL).eval()


@pytest.mark.parametrize("foreign", [True, False])
def test_a_saved_models_encoder_serves_unchanged(pretrained: MAE, tmp_path: Path, foreign: bool) -> None:
    path = tmp_path / ("model.pth" if foreign else "model.safetensors")
    if foreign:
        torch.save({"model": to_foreign(pretrained.state_dict(), SMALL, format="mae_st")}, path)
    else:
        save_model(pretrained, path)
    model = classifier()
    head = model.head.weight.clone()
    load_encoder(model, open_encoder(path, config=SMALL if foreign else None))
    clip = random_clip()
    assert torch.equal(model.encoder(clip), pretrained.encoder(clip))
    assert torch.equal(model.head.weight, head)


def test_another_classifiers_head_is_left_behind(tmp_path: Path) -> None:
    source = classifier(num_classes=9, dropout=0.5)
    save_model(source, tmp_path / "model.safetensors")
    opened = load_classifier(tmp_path)
    assert (opened.config, opened.training) == (source.config, False)
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), source.parameters(), strict=True))
    with pytest.raises(WeightsError, match="load_classifier"):
        load_model(tmp_path)
    model = classifier()
    load_encoder(model, open_encoder(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), source.encoder.parameters(), strict=True))
    assert model.head.weight.shape == (5, 192)


def test_a_masked_autoencoder_is_no_classifier(pretrained: MAE, tmp_path: Path) -> None:
    save_model(pretrained, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="load_model"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("separable", [True, False])
def test_equal_grids_are_untouched_bit_for_bit(separable: bool) -> None:
    config = replace(SMALL, sep_pos_embed=separable)
    state = MAE(config).encoder.state_dict()
    fitted = encoder_state(state, config, ClassifierConfig.of(config, num_classes=5))
    assert list(fitted) == list(state)
    assert all(fitted[name] is state[name] for name in state)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("size", [{"img_size": 48}, {"num_frames": 16}, {"img_size": 16, "num_frames": 4}])
def test_other_sizes_load_and_run(separable: bool, size: dict[str, int]) -> None:
    config = replace(SMALL, sep_pos_embed=separable, pred_t_dim=4)
    source = MAE(config)
    model = Classifier(ClassifierConfig.of(config, num_classes=5, **size))
    load_encoder(model, source.encoder)
    assert model(random_clip(model.config.img_size, model.config.num_frames)).isfinite().all()
    for name, parameter in model.encoder.named_parameters():
        if not name.startswith("positions.") or name == "positions.cls":
            assert torch.equal(parameter, source.encoder.get_parameter(name))


@pytest.mark.parametrize("new", [(4, 6, 6), (8, 4, 4), (2, 3, 3), (3, 7, 5), (1, 1, 1)])
@pytest.mark.parametrize("cls", [True, False])
def test_joint_and_separable_tables_agree(new: tuple[int, int, int], cls: bool) -> None:
    old = (4, 4, 4)
    separable = Positions(6, grid=old, separable=True, cls_token=cls)
    parts = {name: table.detach() for name, table in separable.named_parameters()}
    joint = separable(None)[1].detach()
    if cls:
        joint = torch.cat([parts["cls"], joint], dim=1)
    resized = {name: resize_positions(table, kind=name, old=old, new=new) for name, table in parts.items()}
    resized_joint = resize_positions(joint, kind="joint", old=old, new=new)
    tokens = (resized["temporal"][:, :, None] + resized["spatial"][:, None]).flatten(1, 2)
    torch.testing.assert_close(resized_joint[:, int(cls) :], tokens, atol=1e-6, rtol=1e-5)
    if cls:
        assert torch.equal(resized_joint[:, :1], parts["cls"])
        assert torch.equal(resized["cls"], parts["cls"])


@pytest.mark.parametrize("new", [3, 8, 13])
def test_time_is_linear_between_the_middles_of_slots(new: int) -> None:
    table = torch.randn(1, 4, 3)
    at = (np.arange(new) + 0.5) * 4 / new - 0.5  # where the new slots' middles lie among the old
    resized = resize_positions(table, kind="temporal", old=(4, 1, 1), new=(new, 1, 1))
    for d in range(3):
        np.testing.assert_allclose(resized[0, :, d], np.interp(at, range(4), table[0, :, d]), atol=1e-6)


def test_space_keeps_rows_and_columns_and_does_not_mix_dimensions() -> None:
    h, w = 6, 9
    rows, columns = torch.arange(h).float(), torch.arange(w).float()
    grid = torch.stack([rows[:, None].expand(h, w), columns.expand(h, w), torch.full((h, w), 7.0)], dim=-1)
    resized = resize_positions(grid.reshape(1, -1, 3), kind="spatial", old=(1, h, w), new=(1, 2 * h, 2 * w))
    resized = resized.view(2 * h, 2 * w, 3)
    inner = resized[4:-4, 4:-4]  # away from the edges; torch's cubic (a = -0.75) bends a line by 1/20 of a step
    expected_rows = (torch.arange(2 * h) + 0.5) / 2 - 0.5
    torch.testing.assert_close(inner[..., 0], expected_rows[4:-4, None].expand_as(inner[..., 0]), atol=0.05, rtol=0)
    expected_columns = (torch.arange(2 * w) + 0.5) / 2 - 0.5
    torch.testing.assert_close(inner[..., 1], expected_columns[4:-4].expand_as(inner[..., 1]), atol=0.05, rtol=0)
    torch.testing.assert_close(resized[..., 2], torch.full((2 * h, 2 * w), 7.0))


def test_keys_that_are_missing_or_left_over_are_named(pretrained: MAE) -> None:
    state = pretrained.encoder.state_dict()
    state["blocks.7.stray"] = state.pop("norm.weight")
    with pytest.raises(TransferError, match=r"missing: norm\.weight; left over: blocks\.7\.stray"):
        encoder_state(state, SMALL, classifier().config)


def test_settings_that_differ_are_named_and_other_pixels_warned_of(
    pretrained: MAE, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TransferError, match=r"depth is 2, not 1; only img_size"):
        load_encoder(classifier(depth=2), pretrained.encoder)
    with pytest.raises(TransferError, match=r"patch_size is 16, not 8"):
        load_encoder(classifier(patch_size=16), pretrained.encoder)
    load_encoder(classifier(mean=0.5), pretrained.encoder)
    assert re.search(r"mean is 0\.5.* 0\.45", caplog.text)


@pytest.mark.parametrize("separable", [True, False])
def test_positions_of_frames_that_are_not_square_are_resized_along_their_own_sides(separable: bool) -> None:
    """So a turned table is resized to the turned result."""
    kind = "spatial" if separable else "joint"
    t = 1 if separable else 2
    table = torch.randn(1, t * 3 * 5, 8)
    turned = table.unflatten(1, (t, 3, 5)).transpose(2, 3).flatten(1, 3)
    ours = resize_positions(table, kind=kind, old=(t, 3, 5), new=(t, 4, 10))
    theirs = resize_positions(turned, kind=kind, old=(t, 5, 3), new=(t, 10, 4))
    torch.testing.assert_close(ours.unflatten(1, (t, 4, 10)), theirs.unflatten(1, (t, 10, 4)).transpose(2, 3))


def test_a_trained_encoder_serves_frames_that_are_not_square(pretrained: MAE) -> None:
    encoder = resized_encoder(pretrained.encoder, img_size=(24, 48), num_frames=8)
    assert encoder.config.grid == (4, 3, 6)
    assert encoder(torch.zeros(1, 8, 24, 48, 3, dtype=torch.uint8)).shape == (1, 1 + 4 * 3 * 6, 192)
    back = resized_encoder(encoder, img_size=(24, 48), num_frames=8)
    assert back is encoder


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_patch_embedding_is_fitted_to_other_channels(
    pretrained: MAE, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier(in_chans=channels)
    load_encoder(model, pretrained.encoder)
    assert f"from 3 channels to {channels}" in caplog.text
    grey = random_clip()[..., :1]
    ours = model.encoder(grey.expand(-1, -1, -1, -1, channels))
    theirs = pretrained.encoder(grey.expand(-1, -1, -1, -1, 3))
    assert torch.allclose(ours, theirs, atol=1e-4) == (channels in (1, 6))
    back = classifier()
    load_encoder(back, model.encoder)
    if channels == 1:
        torch.testing.assert_close(back.encoder(grey.expand(-1, -1, -1, -1, 3)), theirs, atol=1e-4, rtol=1e-4)


def test_a_decoder_of_other_channels_is_refused_with_the_option(pretrained: MAE) -> None:
    model = MAE(replace(SMALL, in_chans=1))
    with pytest.raises(TransferError, match=r"in_chans is 1, not 3.*--model.in_chans 3; .*--init_decoder false"):
        load_autoencoder(model, pretrained)
    load_autoencoder(model, pretrained.encoder)


@pytest.mark.parametrize("format", ["mae3d", "mae_st", "pyslowfast"])
def test_a_model_of_any_shape_and_channels_is_saved_and_opened(tmp_path: Path, format: str) -> None:
    config = replace(SMALL, img_size=(16, 40), in_chans=2, mean=(0.2, 0.3), target_rule="stride", decoder_cls="encoder")
    if format == "mae_st":
        config = replace(config, target_rule="even", decoder_cls="own")
    model, clip = MAE(config).eval(), torch.randint(0, 256, (1, 8, 16, 40, 2), dtype=torch.uint8)
    if format == "mae3d":
        save_model(model, tmp_path / "model.safetensors")
        opened = load_model(tmp_path)
        assert opened.config == config
    else:
        foreign = to_foreign(model.state_dict(), config, format=format)
        hints = {"img_size": [16, 40], "num_heads": 3, "mean": config.mean, "norm_pix_loss": True, "mask_ratio": 0.5}
        read, state = from_foreign(foreign, format=format, hints=hints)
        assert (read.img_size, read.in_chans, read.grid) == ((16, 40), 2, (4, 2, 5))
        opened = MAE(config)
        opened.load_state_dict(state)
    noise = torch.rand(1, config.num_tokens)
    assert torch.equal(opened(clip, noise).pred, model(clip, noise).pred)
