"""Clips are cut into patch vectors and put together again, in the shapes and orders that everything else relies on.

clip (B, T, H, W, C) ◄─► patches (B, L, P)

Legend, used by all files of this room, also as suffixes of names (`patches_BLP`):

    B clips, T frames, H x W pixels, C channels          clip: uint8 or uint16 (B, T, H, W, C), or normalised float
    u frames x p rows x q columns make a patch (q = p)         (B, C, T, H, W)
    t = T/u, h = H/p, w = W/p: the grid                  P = u*p*q*C values of a patch, ordered u, p, q, c
    L = t*h*w tokens, in the order t, h, w               D the encoder's width
    K kept (visible) tokens, M = L - K masked (hidden)   N tokens of a block: K or L, plus the class token

    visible_BKP = gather_patches(patch_view(clip, frames_per_patch=2, patch_size=16), ids_keep)

A view costs nothing; only gathered patches are ever copied.
"""

import torch
from torch import Tensor

Pixel = float | tuple[float, ...]  # one value, or one for each channel
# Kinds of whole numbers that pixels are, with the value that stands for 1.
LEVELS = {torch.uint8: 255, torch.uint16: 65535}

EPS = 1e-6  # inside the square root of a patch's deviation, as upstream has it


def frames_last(clip: Tensor, channels: int = 3) -> Tensor:
    """Return a view (B, T, H, W, C) of a clip in either layout: whole numbers have it, float is (B, C, T, H, W).

    Raises:
        ValueError: The clip has neither layout, or another number of channels.
    """
    if clip.dtype in LEVELS and clip.ndim == 5 and clip.shape[-1] == channels:
        return clip
    if clip.is_floating_point() and clip.ndim == 5 and clip.shape[1] == channels:
        return clip.permute(0, 2, 3, 4, 1)
    raise ValueError(
        f"clip is {clip.dtype} {tuple(clip.shape)}: give uint16 or uint8 (B, T, H, W, {channels}) or normalised float "
        f"(B, {channels}, T, H, W)"
    )


def target_frames(num_frames: int, pred_t_dim: int, *, rule: str = "even") -> list[int]:
    """Return the frames that are predicted, spread evenly from first to last, truncated: 16, 8 ─► 0, 2, ..., 12, 15.

    torch.linspace computes them in float32, as mae_st does, so that truncation falls on the same side. The rule
    `stride` is PySlowFast's: every n-th frame (16, 8 ─► 0, 2, ..., 12, 14).
    """
    if rule == "stride":
        return [i * num_frames // pred_t_dim for i in range(pred_t_dim)]
    frames: list[int] = torch.linspace(0, num_frames - 1, pred_t_dim, device="cpu").long().tolist()
    return frames


def patch_view(
    clip: Tensor, *, frames_per_patch: int, patch_size: int, channels: int = 3, frames: list[int] | None = None
) -> Tensor:
    """Cut a clip into patches without copying its pixels.

    Args:
        clip: uint8 or uint16 (B, T, H, W, C) or float (B, C, T, H, W).
        frames_per_patch: u.
        patch_size: p = q, pixels.
        channels: C.
        frames: Frames to take; None for all. A choice is copied.

    Returns:
        (B, t, h, w, u, p, q, C), of the clip's dtype.

    Raises:
        ValueError: The clip has neither layout, or another number of channels.
    """
    x_BTHWC = frames_last(clip, channels)
    if frames is not None and frames != list(range(x_BTHWC.shape[1])):
        x_BTHWC = torch.stack([x_BTHWC[:, i] for i in frames], dim=1)  # no index tensor: no copy to the device
    x = x_BTHWC.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size)).unflatten(1, (-1, frames_per_patch))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7)  # (B, t, u, h, p, w, q, C) ─► (B, t, h, w, u, p, q, C)


def gather_patches(view: Tensor, ids_BK: Tensor | None) -> Tensor:
    """Copy chosen patches out of a view.

    Args:
        view: (B, t, h, w, u, p, q, C), of `patch_view`.
        ids_BK: int64 token numbers; None takes all L in order.

    Returns:
        (B, K, P), of the view's dtype.
    """
    if ids_BK is None:
        return view.flatten(4).flatten(1, 3)
    batch, _, height, width = view.shape[:4]
    rows_B1 = torch.arange(batch, device=ids_BK.device)[:, None]
    at = rows_B1, ids_BK // (height * width), ids_BK // width % height, ids_BK % width
    if view.dtype == torch.uint16:  # torch gathers few unsigned kinds, and the bits of all of 16
        return view.view(torch.int16)[at].view(torch.uint16).flatten(2)
    return view[at].flatten(2)


def unpatchify(patches_BLP: Tensor, *, grid: tuple[int, int, int], patch_size: int, channels: int = 3) -> Tensor:
    """Put all patches of a clip, in token order, together to frames; undoes `gather_patches(patch_view(...), None)`.

    Args:
        patches_BLP: Patch vectors; u follows from P.
        grid: (t, h, w).
        patch_size: p = q, pixels.
        channels: C.

    Returns:
        (B, T, H, W, C).
    """
    t, h, w = grid
    batch, tokens, _ = patches_BLP.shape
    assert tokens == t * h * w, (tokens, grid)
    x = patches_BLP.reshape(batch, t, h, w, -1, patch_size, patch_size, channels)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, -1, h * patch_size, w * patch_size, channels)


def normalise(values: Tensor, *, mean: Pixel, std: Pixel) -> Tensor:
    """Normalise uint8 (..., channels fastest) to float32 (x/255 - mean) / std; floats are normalised already.

    Of uint16 the divisor is 65535.

    The constants stay Python numbers: a tensor of them would cost a copy to the device each step, and a
    buffer would be rounded when the module is cast to bfloat16.
    """
    if values.dtype not in LEVELS:
        return values.float()
    most = LEVELS[values.dtype]
    return _per_channel(values.float(), [(1 / (most * s), -m / s) for m, s in _by_channel(mean, std)])


def denormalise(values: Tensor, *, mean: Pixel, std: Pixel) -> Tensor:
    """Turn model values (..., channels fastest) into float32 pixels on [0, 255], not clipped; undoes `normalise`."""
    return _per_channel(values.float(), [(255 * s, 255 * m) for m, s in _by_channel(mean, std)])


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of each patch for norm_pix_loss: unbiased variance, 1e-6 inside the root.

    Args:
        patches: (..., P), float32.

    Returns:
        Two tensors (..., 1). The normalised patch is (x - mean) / deviation.
    """
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + EPS).sqrt()


def _by_channel(mean: Pixel, std: Pixel) -> list[tuple[float, float]]:
    """Return (mean, std) of each channel; a single pair if one value serves all."""
    count = max(len(values) if isinstance(values, tuple) else 1 for values in (mean, std))
    means, stds = (values if isinstance(values, tuple) else (values,) * count for values in (mean, std))
    return list(zip(means, stds, strict=True))


def _per_channel(x: Tensor, factors: list[tuple[float, float]]) -> Tensor:
    """Compute x * scale + shift, with one (scale, shift) for all or one per channel; channels vary fastest."""
    if len(factors) == 1:
        scale, shift = factors[0]
        return x * scale + shift
    by_channel = x.unflatten(-1, (-1, len(factors)))
    return torch.stack([by_channel[..., c] * a + b for c, (a, b) in enumerate(factors)], dim=-1).flatten(-2)
