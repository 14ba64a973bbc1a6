"""The objects that drift over the demo's pictures: turning shapes, or scikit-learn's handwritten digits.

draw = object_drawer("shapes")
for drifting in draw(size=64, rng=rng):
    drifting.paste(picture, frame)         # at its place in this frame, to fractions of a pixel
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

SHAPES, DIGITS = "shapes", "digits"
OBJECTS = (SHAPES, DIGITS)

_COUNT = 2  # in a clip
_DIGIT_SIDE = 0.3  # of the picture
_DIGIT_DRIFT = 0.02  # of the picture's side per frame, at most
_RADIUS = (0.22, 0.36)  # of the picture's side
_SHAPE_DRIFT = (0.025, 0.05)  # of the picture's side per frame
_SPIN = (0.05, 0.15)  # radians per frame
_ROOM = (0.1, 0.9)  # of the picture's side: where a shape's centre may be

# Distance from the outline of a shape of radius 1, negative inside.
_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(-y, 0.5 * y + math.sqrt(0.75) * np.abs(x)) - 0.575,
}
_COLOURS = {"disc": (255, 204, 64), "square": (244, 84, 96), "triangle": (64, 208, 176)}
SHAPE_KINDS = tuple(_DISTANCES)


class Drifting(Protocol):
    """An object with a place in every frame of a clip."""

    def paste(self, picture: Image.Image, frame: int, *, colour: int | None = None) -> None:
        """Draw the object at its place in this frame; on a grey picture in a `colour` instead of its own."""


@dataclass(frozen=True)
class Digit:
    """A digit that drifts: its mask, colour, position (fractions of the side) at frame 0 and drift per frame."""

    mask: Image.Image
    colour: tuple[int, int, int]
    position: np.ndarray
    drift: np.ndarray

    def paste(self, picture: Image.Image, frame: int, *, colour: int | None = None) -> None:
        """Draw the digit, to fractions of a pixel; it leaves on one side and comes back on the other."""
        room = picture.width + self.mask.width
        left, top = (self.position + self.drift * frame) % 1.0 * room - self.mask.width
        corner = math.floor(left), math.floor(top)
        shift = (1, 0, corner[0] - left, 0, 1, corner[1] - top)
        side = self.mask.width + 1
        mask = self.mask.transform((side, side), Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
        picture.paste(self.colour if colour is None else colour, (*corner, corner[0] + side, corner[1] + side), mask)


@dataclass(frozen=True)
class Shape:
    """A shape that drifts and turns: lengths in fractions of the picture's side, angles in radians, rates per frame."""

    kind: str
    colour: tuple[int, int, int]
    radius: float
    position: np.ndarray
    drift: np.ndarray
    angle: float
    spin: float

    def paste(self, picture: Image.Image, frame: int, *, colour: int | None = None) -> None:
        """Draw the shape with soft edges of a pixel; its centre bounces off the walls of its room."""
        x, y = self.centre(frame)
        angle, size = self.angle + self.spin * frame, picture.width
        steps = (np.arange(size) + 0.5) / size
        right, down = steps[None, :] - x, steps[:, None] - y
        along = math.cos(angle) * right + math.sin(angle) * down
        across = math.cos(angle) * down - math.sin(angle) * right
        outside = _DISTANCES[self.kind](along / self.radius, across / self.radius) * self.radius * size
        mask = (255 * (0.5 - outside).clip(0, 1)).round().astype(np.uint8)
        picture.paste(self.colour if colour is None else colour, (0, 0), Image.fromarray(mask))

    def centre(self, frame: int) -> np.ndarray:
        """Return x and y of the centre in this frame, fractions of the picture's side."""
        least, most = _ROOM
        way = (self.position + self.drift * frame - least) / (most - least)
        centre: np.ndarray = least + (most - least) * (1 - np.abs(way % 2 - 1))
        return centre


def object_drawer(kind: str) -> Callable[..., list[Drifting]]:
    """Return a function (size, rng) that draws the objects of one clip; shapes are of different kinds."""
    if kind == SHAPES:
        return lambda *, size, rng: [_draw_shape(rng, kind) for kind in rng.permutation(SHAPE_KINDS)[:_COUNT].tolist()]
    digits = _load_digits()
    return lambda *, size, rng: [_draw_digit(digits, size, rng) for _ in range(_COUNT)]


def _draw_shape(rng: np.random.Generator, kind: str) -> Shape:
    direction, speed = rng.uniform(0, 2 * math.pi), rng.uniform(*_SHAPE_DRIFT)
    return Shape(
        kind,
        _COLOURS[kind],
        radius=rng.uniform(*_RADIUS),
        position=rng.uniform(*_ROOM, 2),
        drift=speed * np.array([math.cos(direction), math.sin(direction)]),
        angle=rng.uniform(0, 2 * math.pi),
        spin=rng.uniform(*_SPIN) * rng.choice([-1, 1]),
    )


def _draw_digit(digits: np.ndarray, size: int, rng: np.random.Generator) -> Digit:
    side = round(_DIGIT_SIDE * size)
    mask = Image.fromarray(digits[rng.integers(len(digits))]).resize((side, side), Image.Resampling.BICUBIC)
    red, green, blue = rng.integers(128, 256, 3).tolist()
    return Digit(mask, (red, green, blue), rng.uniform(0, 1, 2), rng.uniform(-_DIGIT_DRIFT, _DIGIT_DRIFT, 2))


def _load_digits() -> np.ndarray:
    """Return handwritten digits, uint8 (N, 8, 8)."""
    from sklearn.datasets import load_digits

    digits = load_digits().images * (255 / 16)
    return digits.round().astype(np.uint8)
