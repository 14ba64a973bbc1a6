"""Frames -> pictures that a person looks at: filmstrips (PNG), animations (GIF), heat over frames, and PSNR.

    rows = {"original": original, "attention": overlay(original, heat)}      # each uint8 (F, H, W, 3)
    filmstrip(rows).save("strip.png")
    save_animation(rows, "strip.gif")

numpy and Pillow; matplotlib for its colours alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]  # (F, H, W, 3)
Heat = NDArray[np.floating]  # (t, h, w), one value for each token

INK, PAPER = (38, 42, 48), (255, 255, 255)
GAP = 4  # between frames, pixels
PAGE = 1040  # small frames are enlarged as far as a sheet this wide allows, pixels
LARGEST = 256  # and no frame beyond this side
CAPTION = 15  # height of the captions' letters on such a sheet; more on a wider one
PANELS = 4  # of an animation, beside one another; more go on further lines
COLOURS = "inferno"  # matplotlib's name; as bright as the value is high, also in grey and to the colour-blind
MARK = (0, 255, 220)  # not among COLOURS
OPACITY = 0.65  # of the heat over the frame


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
    """The entries side by side, captioned, as an endless GIF no wider than a page; many of them on several lines.

    A WebP of the same name goes beside it: in full colour and a fraction of the size, for pages.

    Args:
        rows: Caption -> frames; all of one shape.
        path: The GIF's path.
        frame_ms: How long a frame stays, milliseconds.
    """
    lines = -(-len(rows) // PANELS)
    columns = -(-len(rows) // lines)
    rows = {caption: _fitting(frames) for caption, frames in rows.items()}
    sheets = []
    for i in range(len(next(iter(rows.values())))):
        panels = [_sheet([(caption, frames[i : i + 1])], wide=PANELS) for caption, frames in rows.items()]
        sheets.append(_in_lines(panels, columns))
    path = Path(path)
    timing: dict[str, Any] = {"save_all": True, "duration": frame_ms, "loop": 0}
    sheets[0].save(path.with_suffix(".webp"), append_images=sheets[1:], quality=75, method=1, **timing)
    # One palette for all frames: a palette for each makes still regions flicker. Dithering would, and doubles the size.
    tall = Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))
    palette = tall.quantize(256, method=Image.Quantize.MEDIANCUT)
    indexed = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    indexed[0].save(path.with_suffix(".gif"), append_images=indexed[1:], optimize=False, **timing)


def overlay(frames: Frames, heat: Heat, *, top: float) -> Frames:
    """Heat in colour over the frames in grey: dark where there is none, bright yellow at `top` and beyond.

    Args:
        frames: uint8 (F, H, W, 3), F a multiple of t.
        heat: (t, h, w), 0 or more; drawn smoothly in space, and in steps in time.
        top: The value of the brightest colour, above 0.
    """
    count, height, width = frames.shape[:3]
    smooth = [_enlarged(slot, (width, height)) for slot in np.clip(heat / top, 0, 1)]
    colours = _colours()[(np.stack(smooth) * 255).round().astype(np.uint8)]
    grey = frames @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    mixed = OPACITY * colours.repeat(count // len(heat), axis=0) + (1 - OPACITY) * grey[..., None]
    return mixed.round().astype(np.uint8)


def outline(frames: Frames, token: tuple[int, int, int], grid: tuple[int, int, int]) -> Frames:
    """The frames with a line around one token of the (t, h, w) grid, in the frames that it covers."""
    count, height, width = frames.shape[:3]
    (slot, row, column), (t, h, w) = token, grid
    u, p, q = count // t, height // h, width // w
    line, box = max(1, p // 8), (slice(row * p, (row + 1) * p), slice(column * q, (column + 1) * q))
    marked = frames.copy()
    for frame in marked[slot * u : (slot + 1) * u]:
        inside = frame[box][line:-line, line:-line].copy()
        frame[box] = MARK
        frame[box][line:-line, line:-line] = inside
    return marked


def colour_scale(low: str, high: str) -> Image.Image:
    """The colours of `overlay` from none to `top`, with a word at each end."""
    font = ImageFont.load_default(size=CAPTION)
    left, right = (round(font.getlength(text)) + 2 * GAP for text in (low, high))
    bar = np.broadcast_to(_colours()[None].round().astype(np.uint8), (CAPTION, 256, 3))
    scale = Image.new("RGB", (left + 256 + right, CAPTION + 2 * GAP), PAPER)
    scale.paste(Image.fromarray(bar), (left, GAP))
    draw = ImageDraw.Draw(scale)
    draw.text((0, scale.height / 2), low, fill=INK, font=font, anchor="lm")
    draw.text((left + 256 + 2 * GAP, scale.height / 2), high, fill=INK, font=font, anchor="lm")
    return scale


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


def _colours() -> NDArray[np.float64]:
    """(256, 3), 0 to 255."""
    from matplotlib import colormaps

    return 255 * colormaps[COLOURS](np.arange(256))[:, :3]


def _enlarged(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) on [0, 1] -> (H, W), bilinear; `size` is (W, H)."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


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


def _fitting(frames: Frames) -> Frames:
    """Frames for an animation's panels, scaled down if a full line of them would be wider than a page."""
    height, width = frames.shape[1:3]
    room = PAGE // PANELS - GAP
    if width <= room:
        return frames
    size = (room, max(1, height * room // width))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def _in_lines(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, so many on a line."""
    across, down = panels[0].width + GAP, panels[0].height + GAP
    lines = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * across - GAP, lines * down - GAP), PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % columns * across, i // columns * down))
    return sheet
