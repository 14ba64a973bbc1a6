"""Positions as rotations: queries and keys are turned by angles that follow from a token's time, row and column.

grid, token numbers ─► cosines, sines

    rotation = grid_rotation((8, 14, 14), head_width=64, rule="vjepa2", ids=ids_keep, prefix=0, device=x.device)
    q, k = rotate(q, rotation), rotate(k, rotation)

The rules are those of V-JEPA 2 and V-JEPA 2.1 (facebookresearch/vjepa2): a head's width is split in three even parts,
one per axis; what is left over is not turned. No rule has parameters, so that a model takes clips of any size.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32 ([B, 1,] N, head width)

_TRAINED_PIXELS = {14: 252, 16: 256}  # by patch size: height and width whose rows and columns V-JEPA 2.1 counts in


def grid_rotation(
    grid: tuple[int, int, int],
    *,
    head_width: int,
    rule: str,
    patch_size: int,
    ids: Tensor | None,
    prefix: int,
    device: torch.device,
) -> Rotation:
    """Return the rotation of each token.

    Args:
        grid: (t, h, w).
        head_width: Width of a head, even and at least 6.
        rule: `vjepa2`: rows and columns are counted, and the second half of an axis's angles repeats the first, as
            its weights were trained with; or `vjepa2_1`: rows and columns are stretched to the grid of the training,
            and each angle serves a pair.
        patch_size: Pixels.
        ids: int64 (B, K), the visible tokens; None for all.
        prefix: Number of tokens before them, which are not turned.
        device: Device of the result.
    """
    t, h, w = grid
    numbers = torch.arange(t * h * w, device=device) if ids is None else ids
    axes = [numbers // (h * w), numbers // w % h, numbers % w]
    if rule == "vjepa2_1":
        last = _TRAINED_PIXELS.get(patch_size, 256) // patch_size - 1
        axes[1:] = [axis * last / max(count - 1, 1) for axis, count in zip(axes[1:], (h, w), strict=True)]
    half = head_width // 3 // 2
    frequencies = 1 / 10_000 ** (torch.arange(half, device=device) / half)
    parts = []
    for axis in axes:
        angles = axis[..., None] * frequencies
        parts.append(torch.cat([angles, angles], -1) if rule == "vjepa2" else angles.repeat_interleave(2, -1))
    angles = torch.cat(parts, dim=-1)
    angles = torch.nn.functional.pad(angles, (0, head_width - angles.shape[-1], prefix, 0))
    if ids is not None:
        angles = angles[:, None]  # (B, 1, N, head width): the same in all heads
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring pairs of (B, heads, N, head width), in its dtype."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin
