"""A small labelled dataset that needs no download: frame folders and a ledger, as the seeds lay them out.

    render_demo(Path("out/demo/frames"), clips=240, size=112, frames=24, seed=0)
    # out/demo/frames/train/clip_0000/img_00001.jpg ...; out/demo/frames/ledger.csv: clip_0000 1 24 zoom_in

The two photographs that scikit-learn ships, or drawn pictures, seen through a camera that moves, zooms or turns, with
scikit-learn's handwritten digits drifting over them. The label is the camera's motion. No frame alone tells it:
picture, place, magnification, orientation and digits are drawn in the same way for every label. (The pictures are
tiled as mirrors, so that every place is as likely at every moment; magnifications have the same distribution over the
frames of a clip for every label; where one of the motions turns the camera, every clip has a random orientation.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from preprocess.encode.images import encode_jpeg

_PANS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_ZOOMS = {"zoom_in": -1.0, "zoom_out": 1.0}  # the sign of the view's growth
_TURNS = {"turn_left": -1.0, "turn_right": 1.0}  # the camera's sense: what it sees turns the other way
_DIAGONALS = {
    f"{vertical}_{horizontal}": (x * math.sqrt(0.5), y * math.sqrt(0.5))
    for vertical, y in (("up", -1), ("down", 1))
    for horizontal, x in (("left", -1), ("right", 1))
}
MOTIONS = (*_PANS, *_ZOOMS, *_TURNS, *_DIAGONALS)
DEFAULT_MOTIONS = MOTIONS[:6]

PHOTOGRAPHS = ("china", "flower")
DRAWN = ("noise", "shapes")
TEXTURES = (*PHOTOGRAPHS, *DRAWN)

_QUALITY = 90
_WINDOW = (160.0, 280.0)  # side of the camera's view in pixels of the photograph, at the middle of a clip
_PAN = (0.015, 0.03)  # sides of the view a frame
_ZOOM = (0.4, 0.7)  # natural logarithm of the magnification over a clip
_TURN = (0.05, 0.1)  # radians a frame
_OUTSIZE = 1.5  # sides of the view from which a turned one is cut: more than the square root of 2
_DRAWN_PICTURES = 8  # of each kind
_DRAWN_SIDE = 512  # pixels
_MARGIN = 640  # pixels of the tiled photograph that a path may leave its middle by
_DIGITS = 2  # in a clip
_DIGIT_SIDE = 0.3  # of the picture
_DIGIT_DRIFT = 0.02  # of the picture's side a frame, at most


@dataclass(frozen=True)
class Digit:
    """A digit that drifts: its mask, colour, position (fractions of the side) at frame 0 and drift a frame."""

    mask: Image.Image
    colour: tuple[int, int, int]
    position: np.ndarray
    drift: np.ndarray


def render_demo(
    out: Path,
    *,
    clips: int,
    size: int,
    frames: int,
    seed: int,
    motions: Sequence[str] = DEFAULT_MOTIONS,
    textures: Sequence[str] = PHOTOGRAPHS,
) -> None:
    """Renders the dataset; the same arguments give the same bytes.

    Args:
        out: the folder that gets train/ and ledger.csv.
        clips: how many; labels are as even as they can be.
        size: height and width of a frame in pixels.
        frames: how many a clip has.
        seed: of everything that is drawn, the pictures of "noise" and "shapes" included.
        motions: the labels, of MOTIONS.
        textures: what the camera looks at, of TEXTURES; a drawn kind brings 8 pictures, and all pictures are as likely.

    Raises:
        ValueError: a number is out of range, a name is unknown or given twice, or `out` has a ledger already.
    """
    if clips < 1 or size < 16 or frames < 2 or seed < 0:
        raise ValueError(f"clips={clips} size={size} frames={frames} seed={seed}: need >= 1, >= 16, >= 2, >= 0")
    _check_names("motion", motions, MOTIONS)
    _check_names("texture", textures, TEXTURES)
    ledger = out / "ledger.csv"
    if ledger.exists():
        raise ValueError(f"{ledger} exists; remove it or give another --out")
    pictures, digits = load_pictures(textures, seed=seed), _load_digits()
    turned = any(motion in _TURNS for motion in motions)
    order = np.random.default_rng([seed, 0]).permutation(clips)
    rows = []
    for clip in range(clips):
        motion = motions[order[clip] % len(motions)]
        name = f"clip_{clip:04d}"
        folder = out / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 1, clip])
        texture = pictures[rng.integers(len(pictures))]
        path = camera_path(motion, frames=frames, period=_period(texture), turned=turned, rng=rng)
        rendered = render_clip(texture, path, digits, size=size, rng=rng)
        for number, picture in enumerate(rendered, start=1):
            (folder / f"img_{number:05d}.jpg").write_bytes(encode_jpeg(picture, _QUALITY))
        rows.append(f"{name} 1 {frames} {motion}\n")
    ledger.write_text("".join(rows), encoding="ascii")


def render_clip(
    texture: Image.Image, path: np.ndarray, digits: np.ndarray, *, size: int, rng: np.random.Generator
) -> list[Image.Image]:
    """One clip: a picture of size x size for each row of a camera's path, with digits that drift over it."""
    drifting = [_draw_digit(digits, size, rng) for _ in range(_DIGITS)]
    pictures = []
    for frame, view in enumerate(path):
        picture = _look(texture, view, size)
        for digit in drifting:
            _paste(picture, digit, frame)
        pictures.append(picture)
    return pictures


def camera_path(
    motion: str, *, frames: int, period: tuple[int, int], turned: bool, rng: np.random.Generator
) -> np.ndarray:
    """What the camera sees at each frame, float64 (frames, 4): the view's centre x and y, its side, its angle.

    Centre and side are pixels of the texture, the angle is in radians, clockwise as one looks at the picture. All
    labels draw the same numbers in the same order; the label only says what they are used for.

    Args:
        motion: one of MOTIONS.
        frames: how many.
        period: (width, height) after which the tiled texture repeats.
        turned: whether the camera has a random orientation; needed where a label is a turn.
        rng: draws the path.
    """
    side = math.exp(rng.uniform(*np.log(_WINDOW)))
    centre = rng.uniform(0, period, 2)
    pan, zoom = rng.uniform(*_PAN), rng.uniform(*_ZOOM)
    moment = rng.uniform(-0.5, 0.5)
    orientation, turn = (rng.uniform(0, 2 * math.pi), rng.uniform(*_TURN)) if turned else (0.0, 0.0)
    time = np.linspace(-0.5, 0.5, frames)
    # A clip that pans has the view that a zooming one has at some moment.
    sides = side * np.exp(zoom * (time * _ZOOMS[motion] if motion in _ZOOMS else np.full(frames, moment)))
    angles = orientation + turn * _TURNS.get(motion, 0.0) * time * (frames - 1)
    # The camera moves left, as it is held: what it sees moves right.
    x, y = (_PANS | _DIAGONALS).get(motion, (0.0, 0.0))
    cosine, sine = math.cos(orientation), math.sin(orientation)
    direction = (cosine * x - sine * y, sine * x + cosine * y)
    centres = centre + np.outer(time * (frames - 1), direction) * pan * side
    return np.concatenate([centres, sides[:, None], angles[:, None]], axis=1)


def load_pictures(textures: Sequence[str], *, seed: int) -> list[Image.Image]:
    """What the camera may look at: the named photographs and drawn pictures, tiled as mirrors with a margin."""
    from sklearn.datasets import load_sample_image

    pictures = []
    for name in textures:
        if name in PHOTOGRAPHS:
            pictures.append(load_sample_image(f"{name}.jpg"))
            continue
        draw = {"noise": _draw_noise, "shapes": _draw_shapes}[name]
        for number in range(_DRAWN_PICTURES):
            pictures.append(draw(np.random.default_rng([seed, 2, DRAWN.index(name), number])))
    return [_tile(pixels) for pixels in pictures]


def _load_digits() -> np.ndarray:
    """Handwritten digits, uint8 (N, 8, 8)."""
    from sklearn.datasets import load_digits

    digits = load_digits().images * (255 / 16)
    return digits.round().astype(np.uint8)


def _draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Coloured noise of all scales, uint8 (side, side, 3): amplitudes grow as the square root of the wavelength."""
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
    """Ellipses, rectangles and triangles of all sizes over each other, uint8 (side, side, 3)."""

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


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if not names or unknown or len(set(names)) < len(names):
        raise ValueError(f"{what}s {' '.join(names) or 'none'}: need different ones of {' '.join(known)}")


def _look(texture: Image.Image, view: np.ndarray, size: int) -> Image.Image:
    """One view, size x size."""
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


def _cut(texture: Image.Image, x: float, y: float, side: float, size: int) -> Image.Image:
    # A box in fractions of pixels: sub-pixel motion, and Pillow's resize filters what it shrinks.
    left, top = x + _MARGIN - side / 2, y + _MARGIN - side / 2
    return texture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _tile(pixels: np.ndarray) -> Image.Image:
    height, width = pixels.shape[:2]
    around = ((_MARGIN, height + _MARGIN), (_MARGIN, width + _MARGIN), (0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="symmetric"))


def _period(texture: Image.Image) -> tuple[int, int]:
    return texture.width - 2 * _MARGIN, texture.height - 2 * _MARGIN


def _draw_digit(digits: np.ndarray, size: int, rng: np.random.Generator) -> Digit:
    side = round(_DIGIT_SIDE * size)
    mask = Image.fromarray(digits[rng.integers(len(digits))]).resize((side, side), Image.Resampling.BICUBIC)
    red, green, blue = rng.integers(128, 256, 3).tolist()
    return Digit(mask, (red, green, blue), rng.uniform(0, 1, 2), rng.uniform(-_DIGIT_DRIFT, _DIGIT_DRIFT, 2))


def _paste(picture: Image.Image, digit: Digit, frame: int) -> None:
    """Draws a digit at its place in this frame, to fractions of a pixel; it leaves on one side and comes back."""
    room = picture.width + digit.mask.width
    left, top = (digit.position + digit.drift * frame) % 1.0 * room - digit.mask.width
    whole = math.floor(left), math.floor(top)
    shift = (1, 0, whole[0] - left, 0, 1, whole[1] - top)
    side = digit.mask.width + 1
    mask = digit.mask.transform((side, side), Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
    picture.paste(digit.colour, (*whole, whole[0] + side, whole[1] + side), mask)
