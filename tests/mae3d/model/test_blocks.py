"""Attention in tiles: the CPU's in bfloat16, beside torch's in float32."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mae3d.model import blocks


def with_gradients(attend: object, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = attend(*inputs)  # type: ignore[operator]
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


@pytest.mark.parametrize("tile", [1 << 20, 1500, 7], ids=["heads at once", "rows of a head", "single rows"])
def test_attention_in_tiles_is_attention(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_TILE", tile)
    torch.manual_seed(0)
    # From a projection as the model has it: heads lie side by side, and queries are the last ones of the tokens.
    q, k, v = torch.randn(2, 50, 3, 3, 16).bfloat16().permute(2, 0, 3, 1, 4)
    q = q[:, :, -37:]
    grad = torch.randn(q.shape)
    in_float32 = with_gradients(scaled_dot_product_attention, [x.float() for x in (q, k, v)], grad)
    with torch.autocast("cpu", torch.bfloat16):  # which would take float32 for parts of it
        in_tiles = with_gradients(blocks.attend, [q, k, v], grad)
    for ours, exact in zip(in_tiles, in_float32, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - exact).norm() < 0.01 * exact.norm()
    assert {tuple(x.shape[1:]) for x in in_tiles} == {(3, 37, 16), (3, 50, 16)}


def test_tiles_cover_each_query_of_each_head_once_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for heads, queries, keys, tile in ((6, 5, 5, 50), (6, 5, 5, 1), (1, 1412, 1569, 1 << 20), (16, 157, 157, 1 << 20)):
        monkeypatch.setattr(blocks, "_TILE", tile)
        seen = torch.zeros(heads, queries)
        for part in blocks._tiles(torch.empty(heads, queries, 0), torch.empty(heads, keys, 0)):
            seen[part] += 1
            assert seen[part].numel() * keys <= max(tile, keys)
        assert seen.eq(1).all()


def test_only_bfloat16_on_the_cpu_goes_in_tiles_and_not_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    assert "Tiled" not in str(blocks.attend(x, x, x).grad_fn)
    low = x.bfloat16()
    assert "Tiled" in str(blocks.attend(low, low, low).grad_fn)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "Tiled" not in str(blocks.attend(low, low, low).grad_fn)
