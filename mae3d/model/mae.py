"""The masked autoencoder hides patches of a clip, encodes the visible ones and predicts the hidden ones' pixels.

    clip, noise ─► mask ─► encoder ─► decoder ─► predicted patches ─► loss
    model = MAE(MAEConfig(preset="mae_vit_small_patch16", num_frames=16, img_size=112))
    out = model(clip_uint8, noise)           # noise: masking.mask_noise(...)
    out.loss.backward()

The order of the tokens carries no meaning to attention, so the decoder works on [visible; hidden] as the shuffle left
them, each with its position; nothing is put back in order, and the last block and the head compute hidden tokens only.
The results are exactly upstream's, for less work. Shapes: legend in patches.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae3d.model.blocks import Blocks, LayerNorm, init_linears
from mae3d.model.config import MAEConfig
from mae3d.model.encoder import Encoder, Positions
from mae3d.model.masking import make_mask, predicted_ids, running_cell
from mae3d.model.patches import gather_patches, normalise, patch_statistics, patch_view, target_frames


class MAEOutput(NamedTuple):
    """The results of a forward pass.

    Attributes:
        loss: float32 scalar: the squared error's mean over the predicted hidden patches of the whole batch.
        pred: The predicted patches, in the model's dtype. `full=False`: (B, M, P) of the hidden tokens, in
            the order of their noise (with a decoder_mask_ratio only the running cell's tokens); `full=True`:
            (B, L, P) of every token, in token order.
        mask: float32 (B, L), 1 where hidden.
        ids_restore: int64 (B, L), as in masking.Mask.
        latent: (B, K, D), the visible tokens after the encoder's norm, without the class token.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor
    ids_restore: Tensor
    latent: Tensor


class Decoder(nn.Module):
    """A small transformer that fills in the hidden tokens and predicts their pixels."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        width = config.decoder_embed_dim
        self.embed = nn.Linear(config.embed_dim, width)
        self.num_passed = int(config.cls_embed and config.decoder_cls == "encoder")
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = Positions(
            width,
            grid=config.grid,
            separable=config.decoder_sep_pos_embed,
            cls_token=config.cls_embed,
            sines=config.pos_init != "normal",
        )
        if config.cls_embed and not self.num_passed:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))  # upstream leaves it at zero
        self.blocks = Blocks(
            width,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
        )
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, config.pred_u * config.patch_size**2 * config.in_chans)
        if config.trunc_init:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            nn.init.normal_(self.mask_token, std=0.02)
        init_linears(self, trunc=config.trunc_init)

    def forward(self, latent: Tensor, ids_keep: Tensor, ids_masked: Tensor, *, full: bool) -> Tensor:
        """Predict the pixels of tokens.

        Args:
            latent: (B, num_passed + K, D).
            ids_keep: int64 (B, K), the visible tokens.
            ids_masked: int64 (B, M), the hidden tokens that are predicted.
            full: Whether the visible tokens are predicted too.

        Returns:
            (B, M, P), or with `full` (B, K + M, P), the visible tokens first.
        """
        cls_position, positions = self.positions(torch.cat([ids_keep, ids_masked], dim=1))
        passed, visible = self.embed(latent).split([self.num_passed, ids_keep.shape[1]], dim=1)
        x = torch.cat([visible, self.mask_token.expand(*ids_masked.shape, -1).to(visible.dtype)], dim=1) + positions
        if cls_position is not None:
            cls = (passed if self.num_passed else self.cls_token) + cls_position
            x = torch.cat([cls.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        num_outputs = ids_masked.shape[1] + (ids_keep.shape[1] if full else 0)
        prediction: Tensor = self.head(self.norm(self.blocks(x, num_outputs)))
        return prediction


class MAE(nn.Module):
    """Spatiotemporal masked autoencoder (Feichtenhofer et al., arXiv 2205.09113)."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.target_frames = target_frames(config.num_frames, config.pred_t_dim, rule=config.target_rule)

    def forward(self, clip: Tensor, noise: Tensor, full: bool = False) -> MAEOutput:
        """Hide patches, encode the others, predict the hidden ones and compute the loss.

        Args:
            clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W).
            noise: float32 (B, L), from which the visible tokens follow by the config's mask_type.
            full: Whether every token is predicted, for goldens and pictures, at any decoder_mask_ratio; training needs
                the hidden ones only, or with that ratio the running cell's share of them.

        Raises:
            ValueError: The clip does not fit the config.
        """
        config, encoder = self.config, self.encoder
        ids_keep, ids_masked, ids_restore, mask = make_mask(
            noise, mask_type=config.mask_type, grid=config.grid, kept=config.num_kept
        )
        latent = encoder.norm(encoder(clip, ids_keep)[:, encoder.num_prefix - self.decoder.num_passed :])
        if config.decoder_mask_ratio and not full:
            cell = running_cell(config.grid, predicted=config.cell_predicted, device=noise.device)
            ids_masked = predicted_ids(ids_masked, cell, config.num_predicted)
        pred = self.decoder(latent, ids_keep, ids_masked, full=full)
        loss = self.loss(clip, pred[:, -ids_masked.shape[1] :], ids_masked)
        if full:
            pred = torch.gather(pred, 1, ids_restore[..., None].expand(-1, -1, pred.shape[-1]))
        return MAEOutput(loss, pred, mask, ids_restore, latent[:, self.decoder.num_passed :])

    def targets(self, clip: Tensor, ids: Tensor | None) -> Tensor:
        """Gather the target patches of the tokens `ids` (None: all), float32 (B, K, P), before norm_pix_loss's step."""
        config = self.config
        view = patch_view(
            clip,
            frames_per_patch=config.pred_u,
            patch_size=config.patch_size,
            channels=config.in_chans,
            frames=self.target_frames,
        )
        return normalise(gather_patches(view, ids), mean=config.mean, std=config.std)

    def loss(self, clip: Tensor, pred: Tensor, ids_masked: Tensor) -> Tensor:
        """Compute the mean squared error over the patches `ids_masked`, a float32 scalar.

        It equals upstream's masked sum over the mask's sum.
        """
        with torch.no_grad():
            target = self.targets(clip, ids_masked)
            if self.config.norm_pix_loss:
                mean, deviation = patch_statistics(target)
                target = (target - mean) / deviation
        return (pred.float() - target).square().mean()

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, a third more work."""
        self.encoder.set_grad_checkpointing(enabled)
        self.decoder.blocks.checkpointing = enabled
