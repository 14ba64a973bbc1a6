"""Clips are reconstructed by a model, as uint8 frames for people to look at, and measured clip by clip.

clip, noise ─► original, masked, predicted, pasted frames; or loss and PSNR

    result = reconstruct(model, clip_uint8, mask_noise(seed=0, epoch=0, positions=rows, views=1, tokens=L))
    result.pasted[0]                      # (F, H, W, 3): the first clip's hidden patches filled in

Shapes: legend in patches.py; F = pred_t_dim, the frames that the model predicts.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae3d.model.mae import MAE
from mae3d.model.masking import make_mask
from mae3d.model.patches import (
    denormalise,
    gather_patches,
    normalise,
    patch_statistics,
    patch_view,
    unpatchify,
)

Frames = NDArray[np.uint8]  # (B, F, H, W, C)
GREY = 128  # value of a hidden patch's pixels
DEEP = (0.5, 0.2)  # mean and deviation of pictures of 16 bits on [0, 1], wherever the model's are


class Reconstruction(NamedTuple):
    """Frames of B clips, each uint8 (B, F, H, W, C).

    Clips of 16 bits are shown from 2.5 deviations of the model below its mean, black, to 2.5 above, white.


    Attributes:
        original: The clip's target frames.
        masked: Hidden patches in grey.
        predicted: The model's prediction of every patch, visible ones included (which it is never trained on).
        pasted: Predicted pixels in hidden patches, original ones in visible patches.
        empty: The result of a prediction of zeros, the least that a model must beat: the data's mean colour, or with
            norm_pix_loss each patch's mean.
        hidden: bool (B, F, H, W), the pixels of hidden patches.
        constant: float64 (B, C), the value in these pictures of the mean that the model normalises with.
    """

    original: Frames
    masked: Frames
    predicted: Frames
    pasted: Frames
    empty: Frames
    hidden: NDArray[np.bool_]
    constant: NDArray[np.float64]


@torch.no_grad()
def reconstruct(model: MAE, clip: Tensor, noise: Tensor) -> Reconstruction:
    """Hide patches, predict them and turn the prediction back into pixels.

    A model with norm_pix_loss predicts each patch up to its mean and contrast; these are then taken from the original.

    Args:
        model: The model; its config's mask_type and mask_ratio choose the hidden patches.
        clip: uint8 or uint16 (B, T, H, W, C), on the model's device.
        noise: float32 (B, L), on the same device.

    Raises:
        ValueError: The clip does not fit the config.
    """
    config = model.config
    out = model(clip, noise, full=True)
    target_BLP = model.targets(clip, None)
    values = out.pred.float()
    empty = torch.zeros_like(values)
    if config.norm_pix_loss:
        mean, deviation = patch_statistics(target_BLP)
        values, empty = values * deviation + mean, empty + mean
    hidden_BLP = out.mask[..., None].bool().expand_as(target_BLP)

    def whole(patches_BLP: Tensor) -> Tensor:
        return unpatchify(patches_BLP, grid=config.grid, patch_size=config.patch_size, channels=config.in_chans)

    def frames(patches_BLP: Tensor) -> Frames:
        pixels = whole(patches_BLP)
        return pixels.round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    middle, spread = DEEP if clip.dtype == torch.uint16 else (config.mean, config.std)
    original, predicted, blank = (frames(denormalise(x, mean=middle, std=spread)) for x in (target_BLP, values, empty))
    hidden = whole(hidden_BLP)[..., 0].cpu().numpy()
    return Reconstruction(
        original=original,
        masked=np.where(hidden[..., None], np.uint8(GREY), original),
        predicted=predicted,
        pasted=np.where(hidden[..., None], predicted, original),
        empty=blank,
        hidden=hidden,
        constant=np.broadcast_to(255 * np.asarray(middle, np.float64), (len(clip), config.in_chans)),
    )


class ClipLosses(NamedTuple):
    """Measures of the prediction of B clips, float32 (B,) each.

    Attributes:
        loss: The squared error's mean over the clip's hidden tokens; over a batch its mean is the training's loss.
        psnr: Peak signal-to-noise ratio of the hidden pixels, decibels, before rounding to 8 bits; with norm_pix_loss
            each patch's mean and contrast are the original's.
    """

    loss: Tensor
    psnr: Tensor


@torch.no_grad()
def clip_losses(model: MAE, clip: Tensor, noise: Tensor) -> ClipLosses:
    """Compute the training's loss and the PSNR of each clip alone; arguments and errors are those of `reconstruct`."""
    config = model.config
    out = model(clip, noise, full=True)
    target_BLP = model.targets(clip, None)
    contrast = torch.ones((), device=clip.device)
    if config.norm_pix_loss:
        mean, contrast = patch_statistics(target_BLP)
        target_BLP = (target_BLP - mean) / contrast
    error_BLP = out.pred.float() - target_BLP

    def over_hidden(values_BLP: Tensor) -> Tensor:
        return (values_BLP.mean(dim=2) * out.mask).sum(dim=1) / out.mask.sum(dim=1)

    # The error in pixels between 0 and 1: targets are these, less the mean and divided by the deviation.
    pixels = (error_BLP * contrast).unflatten(2, (-1, config.in_chans)) * torch.tensor(config.std, device=clip.device)
    return ClipLosses(over_hidden(error_BLP.square()), -10 * over_hidden(pixels.flatten(2).square()).log10())


@torch.no_grad()
def copy_losses(model: MAE, clip: Tensor, noise: Tensor) -> Tensor:
    """Compute the training's loss of copying visible frames instead of predicting, float32 (B,).

    A hidden patch is filled with the pixels of its place in the nearest frame that is visible there, the earlier of two
    as near: under a prospective mask the last visible frame stands still. A place that no time slot shows gets the
    data's mean colour, or with norm_pix_loss the patch's own mean. With norm_pix_loss the copy is normalised by the
    target's mean and deviation: the model's prediction is compared in these terms as well.

    Args:
        model: For its config and targets; its weights have no part in it.
        clip: uint8 or uint16 (B, T, H, W, C), on the model's device.
        noise: float32 (B, L), on the same device.
    """
    config = model.config
    (t, h, w), slots = config.grid, torch.arange(config.grid[0], device=clip.device)
    mask_BL = make_mask(noise, mask_type=config.mask_type, grid=config.grid, kept=config.num_kept).mask
    hidden_BtS = mask_BL.bool().unflatten(1, (t, h * w))
    # Distances (t, t) of slots; a hidden one is farther than any, a later one farther than the earlier one as near.
    distance = 2 * (slots[:, None] - slots).abs() + (slots > slots[:, None]).int()
    source_BtS = (distance[None, :, :, None] + 4 * t * hidden_BtS[:, None].int()).argmin(dim=2)
    view = patch_view(
        clip, frames_per_patch=config.t_patch_size, patch_size=config.patch_size, channels=config.in_chans
    )
    patches_BLP = normalise(gather_patches(view, None), mean=config.mean, std=config.std)
    patches_BLuQ = patches_BLP.unflatten(2, (config.t_patch_size, -1))
    ids_BL = (source_BtS * (h * w) + torch.arange(h * w, device=clip.device)).flatten(1)
    chosen_BLuQ = torch.gather(patches_BLuQ, 1, ids_BL[..., None, None].expand_as(patches_BLuQ))
    is_later = (source_BtS > slots[:, None]).flatten(1)[..., None]
    copied_BLQ = torch.where(is_later, chosen_BLuQ[:, :, 0], chosen_BLuQ[:, :, -1])
    copied_BLP = copied_BLQ.repeat(1, 1, config.pred_u)
    target_BLP = model.targets(clip, None)
    if config.norm_pix_loss:
        mean, deviation = patch_statistics(target_BLP)
        target_BLP, copied_BLP = (target_BLP - mean) / deviation, (copied_BLP - mean) / deviation
    is_shown = ~hidden_BtS.all(dim=1, keepdim=True).expand(-1, t, -1).flatten(1)
    error_BL = (copied_BLP * is_shown[..., None] - target_BLP).square().mean(dim=2)
    return (error_BL * mask_BL).sum(dim=1) / mask_BL.sum(dim=1)


def nearest_visible(frames: Frames, hidden: NDArray[np.bool_]) -> Frames:
    """Copy each pixel from the nearest frame that shows it, the earlier of two: the fill that a model must beat.

    Args:
        frames: uint8 (F, H, W, C), one clip.
        hidden: bool (F, H, W), with a visible pixel; pixels that no frame shows get the visible pixels' mean colour.

    Returns:
        uint8 (F, H, W, C); visible pixels are as they were.
    """
    times, filled = np.arange(len(frames)), np.empty_like(frames)
    for time in times:
        near = np.argsort(np.abs(times - time), kind="stable")
        source = near[np.argmax(~hidden[near], axis=0)]  # (H, W)
        filled[time] = np.take_along_axis(frames, source[None, :, :, None], axis=0)[0]
    filled[:, hidden.all(axis=0)] = frames[~hidden].mean(axis=0).round().astype(np.uint8)
    return filled
