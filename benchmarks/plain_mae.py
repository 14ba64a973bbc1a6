"""The masked autoencoder written out as in its paper: the baseline for the lean one.

    plain = PlainMAE(config)
    plain.load_state_dict(to_foreign(model.state_dict(), config, format="mae_st"))
    plain(clip, noise)        # float32 scalar: the loss of `model(clip, noise)`

Written for this benchmark from arXiv 2205.09113 and the description of the published one: every patch is embedded by a
3-D convolution, query, key and value are three matrices, the scores of all heads are made and kept, tokens are put back
in order, every token goes through the whole decoder and its head, every patch has a target, and the loss is masked.
Class token and separable positions, as in the published recipes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mae3d.model.config import MAEConfig
from mae3d.model.patches import target_frames

EPS = 1e-6


class PlainAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, written out."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, (B, N, D) -> (B, N, D)."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, heads, N, N)
        attended: Tensor = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return attended


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, bias: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = PlainAttention(width, heads, bias=bias)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + mixed


class PlainMAE(nn.Module):
    """The plain autoencoder; its parameters have mae_st's names, so that weights come through mae3d.weights.convert."""

    cls_token: nn.Parameter
    mask_token: nn.Parameter
    decoder_cls_token: nn.Parameter
    pos_embed_class: nn.Parameter
    decoder_pos_embed_class: nn.Parameter

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        assert config.cls_embed, config
        assert config.sep_pos_embed, config
        self.config = config
        (t, h, w), width, narrow = config.grid, config.embed_dim, config.decoder_embed_dim
        kernel = (config.t_patch_size, config.patch_size, config.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, kernel, stride=kernel)})

        def blocks(size: int, heads: int, depth: int) -> nn.ModuleList:
            ratio, bias = config.mlp_ratio, config.qkv_bias
            return nn.ModuleList(PlainBlock(size, heads, mlp_ratio=ratio, bias=bias) for _ in range(depth))

        self.blocks = blocks(width, config.num_heads, config.depth)
        self.decoder_blocks = blocks(narrow, config.decoder_num_heads, config.decoder_depth)
        self.norm, self.decoder_norm = nn.LayerNorm(width, EPS), nn.LayerNorm(narrow, EPS)
        self.decoder_embed = nn.Linear(width, narrow)
        self.decoder_pred = nn.Linear(narrow, config.pred_u * config.patch_size**2 * 3)
        tables = {"cls_token": (1, width), "mask_token": (1, narrow), "decoder_cls_token": (1, narrow)}
        for prefix, size in (("", width), ("decoder_", narrow)):
            for kind, rows in (("spatial", h * w), ("temporal", t), ("class", 1)):
                tables[f"{prefix}pos_embed_{kind}"] = (rows, size)
        for name, table in tables.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, *table)))

    def forward(self, clip: Tensor, noise: Tensor) -> Tensor:
        """Return the loss, float32, of a normalised float clip (B, 3, T, H, W) and noise (B, L)."""
        config, batch = self.config, len(clip)
        ids_shuffle = noise.argsort(dim=1, stable=True)
        ids_restore = ids_shuffle.argsort(dim=1)
        ids_keep = ids_shuffle[:, : config.num_kept]
        mask = torch.ones_like(noise)
        mask[:, : config.num_kept] = 0
        mask = mask.gather(1, ids_restore)

        conv: Any = self.patch_embed["proj"]
        x = conv(clip.to(conv.weight.dtype)).flatten(2).transpose(1, 2)  # (B, L, D)
        x = _pick(x, ids_keep) + _pick(self._positions("").expand(batch, -1, -1), ids_keep)
        x = torch.cat([(self.cls_token + self.pos_embed_class).expand(batch, -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x)[:, 1:])

        hidden = self.mask_token.expand(batch, config.num_tokens - config.num_kept, -1).to(x.dtype)
        x = _pick(torch.cat([x, hidden], dim=1), ids_restore)
        x = torch.cat([self.decoder_cls_token.expand(batch, -1, -1).to(x.dtype), x], dim=1)
        x = x + torch.cat([self.decoder_pos_embed_class, self._positions("decoder_")], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        return self._loss(clip, pred, mask)

    def _positions(self, prefix: str) -> Tensor:
        """Return positions, (1, L, D): space tiled over time, time repeated over space."""
        t, h, w = self.config.grid
        space, time = getattr(self, f"{prefix}pos_embed_spatial"), getattr(self, f"{prefix}pos_embed_temporal")
        positions: Tensor = space.repeat(1, t, 1) + time.repeat_interleave(h * w, dim=1)
        return positions

    def _loss(self, clip: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        config = self.config
        with torch.no_grad():
            frames = clip.float()[:, :, target_frames(config.num_frames, config.pred_t_dim, rule=config.target_rule)]
            size = config.patch_size
            cut = frames.unflatten(4, (-1, size)).unflatten(3, (-1, size)).unflatten(2, (-1, config.pred_u))
            target = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)  # (B, L, u p q c)
            if config.norm_pix_loss:
                target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + EPS).sqrt()
        error = (pred.float() - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()


def _pick(x: Tensor, ids: Tensor) -> Tensor:
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))
