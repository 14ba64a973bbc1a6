"""Random draws ─► what is done to a view, as data: one draw for all its frames. Pure functions, numpy only.

crop = draw_crop(rng, height=256, width=340, area=(0.5, 1), aspect=(0.75, 4 / 3), flip=0.5)
ops = draw_rand_augment(rng, RandAugment.parse("rand-m7-mstd0.5-inc1"))     # ─► (Op("shear_x", -0.2), ...)

A view is cropped, resized and flipped first, then its `ops` are applied in turn, then its box is erased
(transforms.py). mae_st and timm's video users apply RandAugment to the whole frame before the crop. Here, as in timm's
image pipeline, it sees the model's input: two to three times fewer pixels, and the border that a rotation, shear or
translation fills with grey lies in the view, where upstream's crop would have cut part of it off.
"""

import math
from typing import NamedTuple

import numpy as np

from mae3d.io.shapes import Size, largest_box, sides
from pipelines.config import RandAugment

# An op of RandAugment whose magnitude has a sign is turned the other way by half of the draws.
RAND_AUGMENT_OPS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "colour", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
JITTER_OPS = ("brightness", "contrast", "colour")


class Crop(NamedTuple):
    """A box of the stored frame, in pixels, that is resized to the model's input; `flip` mirrors the result."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class Op(NamedTuple):
    """A change of colour or shape; `transforms.OPS` defines the meaning of `amount` per op."""

    name: str
    amount: float


class Erase(NamedTuple):
    """A box of the view, in pixels, that is filled with noise, which `seed` makes anew for every frame."""

    top: int
    left: int
    height: int
    width: int
    seed: int


class View(NamedTuple):
    """All that is done to one view of a decoded clip, the same for all its frames, in this order."""

    crop: Crop
    ops: tuple[Op, ...] = ()
    erase: Erase | None = None


def draw_crop(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
    size: Size = 1,
) -> Crop:
    """Draw a random resized crop: area uniform, aspect log-uniform, ten tries, then the largest centred box.

    The aspect is counted from the view's own: a box of aspect 1 has the view's shape and is not distorted by the
    resize. All draws are made, also after a try that fits: their number never depends on the frame's size.

    Args:
        rng: the view's own generator.
        height: of the stored frame, in pixels.
        width: of the stored frame, in pixels.
        area: least and greatest fraction of the frame's area.
        aspect: least and greatest width / height of the box, over width / height of the view.
        flip: probability of a horizontal flip.
        size: of the view; its shape alone counts.
    """
    aspect = aspect[0] * _shape_of(size), aspect[1] * _shape_of(size)
    draws = rng.random((10, 2))
    top_draw, left_draw, flip_draw = rng.random(3)
    areas = height * width * (area[0] + draws[:, 0] * (area[1] - area[0]))
    low, high = np.log(aspect)
    ratios = np.exp(low + draws[:, 1] * (high - low))
    widths = np.rint(np.sqrt(areas * ratios)).astype(int)
    heights = np.rint(np.sqrt(areas / ratios)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    mirrored = bool(flip_draw < flip)
    if not fits.any():
        return _largest_centred(height, width, aspect)._replace(flip=mirrored)
    box_height, box_width = int(heights[fits.argmax()]), int(widths[fits.argmax()])
    top, left = int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1))
    return Crop(top, left, box_height, box_width, mirrored)


def draw_short_side_crop(
    rng: np.random.Generator, *, height: int, width: int, size: Size, short_side: tuple[int, int], flip: float
) -> Crop:
    """Draw a box of `size` pixels in the frame whose short side was scaled to a random length.

    The frame is not scaled: the same box is cut from the stored frame, its sides rounded to whole pixels there. A box
    that is longer than the frame is drawn smaller, as if the frame had been scaled up until the box fits.

    Args:
        rng: the view's own generator.
        height: of the stored frame, in pixels.
        width: of the stored frame, in pixels.
        size: of the view, in pixels; its shorter side is at most short_side[0].
        short_side: least and greatest length of the scaled short side, in pixels; every whole number is as likely.
        flip: probability of a horizontal flip.
    """
    scale_draw, top_draw, left_draw, flip_draw = rng.random(4)
    scaled = short_side[0] + int(scale_draw * (short_side[1] - short_side[0] + 1))
    view_height, view_width = sides(size)
    short = min(height, width)
    fit = min(1.0, height * scaled / (view_height * short), width * scaled / (view_width * short))
    box_height, box_width = (max(round(side * short / scaled * fit), 1) for side in (view_height, view_width))
    top, left = int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1))
    return Crop(top, left, box_height, box_width, bool(flip_draw < flip))


def evaluation_crops(*, height: int, width: int, num_crops: int, size: Size = 1) -> tuple[Crop, ...]:
    """Return the largest boxes of the view's shape spread evenly along the side that has room; a single one is centred.

    Of a square view they are squares of the frame's short side. Three are left, centre and right, or top, centre and
    bottom. Places are rounded up, as mae_st does (docs/upstream.md), but in pixels of the stored frame, not of the
    scaled one: the difference is less than one stored pixel.
    """
    box_height, box_width = largest_box(height, width, size)
    down, across = height - box_height, width - box_width  # one of them is 0
    room = down + across
    starts = [math.ceil(room * i / (num_crops - 1)) for i in range(num_crops)] if num_crops > 1 else [-(-room // 2)]
    return tuple(Crop(s if down else 0, 0 if down else s, box_height, box_width, False) for s in starts)


def draw_rand_augment(rng: np.random.Generator, rule: RandAugment) -> tuple[Op, ...]:
    """Draw the ops of RandAugment (Cubuk et al., 2020) with timm's ops, ranges and random magnitudes.

    Each of `rule.layers` times one of the 15 ops is chosen, and applied with `rule.probability` at a magnitude that is
    normal around `rule.magnitude`, clipped to [0, 10]. The number of draws depends on `rule` alone.
    """
    choices, applied, signs = rng.random((3, rule.layers))
    levels = np.clip(rule.magnitude + rule.spread * rng.standard_normal(rule.layers), 0, 10) / 10
    return tuple(
        Op(name, _amount(name, float(level), 1 if sign < 0.5 else -1, increasing=rule.increasing))
        for choice, level, sign, is_applied in zip(choices, levels, signs, applied < rule.probability, strict=True)
        for name in [RAND_AUGMENT_OPS[int(choice * len(RAND_AUGMENT_OPS))]]
        if is_applied
    )


def _amount(name: str, level: float, sign: int, *, increasing: bool) -> float:
    """Convert a level in [0, 1] to the op's amount; `increasing` ops grow with it, the others' ranges are 2020's.

    Ranges of timm.data.auto_augment (Apache-2.0).
    """
    if name == "rotate":
        return sign * 30 * level
    if name in ("shear_x", "shear_y"):
        return sign * 0.3 * level
    if name in ("translate_x", "translate_y"):
        return sign * 0.45 * level
    if name == "posterize":
        return 4 - int(4 * level) if increasing else int(4 * level)
    if name == "solarize":
        return 256 - int(256 * level) if increasing else int(256 * level)
    if name == "solarize_add":
        return int(110 * level)
    if name in ("colour", "contrast", "brightness", "sharpness"):
        return max(1 + sign * 0.9 * level, 0.1) if increasing else 0.1 + 1.8 * level
    return 0.0


def draw_jitter(rng: np.random.Generator, strength: float) -> tuple[Op, ...]:
    """Draw brightness, contrast and saturation in random order, factors uniform in [1 - strength, 1 + strength].

    Factors are not negative: for a strength beyond 1 they are uniform in [0, 1 + strength], as torchvision's.
    """
    factors = max(1 - strength, 0) + rng.random(3) * (1 + strength - max(1 - strength, 0))
    return tuple(Op(JITTER_OPS[i], float(factors[i])) for i in np.argsort(rng.random(3)))


def draw_erase(rng: np.random.Generator, *, size: Size, probability: float) -> Erase | None:
    """Draw a random erasing (Zhong et al., 2020).

    A box of 2 to 33 % of the view, its aspect log-uniform in [0.3, 1 / 0.3].

    100 tries for a box that is smaller than the view; none if all fail. All draws are always made.

    Args:
        rng: the view's own generator.
        size: of the view, in pixels.
        probability: of erasing at all.
    """
    draws = rng.random((100, 2))
    applied, top_draw, left_draw = rng.random(3)
    seed = int(rng.integers(2**63))
    view_height, view_width = sides(size)
    areas = view_height * view_width * (0.02 + draws[:, 0] * (1 / 3 - 0.02))
    ratios = np.exp(math.log(0.3) * (1 - 2 * draws[:, 1]))
    heights, widths = np.rint(np.sqrt(areas * ratios)).astype(int), np.rint(np.sqrt(areas / ratios)).astype(int)
    fits = (heights > 0) & (widths > 0) & (heights < view_height) & (widths < view_width)
    if applied >= probability or not fits.any():
        return None
    height, width = int(heights[fits.argmax()]), int(widths[fits.argmax()])
    top, left = int(top_draw * (view_height - height + 1)), int(left_draw * (view_width - width + 1))
    return Erase(top, left, height, width, seed)


def _shape_of(size: Size) -> float:
    height, width = sides(size)
    return width / height


def _largest_centred(height: int, width: int, aspect: tuple[float, float]) -> Crop:
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_height = max(min(height, round(width / ratio)), 1)
    box_width = max(min(width, round(height * ratio)), 1)
    return Crop((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, False)
