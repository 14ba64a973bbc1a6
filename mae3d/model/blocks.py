"""Transformer blocks mix tokens by attention and an MLP, each after a norm and beside a residual.

    x_BND = Blocks(512, depth=4, num_heads=16, mlp_ratio=4.0, qkv_bias=True)(x_BND)     # (B, N, D) ─► (B, N, D)
    x_BOD = blocks(x_BND, num_outputs=1412)                                              # ─► the last 1412 tokens only

Numerics and initialisation are facebookresearch/mae_st's; names of parameters are timm's. Query, key and value are one
matrix, attention is torch's scaled_dot_product_attention, or on a CPU in bfloat16 our own in tiles. Shapes: legend in
patches.py; O = num_outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mae3d.model.rotations import Rotation, rotate


class LayerNorm(nn.LayerNorm):
    """torch's layer norm with upstream's epsilon."""

    def __init__(self, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(width, eps=1e-6, device=device, dtype=dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v: (B, heads, O, d) and twice (B, heads, N, d) ─► (B, heads, O, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        tiled: Tensor = TiledAttention.apply(q, k, v)
        return tiled
    return scaled_dot_product_attention(q, k, v)


class TiledAttention(torch.autograd.Function):
    """Attention whose scores are made a tile at a time, and made again in the backward pass.

    It is for bfloat16 on a CPU: torch's fused attention multiplies there at the rate of float32
    (benchmarks/RESULTS.md).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend, as `attend`."""
        ctx.save_for_backward(q, k, v)
        shape = q.shape
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        out, k_T = torch.empty_like(q), k.mT.contiguous()
        for heads, rows in _tiles(q, k):
            torch.bmm(_shares(q[heads, rows], k_T[heads]), v[heads], out=out[heads, rows])
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v; those of k and v are summed over the tiles in float32."""
        of_q, of_k, of_v = ctx.saved_tensors
        q, k, v, grad = (x.reshape(-1, *x.shape[2:]) for x in (of_q, of_k, of_v, grad))
        k_T, v_T, q_T, grad_T = (x.mT.contiguous() for x in (k, v, q, grad))
        grad_q, grad_kT, grad_vT = torch.empty_like(q), torch.zeros(k_T.shape), torch.zeros(k_T.shape)
        for heads, rows in _tiles(q, k):
            shares = _shares(q[heads, rows], k_T[heads])
            grad_vT[heads].add_(grad_T[heads, :, rows] @ shares)
            tile = grad[heads, rows] @ v_T[heads]
            torch._softmax_backward_data(tile, shares, -1, tile.dtype, grad_input=tile)
            torch.bmm(tile, k[heads], out=grad_q[heads, rows])
            grad_kT[heads].add_(q_T[heads, :, rows] @ tile)
        scale = q.shape[-1] ** -0.5
        grads = grad_q.mul_(scale), grad_kT.mul_(scale).mT.to(k.dtype), grad_vT.mT.to(v.dtype)
        return grads[0].view_as(of_q), grads[1].reshape(of_k.shape), grads[2].reshape(of_v.shape)


_TILE = 1 << 20  # scores of a tile, of which two are alive at a time: 4 MB in the cache


def _tiles(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Return the tiles of (H, O, d) queries and (H, N, d) keys: heads, and rows of their queries."""
    count, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    heads = _even(count, _TILE // (queries * keys))
    rows = _even(queries, _TILE // (heads * keys))
    for head in range(0, count, heads):
        for row in range(0, queries, rows):
            yield slice(head, head + heads), slice(row, row + rows)


def _even(length: int, most: int) -> int:
    """Return the length of a part if `length` is cut into the fewest even parts of `most`, 1 at least."""
    return -(-length // -(-length // max(1, most)))


def _shares(q: Tensor, k_T: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)), (H, O, N); the scale is applied to the sums in float32."""
    scores = torch.baddbmm(q.new_empty(()), q, k_T, beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1, out=scores)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, *, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, num_outputs: int | None = None, rotation: Rotation | None = None) -> Tensor:
        """Attend to all tokens from all of them, or from the last `num_outputs`: (B, N, D) ─► (B, N or O, D)."""
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if num_outputs is not None:
            # A separate product for these queries would cost a copy of x, and save next to nothing.
            q = q[:, :, -num_outputs:]
        attended: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return attended


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mix the channels of each token: (B, N, D) ─► (B, N, D)."""
        mixed: Tensor = self.fc2(gelu(self.fc1(x_BND)))
        return mixed


class DropPath(nn.Module):
    """In training, a share of the clips skips a branch, and the branch of the others grows to make up for it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x_BND: Tensor) -> Tensor:
        """Set the branch of some clips to zero: (B, N, D) ─► (B, N, D)."""
        if not self.training:
            return x_BND
        kept_B11 = x_BND.new_zeros(len(x_BND), 1, 1).bernoulli_(1 - self.drop_prob)
        return x_BND * (kept_B11.div_(1 - self.drop_prob) if self.drop_prob < 1 else kept_B11)


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    `drop_path` is the share of the clips that skip a branch in training.
    """

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads=num_heads, qkv_bias=qkv_bias)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BND: Tensor, num_outputs: int | None = None, rotation: Rotation | None = None) -> Tensor:
        """Attend to all tokens and return all of them, or the last `num_outputs`: (B, N, D) ─► (B, N or O, D)."""
        attended: Tensor = self.drop_path1(self.attn(self.norm1(x_BND), num_outputs, rotation))
        x = attended + (x_BND if num_outputs is None else x_BND[:, -num_outputs:])
        mixed: Tensor = self.drop_path2(self.mlp(self.norm2(x)))
        return x + mixed


class Blocks(nn.ModuleList):
    """A sequence of transformer blocks, with activation checkpointing as an option."""

    def __init__(
        self, width: int, *, depth: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float = 0.0
    ) -> None:
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # from 0 in equal steps, as upstream
        super().__init__(
            Block(width, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate) for rate in rates
        )
        self.checkpointing = False

    def forward(self, x_BND: Tensor, num_outputs: int | None = None, rotation: Rotation | None = None) -> Tensor:
        """Run all blocks: (B, N, D) ─► (B, N or O, D); the last block computes no more than its outputs."""
        x = x_BND
        for i, block in enumerate(self):
            outputs = num_outputs if i == len(self) - 1 else None
            if self.checkpointing:
                x = checkpoint(block, x, outputs, rotation, use_reentrant=False)
            else:
                x = block(x, outputs, rotation)
        return x if num_outputs is None or len(self) else x[:, -num_outputs:]


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where torch.nn.init would fill them."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Yield to a block that builds models for `load_state_dict(..., assign=True)`: no time goes into random weights.

    On the meta device some of these would load torch's compiler: over a second.
    """
    with torch.device("meta"), _Unfilled():
        yield


def init_linears(module: nn.Module, *, trunc: bool) -> None:
    """Initialise every Linear inside as upstream does: Xavier, or a truncated normal of 0.02; biases 0.

    Query, key and value are drawn as three matrices, as upstream has them: Xavier's bound depends on the shape.
    """
    for name, linear in module.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        parts = linear.weight.chunk(3) if name.split(".")[-1] == "qkv" else (linear.weight,)
        for weight in parts:
            if trunc:
                nn.init.trunc_normal_(weight, std=0.02)
            else:
                nn.init.xavier_uniform_(weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
