"""Queries and keys are turned by time, row and column, so that their products know distances."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.model.rotations import grid_rotation, rotate

CPU = torch.device("cpu")
GRID = (3, 4, 5)
SMALL: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16", "img_size": 32, "patch_size": 8, "num_frames": 4, "embed_dim": 40, "depth": 2,
    "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "mask_ratio": 0.75,
}  # fmt: skip
ENCODER = {name: value for name, value in SMALL.items() if "decoder" not in name and name != "mask_ratio"}


def turned(x: Tensor, rule: str, ids: Tensor | None = None, prefix: int = 0) -> Tensor:
    whole = grid_rotation(GRID, head_width=x.shape[-1], rule=rule, patch_size=16, ids=ids, prefix=prefix, device=CPU)
    return rotate(x, whole)


@pytest.mark.parametrize("width", [6, 20, 64])
def test_v_jepa_2s_rule_written_out(width: int) -> None:
    """The second half of an axis's angles repeats the first, pairs are neighbours, and a rest is left as it is."""
    x = torch.randn(1, 1, 60, width)
    half = width // 3 // 2
    expected = x.clone()
    for token in range(60):
        for axis, position in enumerate((token // 20, token // 5 % 4, token % 5)):
            for i in range(2 * half):
                angle = torch.tensor(position / 10_000 ** (i % half / half))
                at = axis * 2 * half + i
                other = -x[0, 0, token, at + 1] if i % 2 == 0 else x[0, 0, token, at - 1]
                expected[0, 0, token, at] = x[0, 0, token, at] * angle.cos() + other * angle.sin()
    torch.testing.assert_close(turned(x, "vjepa2"), expected, rtol=1e-5, atol=1e-5)


def test_by_v_jepa_2_1s_rule_products_depend_on_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 64).expand(-1, -1, -1, 60, -1)
    products = (turned(q, "vjepa2_1") @ turned(k, "vjepa2_1").mT)[0, 0].unflatten(0, GRID).unflatten(3, GRID)
    torch.testing.assert_close(products[0, 0, 0, 1, 2, 3], products[1, 1, 1, 2, 3, 4], rtol=1e-4, atol=1e-4)
    assert (products[0, 0, 0, 1, 2, 3] - products[0, 0, 0, 1, 3, 2]).abs() > 1e-3


def test_visible_tokens_keep_their_angles_and_a_class_token_is_not_turned() -> None:
    x = torch.randn(2, 3, 60, 20)
    ids = torch.stack([torch.randperm(60)[:7] for _ in range(2)])
    whole = turned(x, "vjepa2")
    picked = ids[:, None, :, None].expand(-1, 3, -1, 20)
    assert torch.equal(turned(x.gather(2, picked), "vjepa2", ids), whole.gather(2, picked))
    cls = torch.randn(2, 3, 1, 20)
    assert torch.equal(turned(torch.cat([cls, x], 2), "vjepa2", prefix=1), torch.cat([cls, whole], 2))


@pytest.mark.parametrize("cls", [True, False])
def test_an_encoder_with_rotations_has_no_tables_and_knows_where_its_tokens_lie(cls: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**ENCODER, rope="vjepa2", cls_embed=cls)).eval()
    assert not any(name.startswith("positions.") for name in encoder.state_dict())
    clip = torch.randint(256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    moved = torch.roll(clip, (2, 8), dims=(1, 2))
    back = torch.roll(encoder(moved)[:, int(cls) :].unflatten(1, (2, 4, 4)), (-1, -1), dims=(1, 2))
    tokens = encoder(clip)[:, int(cls) :].unflatten(1, (2, 4, 4))
    assert (tokens - back).abs().max() > 1e-3  # without positions they would be equal
    torch.testing.assert_close(encoder.blocks(encoder.embed(moved)).sum(1), encoder.blocks(encoder.embed(clip)).sum(1))


def test_an_autoencoder_with_rotations_learns_and_repeats_with_checkpointing() -> None:
    torch.manual_seed(0)
    model = MAE(MAEConfig(**SMALL, rope="vjepa2_1"))
    clip, noise = torch.randint(256, (2, 4, 32, 32, 3), dtype=torch.uint8), torch.rand(2, 32)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(clip, noise).loss.backward()
        gradients.append(model.encoder.blocks[0].attn.qkv.weight.grad.clone())
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_heads_that_cannot_be_turned_and_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads of 5; rope=vjepa2.*even width"):
        EncoderConfig(**(ENCODER | {"num_heads": 8}), rope="vjepa2")
    with pytest.raises(ValueError, match="rope='vjepa3': did you mean vjepa2"):
        EncoderConfig(**ENCODER, rope="vjepa3")  # type: ignore[arg-type]
    assert replace(EncoderConfig(**ENCODER), rope="vjepa2").rope == "vjepa2"
