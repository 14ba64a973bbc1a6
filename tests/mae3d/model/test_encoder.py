"""mae3d.model.encoder: only kept tokens matter, positions, initialisation, checkpointing."""

import math

import pytest
import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder, Positions, sine_table

TINY = {"preset": "mae_vit_tiny_patch16", "img_size": 16, "patch_size": 4, "num_frames": 4, "depth": 2}


def tiny(**settings: object) -> Encoder:
    return Encoder(EncoderConfig(**(TINY | settings)))  # type: ignore[arg-type]


def clip_of(batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 4, 16, 16, 3), dtype=torch.uint8)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("cls", [True, False])
def test_all_tokens_in_any_order_give_the_same_features(separable: bool, cls: bool) -> None:
    encoder = tiny(sep_pos_embed=separable, cls_embed=cls)
    clip = clip_of()
    ids = torch.stack([torch.randperm(32) for _ in range(2)])
    complete, shuffled = encoder(clip), encoder(clip, ids)
    assert complete.shape == (2, 32 + cls, 192)
    expected = complete[:, encoder.num_prefix :][torch.arange(2)[:, None], ids]
    torch.testing.assert_close(shuffled[:, encoder.num_prefix :], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled[:, : int(cls)], complete[:, : int(cls)], atol=1e-5, rtol=1e-5)


def test_hidden_pixels_do_not_matter_and_visible_ones_do() -> None:
    encoder, clip = tiny(), clip_of(1)
    ids = torch.tensor([[0, 1]])  # the first two columns of the first row, frames 0 and 1
    features = encoder(clip, ids)
    hidden, visible = clip.clone(), clip.clone()
    hidden[:, 2:] = 255 - hidden[:, 2:]
    visible[:, 0, 0, 0] = 255 - visible[:, 0, 0, 0]
    assert torch.equal(encoder(hidden, ids), features)
    assert not torch.equal(encoder(visible, ids), features)


def test_the_same_clip_as_uint8_and_as_normalised_floats() -> None:
    encoder, clip = tiny(), clip_of()
    floats = (clip.permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225
    torch.testing.assert_close(encoder(floats), encoder(clip), atol=1e-5, rtol=1e-5)


def test_separable_positions_are_the_sum_of_space_and_time() -> None:
    positions = Positions(8, grid=(2, 3, 4), separable=True, cls_token=False)
    _, table = positions(None)
    for token in range(24):
        expected = positions.temporal[0, token // 12] + positions.spatial[0, token % 12]
        torch.testing.assert_close(table[0, token], expected)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("cls", [True, False])
def test_looked_up_positions_are_rows_of_the_whole_table(separable: bool, cls: bool) -> None:
    positions = Positions(8, grid=(2, 3, 4), separable=separable, cls_token=cls)
    ids = torch.randint(0, 24, (2, 5))
    cls_position, looked_up = positions(ids)
    torch.testing.assert_close(looked_up, positions(None)[1][0][ids])
    assert (cls_position is not None) == cls


@pytest.mark.parametrize("separable", [True, False])
def test_sines_tell_positions_apart_and_near_ones_are_alike(separable: bool) -> None:
    positions = Positions(64, grid=(4, 6, 6), separable=separable, cls_token=True, sines=True)
    table = positions(None)[1][0].detach()
    likeness = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    likeness = likeness @ likeness.T
    assert (likeness.argmax(dim=1) == torch.arange(144)).all()
    origin = likeness[0].view(4, 6, 6)
    for line in (origin[:, 0, 0], origin[0, :, 0], origin[0, 0, :]):
        assert line[0] > line[1] > line[2] > line[3]


def test_sines_are_the_formula() -> None:
    table = sine_table(5, 8)
    for position in range(5):
        for i in range(4):
            assert table[position, i].item() == pytest.approx(math.sin(position / 10_000 ** (2 * i / 8)), abs=1e-6)
            assert table[position, 4 + i].item() == pytest.approx(math.cos(position / 10_000 ** (2 * i / 8)), abs=1e-6)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("grid", [(2, 3, 5), (4, 5, 2), (3, 4, 4)])
def test_sines_are_of_the_row_column_and_time_of_each_token(grid: tuple[int, int, int], separable: bool) -> None:
    positions = Positions(16, grid=grid, separable=separable, cls_token=True, sines=True)
    table = positions(None)[1][0].view(*grid, 16)
    for t, row, column in torch.cartesian_prod(*map(torch.arange, grid)).tolist():
        plane = torch.cat([sine_table(grid[1], 8)[row], sine_table(grid[2], 8)[column]])
        torch.testing.assert_close(table[t, row, column], plane + sine_table(grid[0], 16)[t])


def test_initialisation_is_upstreams() -> None:
    torch.manual_seed(0)
    encoder = tiny()
    block = encoder.blocks[0]
    # Xavier bounds of separate query, key and value matrices, not of the joined one.
    bound = math.sqrt(6 / (192 + 192))
    for part in block.attn.qkv.weight.chunk(3):
        assert 0.95 * bound < part.abs().max() <= bound
    fan_in = 2 * 4 * 4 * 3
    assert encoder.patch_embed.weight.abs().max() <= math.sqrt(6 / (fan_in + 192))
    assert 0 < encoder.patch_embed.bias.abs().max() <= 1 / math.sqrt(fan_in)
    assert all(not linear.bias.any() for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))
    for table in (encoder.cls_token, encoder.positions.spatial, encoder.positions.temporal, encoder.positions.cls):
        assert 0.014 < table.std() < 0.026


def test_truncated_initialisation_is_a_unit_normal_for_the_patches_only() -> None:
    torch.manual_seed(0)
    encoder = tiny(trunc_init=True)
    assert 0.85 < encoder.patch_embed.weight.std() < 0.91  # a unit normal cut off at 2 on both sides has 0.88
    assert 0.018 < encoder.blocks[1].mlp.fc2.weight.std() < 0.022


def test_no_qkv_bias_leaves_the_other_biases() -> None:
    names = {name for name, _ in tiny(qkv_bias=False).named_parameters()}
    assert "blocks.0.attn.qkv.bias" not in names
    assert "blocks.0.attn.proj.bias" in names


def test_checkpointing_changes_no_gradient() -> None:
    encoder, clip = tiny(), clip_of()
    gradients = []
    for enabled in (False, True):
        encoder.set_grad_checkpointing(enabled)
        encoder.zero_grad()
        encoder(clip).square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.blocks.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("shape", [(1, 4, 16, 20, 3), (1, 2, 16, 16, 3), (1, 4, 32, 32, 3)])
def test_a_clip_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4 frames, 16 x 16 pixels"):
        tiny()(torch.zeros(shape, dtype=torch.uint8))
