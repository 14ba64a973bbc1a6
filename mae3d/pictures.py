"""Frames -> pictures that a person looks at: filmstrips (PNG), animations (GIF), and how close they are (PSNR).

    rows = {"original": original, "masked": masked, "reconstruction": predicted}      # each uint8 (F, H, W, 3)
    filmstrip(rows).save("strip.png")
    save_animation(rows, "strip.gif")

numpy and Pillow only.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]  # (F, H, W, 3)

INK, PAPER = (38, 42, 48), (255, 255, 255)
GAP = 4
CAPTION = 15  # height of the captions' letters, pixels


def filmstrip(rows: Mapping[str, Frames], *, columns: int = 8, min_side: int = 112) -> Image.Image:
    """One row of frames for each entry, captioned, on white.

    Args:
        rows: Caption -> frames; all of one shape.
        columns: At most so many frames a row, spread evenly over the clip.
        min_side: Smaller frames are enlarged by a whole factor, so that each pixel stays a square.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    shown = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    scale = max(1, math.ceil(min_side / min(height, width)))
    height, width = height * scale, width * scale
    band = CAPTION + 2 * GAP
    sheet = Image.new("RGB", (len(shown) * (width + GAP) - GAP, len(rows) * (band + height + GAP) - GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=CAPTION)
    for row, (caption, frames) in enumerate(rows.items()):
        top = row * (band + height + GAP)
        draw.text((0, top + band / 2), caption, fill=INK, font=font, anchor="lm")
        for column, index in enumerate(shown):
            sheet.paste(_enlarged(frames[index], scale), (column * (width + GAP), top + band))
    return sheet


def save_animation(rows: Mapping[str, Frames], path: str | Path, *, frame_ms: int = 160, min_side: int = 160) -> None:
    """The entries side by side, captioned, as an endless GIF.

    Args:
        rows: Caption -> frames; all of one shape.
        path: The GIF's path.
        frame_ms: How long a frame stays, milliseconds.
        min_side: As for `filmstrip`.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    scale = max(1, math.ceil(min_side / min(height, width)))
    sheets = []
    for index in range(count):
        one = {caption: frames[index : index + 1] for caption, frames in rows.items()}
        panels = [filmstrip({caption: frame}, min_side=min(height, width) * scale) for caption, frame in one.items()]
        sheet = Image.new("RGB", (len(panels) * (width * scale + GAP) - GAP, panels[0].height), PAPER)
        for column, panel in enumerate(panels):
            sheet.paste(panel, (column * (width * scale + GAP), 0))
        sheets.append(sheet)
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


def _enlarged(frame: NDArray[np.uint8], scale: int) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
