"""The vision transformer embeds the patches of a clip, all or chosen ones, and lets them attend to one another.

    clip, ids_keep ─► patches ─► tokens with positions ─► blocks ─► tokens
    encoder = Encoder(config)
    tokens = encoder(clip)                # (B, 1 + L, D): all tokens, after the class token if the config has one
    tokens = encoder(clip, ids_keep)      # (B, 1 + K, D): only these are embedded and attended to
    features = encoder.norm(tokens[:, encoder.num_prefix:])

Shapes: legend in patches.py. Numerics and initialisation are facebookresearch/mae_st's
(tests/mae3d/model/test_upstream_parity.py).
"""

import torch
from torch import Tensor, nn

from mae3d.io.shapes import size_text
from mae3d.model.blocks import Blocks, LayerNorm, init_linears
from mae3d.model.config import EncoderConfig
from mae3d.model.patches import gather_patches, normalise, patch_view
from mae3d.model.rotations import Rotation, grid_rotation


class Positions(nn.Module):
    """Learned positions of the tokens of a (t, h, w) grid: a table for space plus one for time, or a joint one.

    The names and shapes are upstream's: `spatial` (1, h*w, D), `temporal` (1, t, D) and `cls` (1, 1, D); or
    `joint` (1, [1 +] L, D), the class token's row first. A `fixed` joint table is VideoMAE's and in no state dict.
    """

    def __init__(
        self,
        width: int,
        *,
        grid: tuple[int, int, int],
        separable: bool,
        cls_token: bool,
        sines: bool = False,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.joint: Tensor
        t, h, w = grid
        self.plane = h * w
        self.separable = separable
        self.num_prefix = int(cls_token)
        if fixed:
            assert not separable
            self.register_buffer("joint", token_sines(t * h * w, width), persistent=False)
        elif separable:
            self.spatial = nn.Parameter(torch.empty(1, h * w, width))
            self.temporal = nn.Parameter(torch.empty(1, t, width))
            if cls_token:
                self.cls = nn.Parameter(torch.empty(1, 1, width))
        else:
            self.joint = nn.Parameter(torch.empty(1, self.num_prefix + t * h * w, width))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)
        if sines and not next(self.parameters()).is_meta:  # on it, arithmetic loads torch's compiler
            self._start_from_sines(grid, width)

    @torch.no_grad()
    def _start_from_sines(self, grid: tuple[int, int, int], width: int) -> None:
        """Fill the tables: rows in the first half of the width, columns in the second, time added over all of it."""
        t, h, w = grid
        rows, columns, times = sine_table(h, width // 2), sine_table(w, width // 2), sine_table(t, width)
        plane = torch.cat([rows.repeat_interleave(w, 0), columns.repeat(h, 1)], dim=1)
        if self.separable:
            self.spatial.copy_(plane[None])
            self.temporal.copy_(times[None])
        else:
            self.joint[:, self.num_prefix :].copy_((times[:, None] + plane).flatten(0, 1)[None])

    def forward(self, ids_BK: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Look positions up.

        Args:
            ids_BK: int64 token numbers; None for all L in order.

        Returns:
            The class token's position (1, 1, D), or None; and the tokens' positions, (B, K, D), or (1, L, D) of all.

        One call returns both, because ZeRO-3 gathers a module's parameters inside its forward only.
        """
        if not self.separable:
            cls, table = self.joint.split([self.num_prefix, self.joint.shape[1] - self.num_prefix], dim=1)
            tokens = table if ids_BK is None else nn.functional.embedding(ids_BK, table[0])
            return cls if self.num_prefix else None, tokens
        if ids_BK is None:
            tokens = (self.temporal[:, :, None] + self.spatial[:, None]).flatten(1, 2)
        else:
            tokens = nn.functional.embedding(ids_BK % self.plane, self.spatial[0])
            tokens = tokens + nn.functional.embedding(ids_BK // self.plane, self.temporal[0])
        return self.cls if self.num_prefix else None, tokens


def sine_table(length: int, width: int) -> Tensor:
    """Compute (length, width) sines, then cosines, of wavelengths from 2 pi to 10000 x 2 pi (Vaswani et al. 2017)."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(width // 2) / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def token_sines(tokens: int, width: int) -> Tensor:
    """Compute VideoMAE's table (1, tokens, width): sines and cosines in turn of the token's number, on the CPU."""
    exponents = 2 * (torch.arange(width, dtype=torch.float64, device="cpu") // 2) / width
    angles = torch.arange(tokens, dtype=torch.float64, device="cpu")[:, None] / 10_000**exponents
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]


class PatchEmbed(nn.Linear):
    """A Linear over patch vectors, which is upstream's Conv3d with stride = kernel.

    The cast to the weight's dtype comes after the gather and the normalisation, so that bfloat16 rounds a
    value once.
    """

    def forward(self, patches_BKP: Tensor) -> Tensor:
        """Embed patches: (B, K, P) of any float dtype ─► (B, K, D)."""
        return super().forward(patches_BKP.to(self.weight.dtype))


class Encoder(nn.Module):
    """A ViT over space-time patches; `drop_path` is the last block's share of skipped branches, for finetuning."""

    def __init__(self, config: EncoderConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.num_prefix = int(config.cls_embed)
        self.patch_embed = PatchEmbed(config.t_patch_size * config.patch_size**2 * config.in_chans, width)
        if config.rope == "none":
            self.positions = Positions(
                width,
                grid=config.grid,
                separable=config.sep_pos_embed,
                cls_token=config.cls_embed,
                sines=config.pos_init == "sines",
                fixed=config.pos_init == "fixed",
            )
        if config.cls_embed:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = Blocks(
            width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            drop_path=drop_path,
        )
        self.norm = LayerNorm(width)
        init_patch_embed(self.patch_embed, trunc=config.trunc_init)
        init_linears(self.blocks, trunc=config.trunc_init)

    def forward(self, clip: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embed the tokens and let them attend to one another.

        Args:
            clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W).
            ids_keep: int64 (B, K), the visible tokens; None for all L.

        Returns:
            (B, num_prefix + K, D), before `norm`: the classifier pools first and normalises then, as upstream
            does.

        Raises:
            ValueError: The clip's shape or dtype does not fit the config.
        """
        x = self.embed(clip, ids_keep)
        return self.blocks(x, rotation=self.rotation(x.device, ids_keep))

    def embed(self, clip: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embed the tokens, (B, num_prefix + K, D) with their positions; arguments and errors as in `forward`."""
        config = self.config
        view = patch_view(
            clip, frames_per_patch=config.t_patch_size, patch_size=config.patch_size, channels=config.in_chans
        )
        if tuple(view.shape[1:4]) != config.grid:
            raise ValueError(
                f"clip {tuple(clip.shape)} makes {tuple(view.shape[1:4])} tokens, not {config.grid}: give a clip of "
                f"{config.num_frames} frames, {size_text(config.img_size)} pixels"
            )
        patches_BKP = normalise(gather_patches(view, ids_keep), mean=config.mean, std=config.std)
        x_BKD, cls_position = self.patch_embed(patches_BKP), None
        if config.rope == "none":
            cls_position, positions_BKD = self.positions(ids_keep)
            # A fixed table is no parameter, and stays float32 when they become bfloat16.
            x_BKD = x_BKD + positions_BKD.to(self.patch_embed.weight.dtype)
        if not self.num_prefix:
            return x_BKD
        cls = self.cls_token if cls_position is None else self.cls_token + cls_position
        return torch.cat([cls.expand(x_BKD.shape[0], -1, -1).to(x_BKD.dtype), x_BKD], dim=1)

    def rotation(self, device: torch.device, ids_keep: Tensor | None = None) -> Rotation | None:
        """Return what turns the queries and keys of each block, None if positions are added to the tokens."""
        config = self.config
        if config.rope == "none":
            return None
        return grid_rotation(
            config.grid,
            head_width=config.embed_dim // config.num_heads,
            rule=config.rope,
            patch_size=config.patch_size,
            ids=ids_keep,
            prefix=self.num_prefix,
            device=device,
        )

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, a third more work."""
        self.blocks.checkpointing = enabled


def init_patch_embed(linear: nn.Linear, *, trunc: bool) -> None:
    """Initialise as upstream does: Xavier, or a truncated normal of deviation 1; the bias keeps torch's uniform."""
    if trunc:
        nn.init.trunc_normal_(linear.weight)
    else:
        nn.init.xavier_uniform_(linear.weight)
