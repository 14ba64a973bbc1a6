"""A small labelled dataset that needs no download: frame folders and a ledger, as the seeds lay them out.

    render_demo(Path("out/demo/frames"), clips=240, size=112, frames=24, seed=0)
    # out/demo/frames/train/clip_0000/img_00001.jpg ...; out/demo/frames/ledger.csv: clip_0000 1 24 zoom_in

The two photographs that scikit-learn ships, seen through a camera that moves or zooms, with its handwritten digits
drifting over them. The label is the camera's motion. No frame alone tells it: photograph, place, magnification and
digits are drawn in the same way for every label. (The photographs are tiled as mirrors, so that every place is as
likely at every moment; magnifications have the same distribution over the frames of a clip for every label.)
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.samples import encode_jpeg

MOTIONS = ("left", "right", "up", "down", "zoom_in", "zoom_out")

_QUALITY = 90
_WINDOW = (160.0, 280.0)  # side of the camera's view in pixels of the photograph, at the middle of a clip
_PAN = (0.015, 0.03)  # sides of the view a frame
_ZOOM = (0.4, 0.7)  # natural logarithm of the magnification over a clip
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


def render_demo(out: Path, *, clips: int, size: int, frames: int, seed: int) -> None:
    """Renders the dataset; the same arguments give the same bytes.

    Args:
        out: the folder that gets train/ and ledger.csv.
        clips: how many; labels are as even as they can be.
        size: height and width of a frame in pixels.
        frames: how many a clip has.
        seed: of everything that is drawn.

    Raises:
        ValueError: a number is out of range, or `out` has a ledger already.
    """
    if clips < 1 or size < 16 or frames < 2 or seed < 0:
        raise ValueError(f"clips={clips} size={size} frames={frames} seed={seed}: need >= 1, >= 16, >= 2, >= 0")
    ledger = out / "ledger.csv"
    if ledger.exists():
        raise ValueError(f"{ledger} exists; remove it or give another --out")
    photographs, digits = _load_textures()
    order = np.random.default_rng([seed, 0]).permutation(clips)
    rows = []
    for clip in range(clips):
        motion = MOTIONS[order[clip] % len(MOTIONS)]
        name = f"clip_{clip:04d}"
        folder = out / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        pictures = render_clip(
            photographs, digits, motion=motion, size=size, frames=frames, rng=np.random.default_rng([seed, 1, clip])
        )
        for number, picture in enumerate(pictures, start=1):
            (folder / f"img_{number:05d}.jpg").write_bytes(encode_jpeg(picture, _QUALITY))
        rows.append(f"{name} 1 {frames} {motion}\n")
    ledger.write_text("".join(rows), encoding="ascii")


def render_clip(
    photographs: list[Image.Image],
    digits: np.ndarray,
    *,
    motion: str,
    size: int,
    frames: int,
    rng: np.random.Generator,
) -> list[Image.Image]:
    """One clip: `frames` pictures of size x size."""
    photograph = photographs[rng.integers(len(photographs))]
    boxes = camera_path(motion, frames=frames, period=_period(photograph), rng=rng)
    drifting = [_draw_digit(digits, size, rng) for _ in range(_DIGITS)]
    pictures = []
    for frame, box in enumerate(boxes):
        # A box in fractions of pixels: sub-pixel motion, and Pillow's resize filters what it shrinks.
        picture = photograph.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box.tolist()))
        for digit in drifting:
            _paste(picture, digit, frame)
        pictures.append(picture)
    return pictures


def camera_path(motion: str, *, frames: int, period: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """What the camera sees at each frame: boxes (left, top, right, bottom), float64 (frames, 4).

    All labels draw the same numbers in the same order; the label only says what they are used for.

    Args:
        motion: one of MOTIONS.
        frames: how many.
        period: (width, height) after which the tiled photograph repeats.
        rng: draws the path.
    """
    side = math.exp(rng.uniform(*np.log(_WINDOW)))
    centre = rng.uniform(0, period, 2)
    pan, zoom = rng.uniform(*_PAN), rng.uniform(*_ZOOM)
    moment = rng.uniform(-0.5, 0.5)
    time = np.linspace(-0.5, 0.5, frames)
    zooming = {"zoom_in": -1.0, "zoom_out": 1.0}.get(motion)
    # A clip that pans has the view that a zooming one has at some moment.
    sides = side * np.exp(zoom * (time * zooming if zooming else np.full(frames, moment)))
    # The camera moves left: what it sees moves right.
    direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    centres = centre + np.outer(time * (frames - 1), direction) * pan * side
    corner = centres + _MARGIN - sides[:, None] / 2
    return np.concatenate([corner, corner + sides[:, None]], axis=1)


def _load_textures() -> tuple[list[Image.Image], np.ndarray]:
    """The photographs, tiled as mirrors with a margin, and the digits, uint8 (N, 8, 8)."""
    from sklearn.datasets import load_digits, load_sample_image

    photographs = []
    for name in ("china.jpg", "flower.jpg"):
        pixels = load_sample_image(name)
        height, width = pixels.shape[:2]
        around = ((_MARGIN, height + _MARGIN), (_MARGIN, width + _MARGIN), (0, 0))
        photographs.append(Image.fromarray(np.pad(pixels, around, mode="symmetric")))
    digits = load_digits().images * (255 / 16)
    return photographs, digits.round().astype(np.uint8)


def _period(photograph: Image.Image) -> tuple[int, int]:
    return photograph.width - 2 * _MARGIN, photograph.height - 2 * _MARGIN


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
