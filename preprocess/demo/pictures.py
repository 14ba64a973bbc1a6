"""The pictures that the demo's camera looks at: photographs, drawn pictures, soft waves.

    pictures = load_pictures(["china", "noise"], seed=0)       # 9 textures
    waves = draw_waves(rng)                                    # every clip draws its own
    image = look(waves, camera_path(...)[0], 64)

Photographs and drawn pictures are tiled as mirrors, so that every place is as likely at every moment.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

PHOTOGRAPHS = ("china", "flower")
DRAWN = ("noise", "shapes")
WAVES = "waves"
TEXTURES = (*PHOTOGRAPHS, *DRAWN, WAVES)

_OUTSIZE = 1.5  # sides of the view from which a turned one is cut: more than the square root of 2
_DRAWN_PICTURES = 8  # of each kind
_DRAWN_SIDE = 512  # pixels
_MARGIN = 640  # pixels of the tiled picture by which a path may leave its middle
_WAVELENGTH = (220.0, 440.0)  # pixels of the picture: one to three sides of the view
_VALUES = ((0.1, 0.25), (0.4, 0.6))  # brightness of a wave's colours, on [0, 1]


@dataclass(frozen=True)
class Waves:
    """A soft wave between two colours over an endless plane.

    Attributes:
        colours: float64 (2, 3), on [0, 255].
        wave: its wave vector, radians per pixel of the picture, float64 (2,).
        phase: radians.
    """

    colours: np.ndarray
    wave: np.ndarray
    phase: float


Texture = Image.Image | Waves


def load_pictures(textures: Sequence[str], *, seed: int) -> list[Image.Image | None]:
    """Return the named photographs and drawn pictures, tiled with a margin; None for waves, which each clip draws."""
    from sklearn.datasets import load_sample_image

    pictures: list[Image.Image | None] = []
    for name in textures:
        if name in PHOTOGRAPHS:
            pictures.append(_tile(load_sample_image(f"{name}.jpg")))
        elif name in DRAWN:
            draw = {"noise": _draw_noise, "shapes": _draw_shapes}[name]
            seeds = ([seed, 2, DRAWN.index(name), number] for number in range(_DRAWN_PICTURES))
            pictures += [_tile(draw(np.random.default_rng(numbers))) for numbers in seeds]
        else:
            pictures.append(None)
    return pictures


def draw_waves(rng: np.random.Generator) -> Waves:
    """Draw a wave between two dark colours from green-blue to purple."""
    colours = [colorsys.hsv_to_rgb(rng.uniform(0.45, 0.9), 0.65, rng.uniform(*value)) for value in _VALUES]
    direction, length = rng.uniform(0, 2 * math.pi), rng.uniform(*_WAVELENGTH)
    wave = np.array([math.cos(direction), math.sin(direction)]) * 2 * math.pi / length
    return Waves(255 * np.array(colours), wave, rng.uniform(0, 2 * math.pi))


def period_of(texture: Texture) -> tuple[int, int]:
    """Return (width, height) after which a texture repeats, in its pixels; of waves the side of a drawn picture."""
    if isinstance(texture, Waves):
        return _DRAWN_SIDE, _DRAWN_SIDE
    return texture.width - 2 * _MARGIN, texture.height - 2 * _MARGIN


def look(texture: Texture, view: np.ndarray, size: int) -> Image.Image:
    """Return one view of a texture (a row of `camera_path`), size x size."""
    if isinstance(texture, Waves):
        return _look_at_waves(texture, view, size)
    x, y, side, angle = view.tolist()
    if angle == 0:
        return _cut(texture, x, y, side, size)
    wide = round(_OUTSIZE * size)
    upright = _cut(texture, x, y, side * wide / size, wide)
    cosine, sine = math.cos(angle), math.sin(angle)
    left = wide / 2 - (cosine - sine) * size / 2
    top = wide / 2 - (sine + cosine) * size / 2
    across = (cosine, -sine, left, sine, cosine, top)
    return upright.transform((size, size), Image.Transform.AFFINE, across, Image.Resampling.BICUBIC)


def _look_at_waves(waves: Waves, view: np.ndarray, size: int) -> Image.Image:
    x, y, side, angle = view.tolist()
    steps = ((np.arange(size) + 0.5) / size - 0.5) * side
    right, down = steps[None, :], steps[:, None]
    across = x + math.cos(angle) * right - math.sin(angle) * down
    along = y + math.sin(angle) * right + math.cos(angle) * down
    share = 0.5 + 0.5 * np.sin(waves.wave[0] * across + waves.wave[1] * along + waves.phase)
    first, second = waves.colours
    return Image.fromarray((first + (second - first) * share[..., None]).round().astype(np.uint8))


def _cut(texture: Image.Image, x: float, y: float, side: float, size: int) -> Image.Image:
    # A box in fractions of pixels: sub-pixel motion, and Pillow's resize filters as it shrinks.
    left, top = x + _MARGIN - side / 2, y + _MARGIN - side / 2
    return texture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _tile(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    around = ((_MARGIN, height + _MARGIN), (_MARGIN, width + _MARGIN), (0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="symmetric"))


def _draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Draw coloured noise, uint8 (side, side, 3): amplitudes grow as the square root of the wavelength."""
    total = np.zeros((_DRAWN_SIDE, _DRAWN_SIDE, 3))
    for cells in (4, 8, 16, 32, 64, 128, 256):
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
            total[..., channel] += np.asarray(coarse.resize(total.shape[:2], Image.Resampling.BICUBIC)) / math.sqrt(
                cells
            )
    total = total @ rng.normal(size=(3, 3))  # the channels share some of it: colours
    spread = (total - total.mean()) / total.std()
    return (127.5 + 55 * spread).clip(0, 255).astype(np.uint8)


def _draw_shapes(rng: np.random.Generator) -> np.ndarray:
    """Draw ellipses, rectangles and triangles of all sizes over each other, uint8 (side, side, 3)."""

    def colour() -> tuple[int, int, int]:
        red, green, blue = rng.integers(0, 256, 3).tolist()
        return red, green, blue

    picture = Image.new("RGB", (_DRAWN_SIDE, _DRAWN_SIDE), colour())
    pen = ImageDraw.Draw(picture)
    for radius in np.geomspace(_DRAWN_SIDE / 4, 6, 160):
        x, y = rng.uniform(0, _DRAWN_SIDE, 2)
        width, height = radius * rng.uniform(0.3, 1.0, 2)
        box = (x - width, y - height, x + width, y + height)
        kind = rng.integers(3)
        if kind == 0:
            pen.ellipse(box, colour())
        elif kind == 1:
            pen.rectangle(box, colour())
        else:
            corners = rng.uniform((box[0], box[1]), (box[2], box[3]), (3, 2))
            pen.polygon([(cx, cy) for cx, cy in corners.tolist()], colour())
    return np.asarray(picture)
