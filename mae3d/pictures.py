"""Frames -> pictures that a person looks at: filmstrips (PNG), animations (GIF), and how close they are (PSNR).

    rows = {"original": original, "masked": masked, "reconstruction": predicted}      # each uint8 (F, H, W, 3)
    filmstrip(rows).save("strip.png")
    save_animation(rows, "strip.gif")

numpy and Pillow only.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]  # (F, H, W, 3)

INK, PAPER = (38, 42, 48), (255, 255, 255)
GAP = 4  # between frames, pixels
PAGE = 1040  # small frames are enlarged as far as a sheet this wide allows, pixels
LARGEST = 256  # and no frame beyond this side
CAPTION = 15  # height of the captions' letters on such a sheet; more on a wider one


def filmstrip(rows: Mapping[str, Frames], *, columns: int = 8) -> Image.Image:
    """One row of frames for each entry, captioned, on white.

    Small frames are enlarged by a whole factor, so that each pixel stays a square.

    Args:
        rows: Caption -> frames; all of one shape.
        columns: At most so many frames a row, spread evenly over the clip.
    """
    count = len(next(iter(rows.values())))
    shown = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    return _sheet([(caption, frames[shown]) for caption, frames in rows.items()], wide=len(shown))


def save_animation(rows: Mapping[str, Frames], path: str | Path, *, frame_ms: int = 160) -> None:
    """The entries side by side, captioned, as an endless GIF.

    Args:
        rows: Caption -> frames; all of one shape.
        path: The GIF's path.
        frame_ms: How long a frame stays, milliseconds.
    """
    count = len(next(iter(rows.values())))
    sheets = []
    for i in range(count):
        panels = [_sheet([(caption, frames[i : i + 1])], wide=len(rows)) for caption, frames in rows.items()]
        sheets.append(_side_by_side(panels))
    # One palette for all frames: a palette for each makes still regions flicker.
    tall = Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))
    palette = tall.quantize(256, method=Image.Quantize.MEDIANCUT)
    indexed = [sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for sheet in sheets]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=frame_ms, loop=0, optimize=False)


def psnr(image: NDArray[np.generic], truth: Frames, where: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in decibels, 10 log10(255^2 / mean squared error), over some of the pixels.

    Args:
        image: (..., 3), or anything that broadcasts against `truth`: a colour, a number.
        truth: uint8 (..., 3).
        where: bool (...), the pixels that count.

    Returns:
        Decibels; infinite where equal, nan where no pixel counts.
    """
    if not where.any():
        return math.nan
    difference = np.broadcast_to(image, truth.shape)[where].astype(np.float64) - truth[where]
    error = float(np.square(difference).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _sheet(rows: Sequence[tuple[str, Frames]], *, wide: int) -> Image.Image:
    """Captioned rows of frames, sized for a page that is `wide` frames wide."""
    count, height, width = rows[0][1].shape[:3]
    scale = max(1, min(PAGE // (wide * (width + GAP)), LARGEST // width))
    height, width = height * scale, width * scale
    letters = max(CAPTION, CAPTION * wide * width // PAGE)
    band = letters + 2 * GAP
    sheet = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (band + height + GAP) - GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=letters)
    for row, (caption, frames) in enumerate(rows):
        top = row * (band + height + GAP)
        draw.text((0, top + band / 2), caption, fill=INK, font=font, anchor="lm")
        for column, frame in enumerate(frames):
            enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * (width + GAP), top + band))
    return sheet


def _side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    step = panels[0].width + GAP
    sheet = Image.new("RGB", (len(panels) * step - GAP, panels[0].height), PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i * step, 0))
    return sheet
