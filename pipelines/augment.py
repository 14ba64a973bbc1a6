"""Random draws ─► crop boxes and flips as data, one for all frames of a view. Pure functions, numpy only.

crop = draw_crop(rng, height=256, width=340, area=(0.5, 1), aspect=(0.75, 4 / 3), flip=0.5)
"""

from typing import NamedTuple

import numpy as np


class Crop(NamedTuple):
    """A box of the stored frame, in pixels, that is resized to the model's input; `flip` mirrors the result."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class View(NamedTuple):
    """All that is done to one view of a decoded clip, the same for all its frames."""

    crop: Crop


def draw_crop(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
) -> Crop:
    """Random resized crop: area uniform, aspect log-uniform, ten tries, then the largest centred box.

    All draws are made whatever the outcome of the tries: their number never depends on the frame's size.

    Args:
        rng: the view's own generator.
        height: of the stored frame, in pixels.
        width: of the stored frame, in pixels.
        area: least and greatest fraction of the frame's area.
        aspect: least and greatest width / height.
        flip: probability of a horizontal flip.
    """
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


def centre_crop(*, height: int, width: int) -> Crop:
    """The largest centred square."""
    return _largest_centred(height, width, (1.0, 1.0))


def _largest_centred(height: int, width: int, aspect: tuple[float, float]) -> Crop:
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_height = max(min(height, round(width / ratio)), 1)
    box_width = max(min(width, round(height * ratio)), 1)
    return Crop((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, False)
