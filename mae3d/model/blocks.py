"""Transformer blocks: attention and MLP, each after a norm and beside a residual.

    x = Blocks(512, depth=4, num_heads=16, mlp_ratio=4.0, qkv_bias=True)(x)     # (B, N, D) -> (B, N, D)
    x = blocks(x, asked=1412)                                                    # -> the last 1412 tokens only

Numerics and initialisation are facebookresearch/mae_st's; names of parameters are timm's. Query, key and value are one
matrix, attention is torch's scaled_dot_product_attention.
"""

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


class LayerNorm(nn.LayerNorm):
    """torch's, with upstream's epsilon."""

    def __init__(self, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(width, eps=1e-6, device=device, dtype=dtype)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, *, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, asked: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, asked, D): what the last tokens see of all."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
        if asked is not None:
            # Their queries could be a product of their own, but that costs a copy of x, and saves next to nothing.
            q = q[:, :, -asked:]
        attended: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); `drop_path` is the rate of clips that skip a branch."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads=num_heads, qkv_bias=qkv_bias)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, asked: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, asked, D): all are attended to, but only the last go on."""
        attended: Tensor = self.drop_path1(self.attn(self.norm1(x), asked))
        x = attended + (x if asked is None else x[:, -asked:])
        mixed: Tensor = self.drop_path2(self.mlp(self.norm2(x)))
        return x + mixed


class Blocks(nn.ModuleList):
    """Transformer blocks one after the other, with activation checkpointing as an option."""

    def __init__(
        self, width: int, *, depth: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float = 0.0
    ) -> None:
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # from 0 in equal steps, as upstream
        super().__init__(
            Block(width, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate) for rate in rates
        )
        self.checkpointing = False

    def forward(self, x: Tensor, asked: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or with `asked` (B, asked, D) of the last tokens: the last block does no more."""
        for i, block in enumerate(self):
            wanted = asked if i == len(self) - 1 else None
            x = checkpoint(block, x, wanted, use_reentrant=False) if self.checkpointing else block(x, wanted)
        return x if asked is None or len(self) else x[:, -asked:]


def init_linears(module: nn.Module, *, trunc: bool) -> None:
    """Upstream's for every Linear inside: Xavier, or truncated normal .02; biases 0.

    Query, key and value are drawn as three matrices, as upstream has them: Xavier's bound depends on the
    shape.
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
