"""Views as data ─► pixels: what augment.py drew is done to clips that are cropped already, on a CPU and a GPU alike.

apply_views(clips, views)       # clips: (V, T, H, W, C) uint8, changed in place; views: one View for each

Every op takes and gives uint8 (T, H, W, C) and treats all frames alike. The reference is PIL, frame by frame, as timm
applies it (tests/pipelines/decoding/test_transforms.py): most ops give its very pixels, none differs by more than 1.
Hence pixels are cut
off to whole numbers after every op, as PIL does, and shapes change by PIL's bicubic kernel, which mae_st's RandAugment
has too. torchvision's own ops are not used: they keep floats or round elsewhere, and are slower on whole clips.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from mae3d.io.hooks import load
from pipelines.sampling.augment import Augment, Erase, Op, View

FILL = 128  # grey of what a rotation, shear or translation uncovers
NOISE_MEAN, NOISE_STD = 0.45, 0.225  # erased pixels are standard normal once the model has normalised them by these


def apply_views(clips: torch.Tensor, views: Sequence[View]) -> None:
    """Apply each view's ops, its erasing, then the user's augmentations, in place; views without any cost nothing.

    Args:
        clips: (V, T, H, W, C), contiguous; cropped and flipped already. Ops take uint8 of one channel or three, erasing
            takes uint16 and any number as well.
        views: V of them.

    Raises:
        ValueError: an augmentation of the user's returns no clip of that size.
        HookError: it failed.
    """
    for clip, view in zip(clips, views, strict=True):
        if view.ops:
            clip.copy_(apply_ops(clip, view.ops))
        if view.erase:
            _erase(clip, view.erase)
        if view.augment:
            _augment(clip, view.augment)


def apply_ops(clip: torch.Tensor, ops: Sequence[Op]) -> torch.Tensor:
    """Apply ops in turn, (T, H, W, C) uint8 ─► the same shape; the input is not changed."""
    for op in ops:
        apply = OPS[op.name]
        # On a CPU a few frames at a time stay in its cache: up to 2x faster. Shapes are worked out once for all frames.
        parts = clip.split(len(clip) if clip.is_cuda or op.name in RESHAPING else 2)
        clip = torch.cat([apply(part, op.amount) for part in parts])
    return clip


def _erase(clip: torch.Tensor, box: Erase) -> None:
    # Drawn on the CPU by a counter-based generator, so that a GPU gets the same noise.
    rng = np.random.Generator(np.random.Philox(key=box.seed))
    draws = rng.integers(2**16, size=(len(clip), box.height, box.width, clip.shape[-1]), dtype=np.uint16)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    clip[:, rows, columns] = torch.from_numpy(_noise_levels(clip.dtype)[draws]).to(clip.device)


def _augment(clip: torch.Tensor, augment: Augment) -> None:
    """Let the user's functions change a clip: each gets it as the one before has left it, and returns another one."""
    for text, rng in zip(augment.hooks, augment.rngs(), strict=True):
        hook = load(text, "augmentations")
        changed = hook(clip, rng)
        if isinstance(changed, np.ndarray) and changed.dtype.kind in "uifb":
            changed = torch.from_numpy(np.array(changed))  # its own memory, in order, to be written to
        if not isinstance(changed, torch.Tensor) or (changed.shape, changed.dtype) != (clip.shape, clip.dtype):
            given = f"{tuple(changed.shape)} {changed.dtype}" if isinstance(changed, torch.Tensor) else type(changed)
            raise hook.refuse(f"returned {given}: it must return a clip of {tuple(clip.shape)} {clip.dtype}")
        if changed is not clip:
            clip.copy_(changed)


@cache
def _noise_levels(kind: torch.dtype) -> np.ndarray:
    """Return 2^16 equally likely values of a normal pixel once normalised: twice as fast as drawing the normal."""
    quantiles = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    most = torch.iinfo(kind).max
    return quantiles.mul_(NOISE_STD).add_(NOISE_MEAN).mul_(most).round_().clamp_(0, most).to(kind).numpy()


def _invert(clip: torch.Tensor, amount: float) -> torch.Tensor:
    return clip.bitwise_not()


def _posterize(clip: torch.Tensor, bits: float) -> torch.Tensor:
    """Keep the highest bits; 0 bits is black."""
    return clip & (256 - 2 ** (8 - int(bits)))


def _solarize(clip: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert pixels from the threshold on."""
    if threshold > 255:
        return clip
    return clip ^ (clip >= int(threshold)).view(torch.uint8).mul_(255)


def _solarize_add(clip: torch.Tensor, amount: float) -> torch.Tensor:
    """Brighten pixels below 128; 110 is the most, so that none overflows."""
    return (clip < 128).view(torch.uint8).mul_(int(amount)).add_(clip)


def _brightness(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _cut(clip.float().mul_(factor))


def _contrast(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Move pixels away from (or towards) the mean grey of each frame."""
    mean = _grey(_channels(clip)).mean(dim=(1, 2), dtype=torch.float64).add_(0.5).floor_().float()
    return _cut(_away_from(mean[:, None, None, None], clip.float(), factor))


def _colour(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Move pixels away from (or towards) their grey."""
    channels, out = _channels(clip), torch.empty_like(clip)
    grey = _grey(channels)
    for number, channel in enumerate(channels):  # a broadcast over an innermost dimension of 3 is several times slower
        out[..., number] = _away_from(grey, channel, factor).clamp_(0, 255)
    return out


def _sharpness(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Move frames away from (or towards) a smoothed frame: 3 x 3 pixels, the middle one weighted five.

    The border stays.
    """
    step = clip.shape[-1]
    rows = clip.flatten(2).to(torch.int16)
    middle = rows[:, 1:-1, step:-step]
    three = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    thirteen = three[..., : -2 * step] + three[..., step:-step] + three[..., 2 * step :] + 4 * middle
    smooth = thirteen.float().mul_(1 / 13).add_(0.5).floor_()
    out = clip.flatten(2).clone()
    out[:, 1:-1, step:-step] = _away_from(smooth, middle.float(), factor).clamp_(0, 255)
    return out.view(clip.shape)


def _autocontrast(clip: torch.Tensor, amount: float) -> torch.Tensor:
    """Stretch each channel of each frame to 0 ... 255; a flat one stays."""
    width, channels = clip.shape[2:]
    by_column = clip.flatten(2)
    low = by_column.amin(1).view(-1, width, channels).amin(1).double().view(-1, 1)
    high = by_column.amax(1).view(-1, width, channels).amax(1).double().view(-1, 1)
    levels = torch.arange(256, dtype=torch.float64, device=clip.device)
    # In PIL's own arithmetic, which cuts some levels that would be whole numbers (and 255 / x would multiply by 1 / x).
    scale = torch.full_like(low, 255).div_((high - low).clamp_(min=1))
    table = torch.where(high > low, _cut(levels * scale - low * scale), _cut(levels))
    return _looked_up(_table_index(clip), table).view(clip.shape)


def _equalize(clip: torch.Tensor, amount: float) -> torch.Tensor:
    """Flatten the histogram of each channel of each frame, by PIL's integer rule."""
    frames, height, width, channels = clip.shape
    index = _table_index(clip)
    histogram = torch.bincount(index, minlength=frames * channels * 256).view(-1, 256)
    present = histogram > 0
    last = 255 - present.flip(1).to(torch.uint8).argmax(1, keepdim=True)
    step = (height * width - histogram.gather(1, last)) // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    as_is = (step == 0) | (present.sum(1, keepdim=True) <= 1)
    table = torch.where(as_is, torch.arange(256, device=clip.device), table).to(torch.uint8)
    return _looked_up(index, table).view(clip.shape)


def _table_index(clip: torch.Tensor) -> torch.Tensor:
    """Return each value's index in tables of 256 levels, one table per channel and frame; flat, int32."""
    frames, _, width, channels = clip.shape
    starts = torch.arange(0, frames * channels * 256, 256, dtype=torch.int32, device=clip.device).view(frames, channels)
    return (clip.flatten(2) + starts.repeat(1, width)[:, None]).flatten()


def _looked_up(index: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    return tables.flatten().index_select(0, index)


def _rotate(clip: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate counter-clockwise around the middle."""
    height, width = clip.shape[1:3]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _affine(clip, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _shear_x(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _affine(clip, (1, factor, 0, 0, 1, 0))


def _shear_y(clip: torch.Tensor, factor: float) -> torch.Tensor:
    return _affine(clip, (1, 0, 0, factor, 1, 0))


def _translate_x(clip: torch.Tensor, fraction: float) -> torch.Tensor:
    return _affine(clip, (1, 0, fraction * clip.shape[2], 0, 1, 0))


def _translate_y(clip: torch.Tensor, fraction: float) -> torch.Tensor:
    return _affine(clip, (1, 0, 0, 0, 1, fraction * clip.shape[1]))


def _affine(clip: torch.Tensor, matrix: tuple[float, ...]) -> torch.Tensor:
    """Map pixel (x, y) of the result to (a x + b y + c, d x + e y + f) of the clip, between pixels by PIL's bicubic.

    Every pixel of the result is a weighted sum of up to 16 pixels of the clip, the same for all frames and channels:
    one embedding bag over the pixels, whose vectors hold all frames. On a CPU it is 3x faster than grid_sample.
    """
    frames, height, width, channels = clip.shape
    a, b, c, d, e, f = matrix
    rows = torch.arange(height, dtype=torch.float64, device=clip.device)[:, None] + 0.5
    columns = torch.arange(width, dtype=torch.float64, device=clip.device) + 0.5
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x_taps, x_weights = _taps(x, width, moves=(a, b, c) != (1, 0, 0))
    y_taps, y_weights = _taps(y, height, moves=(d, e, f) != (0, 1, 0))
    taps = (y_taps[..., :, None] * width + x_taps[..., None, :]).flatten(0, 1).flatten(1)
    weights = (y_weights[..., :, None] * x_weights[..., None, :]).flatten(0, 1).flatten(1)
    by_pixel = clip.view(frames, -1, channels).transpose(0, 1).reshape(height * width, -1).float()
    # Weights sum to a hair less or more than 1: what should be a whole number must not be cut to the one below.
    moved = _cut(F.embedding_bag(taps, by_pixel, mode="sum", per_sample_weights=weights).add_(2**-11))
    out = moved.view(-1, frames, channels).transpose(0, 1).reshape(clip.shape)
    return out.mul_(inside[..., None]).add_((~inside * FILL).to(torch.uint8)[..., None])


def _taps(at: torch.Tensor, length: int, *, moves: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each position's pixel, or the four around it if the axis moves, and their weights; edge pixels repeat.

    The kernel is Keys' cubic with a = -1, PIL's for transforms.
    """
    at = at - 0.5
    if not moves:
        return at.int()[..., None], torch.ones_like(at, dtype=torch.float32)[..., None]
    first = at.floor()
    t = (at - first).float()
    weights = torch.stack([((2 - t) * t - 1) * t, (t - 2) * t * t + 1, ((1 - t) * t + 1) * t, (t - 1) * t * t], dim=-1)
    taps = first.int()[..., None] + torch.arange(-1, 3, dtype=torch.int32, device=at.device)
    return taps.clamp_(0, length - 1), weights


def _away_from(base: torch.Tensor, pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend floats in place: the first of the two steps of PIL's enhancements, before clipping."""
    return pixels.sub_(base).mul_(factor).add_(base)


def _cut(pixels: torch.Tensor) -> torch.Tensor:
    """Convert floats to uint8, clipped and rounded down as PIL does."""
    return pixels.clamp_(0, 255).to(torch.uint8)


def _channels(clip: torch.Tensor) -> list[torch.Tensor]:
    """Return red, green and blue, or grey alone, each (T, H, W) float."""
    return [channel.float() for channel in clip.unbind(-1)]


def _grey(channels: list[torch.Tensor]) -> torch.Tensor:
    """Return (T, H, W) float of whole numbers: PIL's "L", whose weights are 65536ths, so that the sums are exact."""
    if len(channels) == 1:
        return channels[0].clone()
    red, green, blue = channels
    weighted = red * (19595 / 65536)
    return weighted.add_(green, alpha=38470 / 65536).add_(blue, alpha=7471 / 65536).add_(0.5).floor_()


# Ops that move pixels.
RESHAPING = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

# What `Op.amount` is for each: degrees, factors (1 = unchanged), bits kept, thresholds and sums in pixel values,
# shear per pixel, translation as a fraction of the side; nothing for the first three.
OPS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
