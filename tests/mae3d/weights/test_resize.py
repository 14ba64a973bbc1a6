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
from mae3d.weights.convert import to_foreign
from mae3d.weights.files import WeightsError, load_classifier, load_model, open_encoder, save_model
from mae3d.weights.resize import TransferError, encoder_state, load_encoder, resize_positions

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
