"""Clips are cut into patch vectors and put together again, in the shapes and orders that everything else relies on.

clip (B, T, H, W, C) ◄─► patches (B, L, P)

Legend, used by all files of this room, also as suffixes of names (`patches_BLP`):

    B clips, T frames, H x W pixels, C = 3 colours       clip: uint8 (B, T, H, W, C), or normalised float
    u frames x p rows x q columns make a patch (q = p)         (B, C, T, H, W)
    t = T/u, h = H/p, w = W/p: the grid                  P = u*p*q*C values of a patch, ordered u, p, q, c
    L = t*h*w tokens, in the order t, h, w               D the encoder's width
    K kept (visible) tokens, M = L - K masked (hidden)   N tokens of a block: K or L, plus the class token

    visible_BKP = gather_patches(patch_view(clip, frames_per_patch=2, patch_size=16), ids_keep)

A view costs nothing; only gathered patches are ever copied.
"""

import torch
from torch import Tensor

Pixel = float | tuple[float, float, float]  # one value, or one for each of R, G, B

EPS = 1e-6  # inside the square root of a patch's deviation, as upstream has it


def frames_last(clip: Tensor) -> Tensor:
    """Return a view (B, T, H, W, C) of a clip in either layout: uint8 has it already, float is (B, C, T, H, W).

    Raises:
        ValueError: The clip has neither layout.
    """
    if clip.dtype == torch.uint8 and clip.ndim == 5 and clip.shape[-1] == 3:
        return clip
    if clip.is_floating_point() and clip.ndim == 5 and clip.shape[1] == 3:
        return clip.permute(0, 2, 3, 4, 1)
    raise ValueError(
        f"clip is {clip.dtype} {tuple(clip.shape)}: give uint8 (B, T, H, W, 3) or normalised float (B, 3, T, H, W)"
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


def patch_view(clip: Tensor, *, frames_per_patch: int, patch_size: int, frames: list[int] | None = None) -> Tensor:
    """Cut a clip into patches without copying its pixels.

    Args:
        clip: uint8 (B, T, H, W, 3) or float (B, 3, T, H, W).
        frames_per_patch: u.
        patch_size: p = q, pixels.
        frames: Frames to take; None for all. A choice is copied.

    Returns:
        (B, t, h, w, u, p, q, C), of the clip's dtype.

    Raises:
        ValueError: The clip has neither layout.
    """
    x_BTHWC = frames_last(clip)
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
    picked = view[rows_B1, ids_BK // (height * width), ids_BK // width % height, ids_BK % width]
    return picked.flatten(2)


def unpatchify(patches_BLP: Tensor, *, grid: tuple[int, int, int], patch_size: int) -> Tensor:
    """Put all patches of a clip, in token order, together to frames; undoes `gather_patches(patch_view(...), None)`.

    Args:
        patches_BLP: Patch vectors; u follows from P.
        grid: (t, h, w).
        patch_size: p = q, pixels.

    Returns:
        (B, T, H, W, C).
    """
    t, h, w = grid
    batch, tokens, _ = patches_BLP.shape
    assert tokens == t * h * w, (tokens, grid)
    x = patches_BLP.reshape(batch, t, h, w, -1, patch_size, patch_size, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, -1, h * patch_size, w * patch_size, 3)


def normalise(values: Tensor, *, mean: Pixel, std: Pixel) -> Tensor:
    """Normalise uint8 (..., colours fastest) to float32 (x/255 - mean) / std; floats are normalised already.

    The constants stay Python numbers: a tensor of them would cost a copy to the device each step, and a
    buffer would be rounded when the module is cast to bfloat16.
    """
    if values.dtype != torch.uint8:
        return values.float()
    return _per_colour(values.float(), [(1 / (255 * s), -m / s) for m, s in _three(mean, std)])


def denormalise(values: Tensor, *, mean: Pixel, std: Pixel) -> Tensor:
    """Turn model values (..., colours fastest) into float32 pixels on [0, 255], not clipped; undoes `normalise`."""
    return _per_colour(values.float(), [(255 * s, 255 * m) for m, s in _three(mean, std)])


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of each patch for norm_pix_loss: unbiased variance, 1e-6 inside the root.

    Args:
        patches: (..., P), float32.

    Returns:
        Two tensors (..., 1). The normalised patch is (x - mean) / deviation.
    """
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + EPS).sqrt()


def _three(mean: Pixel, std: Pixel) -> list[tuple[float, float]]:
    """Return (mean, std) of each colour; a single pair if one value serves all."""
    if isinstance(mean, tuple) or isinstance(std, tuple):
        means = mean if isinstance(mean, tuple) else (mean,) * 3
        stds = std if isinstance(std, tuple) else (std,) * 3
        return list(zip(means, stds, strict=True))
    return [(mean, std)]


def _per_colour(x: Tensor, factors: list[tuple[float, float]]) -> Tensor:
    """Compute x * scale + shift, with one (scale, shift) for all or one per colour; colours vary fastest."""
    if len(factors) == 1:
        scale, shift = factors[0]
        return x * scale + shift
    by_colour = x.unflatten(-1, (-1, 3))
    return torch.stack([by_colour[..., c] * a + b for c, (a, b) in enumerate(factors)], dim=-1).flatten(-2)
