"""Frames become pictures for people: filmstrips and sheets (PNG), animations (GIF), heat over frames, and PSNR.

    rows = {"original": original, "attention": overlay(original, heat)}      # each uint8 (F, H, W, C)
    filmstrip(rows).save("strip.png")
    save_animation(rows, "strip.gif")
    contact_sheet([Strip("000017  surfing", "frames 0 ... 60", clip)]).save("sheet.png")

numpy and Pillow; matplotlib for its colours alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from mae3d.io.files import MARK as MADE_BY

Frames = NDArray[Any]  # (F, H, W, C) uint8 or uint16, shown as `as_rgb` has it
Heat = NDArray[np.floating]  # (t, h, w), one value for each token

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, FAINT, PAPER = (38, 42, 48), (110, 116, 124), (255, 255, 255)
MARGIN, GAP = 12, 4  # around a contact sheet; between frames, pixels
PAGE = 1040  # small frames are enlarged as far as a sheet this wide allows, pixels
LARGEST = 256  # and no frame beyond this side
CAPTION = 15  # height of the captions' letters on such a sheet; more on a wider one
LETTERS = 14  # the same on a contact sheet
COLUMNS = 8  # most frames of a strip; of more, some are shown, spread evenly
CELL = 152  # side of a frame on a contact sheet, at most; small frames are enlarged by a whole factor up to it
FRAME_MS = 160  # how long an animation shows a frame, milliseconds
PANELS = 4  # of an animation, beside one another; more go on further lines
COLOURS = "inferno"  # matplotlib's name; as bright as the value is high, also in grey and to the colour-blind
MARK = (0, 255, 220)  # not among COLOURS
OPACITY = 0.65  # of the heat over the frame


@dataclass(frozen=True)
class Strip:
    """A clip and its caption: one line, and more below it."""

    title: str
    details: str
    frames: Frames


def filmstrip(rows: Mapping[str, Frames], *, columns: int = COLUMNS) -> Image.Image:
    """Return one captioned row of frames for each entry, on white.

    Small frames are enlarged by a whole factor, so that each pixel stays a square.

    Args:
        rows: Caption -> frames; all of one shape.
        columns: At most so many frames per row, spread evenly over the clip.
    """
    rows = {caption: as_rgb(frames) for caption, frames in rows.items()}
    shown = _spread(len(next(iter(rows.values()))), columns)
    return _sheet([(caption, frames[shown]) for caption, frames in rows.items()], wide=len(shown))


def save_animation(rows: Mapping[str, Frames], path: str | Path, *, frame_ms: int = FRAME_MS) -> None:
    """Write the entries side by side, captioned, as an endless GIF no wider than a page; many of them on several lines.

    A WebP of the same name goes beside it: in full colour and a fraction of the size, for pages.

    Args:
        rows: Caption -> frames; all of one shape.
        path: The GIF's path.
        frame_ms: How long a frame stays, milliseconds.
    """
    lines = -(-len(rows) // PANELS)
    columns = -(-len(rows) // lines)
    rows = {caption: _fitting(as_rgb(frames)) for caption, frames in rows.items()}
    sheets = []
    for i in range(len(next(iter(rows.values())))):
        panels = [_sheet([(caption, frames[i : i + 1])], wide=PANELS) for caption, frames in rows.items()]
        sheets.append(_in_lines(panels, columns))
    path = Path(path)
    endless: dict[str, Any] = {"save_all": True, "append_images": sheets[1:], "duration": frame_ms, "loop": 0}
    sheets[0].save(path.with_suffix(".webp"), quality=75, method=1, **endless)
    _save_gif(sheets, path.with_suffix(".gif"), frame_ms=frame_ms)


def contact_sheet(strips: Sequence[Strip]) -> Image.Image:
    """Return one strip below the other, captioned with wrapped lines, on a page with a margin.

    Args:
        strips: Clips of one shape, at least one.
    """
    shown = _spread(len(strips[0].frames), COLUMNS)
    size = _cell(strips[0].frames)
    width = max(len(shown) * (size[0] + GAP) - GAP, 3 * CELL)
    font = ImageFont.load_default(size=LETTERS)
    panels = []
    for strip in strips:
        title, details = (_wrapped(text, font, width) for text in (strip.title, strip.details))
        caption = [(line, INK) for line in title] + [(line, FAINT) for line in details]
        panels.append(_panel(caption, as_rgb(strip.frames)[shown], size, letters=LETTERS, width=width))
    return _framed(_stacked(panels, gap=MARGIN))


def save_grid(strips: Sequence[Strip], path: Path, *, columns: int) -> None:
    """Write all clips at once as an endless GIF: a grid, each clip under its title.

    Args:
        strips: Clips of one shape, at least one.
        path: The GIF's path.
        columns: Clips side by side, 8 at most.
    """
    size, font = _cell(strips[0].frames), ImageFont.load_default(size=LETTERS)
    width = max(size[0], CELL)
    titles = [[(line, INK) for line in _wrapped(strip.title, font, width)] for strip in strips]
    lines = max(map(len, titles))
    pictures = [as_rgb(strip.frames) for strip in strips]
    grids = []
    for i in range(len(strips[0].frames)):
        panels = [
            _panel(title, frames[i : i + 1], size, letters=LETTERS, width=width, lines=lines)
            for frames, title in zip(pictures, titles, strict=True)
        ]
        grids.append(_framed(_in_lines(panels, min(columns, COLUMNS), gap=MARGIN)))
    _save_gif(grids, path, frame_ms=FRAME_MS)


def as_rgb(frames: Frames) -> NDArray[np.uint8]:
    """Return frames (..., C) of any kind as RGB for people, (..., 3) uint8.

    One channel is grey; of two the first is red, and the second green and blue; of more the first three are red, green
    and blue. Frames of 16 bits are stretched, from their 1st percentile, black, to their 99th.
    """
    channels = frames.shape[-1]
    frames = frames[..., {1: [0, 0, 0], 2: [0, 1, 1]}.get(channels, [0, 1, 2])] if channels != 3 else frames
    if frames.dtype == np.uint8:
        return frames
    low, high = np.percentile(frames, (1, 99))
    stretched = (frames.astype(np.float32) - low) * (255 / max(high - low, 1))
    return stretched.clip(0, 255).round().astype(np.uint8)


def png_mark() -> PngInfo:
    """Return the mark by which `refuse_foreign` knows this program's PNGs, for `Image.save(pnginfo=...)`."""
    mark = PngInfo()
    mark.add_text("Software", MADE_BY.decode())
    return mark


def side_by_side(pictures: Sequence[Image.Image], background: Colour = PAPER) -> Image.Image:
    """Return pictures of one size in one row, with small gaps between them."""
    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), background)
    for column, picture in enumerate(pictures):
        row.paste(picture, (column * (width + GAP), 0))
    return row


def overlay(frames: Frames, heat: Heat, *, top: float) -> Frames:
    """Draw heat in colour over the frames in grey: dark at 0, bright yellow at `top` and beyond.

    Args:
        frames: (F, H, W, C), F a multiple of t.
        heat: (t, h, w), 0 or more; drawn smoothly in space, and in steps in time.
        top: The value of the brightest colour, above 0.
    """
    count, height, width = frames.shape[:3]
    smooth = [_enlarged(slot, (width, height)) for slot in np.clip(heat / top, 0, 1)]
    colours = _colours()[(np.stack(smooth) * 255).round().astype(np.uint8)]
    grey = as_rgb(frames) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    mixed = OPACITY * colours.repeat(count // len(heat), axis=0) + (1 - OPACITY) * grey[..., None]
    return mixed.round().astype(np.uint8)


def outline(frames: Frames, token: tuple[int, int, int], grid: tuple[int, int, int]) -> Frames:
    """Return the frames with a line around one token of the (t, h, w) grid, in the frames that it covers."""
    count, height, width = frames.shape[:3]
    (slot, row, column), (t, h, w) = token, grid
    u, p, q = count // t, height // h, width // w
    line, box = max(1, p // 8), (slice(row * p, (row + 1) * p), slice(column * q, (column + 1) * q))
    marked = as_rgb(frames).copy()
    for frame in marked[slot * u : (slot + 1) * u]:
        inside = frame[box][line:-line, line:-line].copy()
        frame[box] = MARK
        frame[box][line:-line, line:-line] = inside
    return marked


def colour_scale(low: str, high: str) -> Image.Image:
    """Return the colours of `overlay` from 0 to `top`, with a word at each end."""
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
    """Return the peak signal-to-noise ratio over selected pixels, 10 log10(255^2 / mean squared error).

    Args:
        image: (..., C), or anything that broadcasts against `truth`: a colour, a number.
        truth: uint8 (..., C).
        where: bool (...), the pixels that count.

    Returns:
        Decibels; infinite if they are equal, nan if no pixel counts.
    """
    if not where.any():
        return math.nan
    difference = np.broadcast_to(image, truth.shape)[where].astype(np.float64) - truth[where]
    error = float(np.square(difference).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _colours() -> NDArray[np.float64]:
    """Return the colours of heat: (256, 3), 0 to 255."""
    from matplotlib import colormaps

    return 255 * colormaps[COLOURS](np.arange(256))[:, :3]


def _enlarged(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return values (h, w) on [0, 1] enlarged to (H, W), bilinear; `size` is (W, H)."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def _spread(count: int, columns: int) -> NDArray[np.int64]:
    """Return the numbers of at most `columns` of `count` frames, spread evenly."""
    return np.linspace(0, count - 1, min(columns, count)).round().astype(np.int64)


def _sheet(rows: Sequence[tuple[str, Frames]], *, wide: int) -> Image.Image:
    """Return captioned rows of frames, sized for a page that is `wide` frames wide."""
    height, width = rows[0][1].shape[1:3]
    scale = max(1, min(PAGE // (wide * (width + GAP)), LARGEST // max(height, width)))
    letters = max(CAPTION, CAPTION * wide * width * scale // PAGE)
    size = (width * scale, height * scale)
    return _stacked([_panel([(caption, INK)], frames, size, letters=letters) for caption, frames in rows], gap=GAP)


def _panel(
    caption: Sequence[tuple[str, Colour]],
    frames: Frames,
    size: tuple[int, int],
    *,
    letters: int,
    width: int = 0,
    lines: int = 0,
) -> Image.Image:
    """Return frames side by side under their caption.

    Args:
        caption: Lines of text, and their colours.
        frames: uint8 (F, H, W, 3).
        size: (width, height) of a frame in the picture: enlarged with hard edges, or made smaller.
        letters: Height of the caption's letters, pixels.
        width: The picture's least width.
        lines: The least room for the caption.
    """
    rule = Image.Resampling.NEAREST if size[0] >= frames.shape[2] else Image.Resampling.BOX
    row = side_by_side([Image.fromarray(frame).resize(size, rule) for frame in frames])
    band = max(len(caption), lines) * (letters + GAP) + GAP
    panel = Image.new("RGB", (max(row.width, width), band + row.height), PAPER)
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(size=letters)
    for i, (line, colour) in enumerate(caption):
        draw.text((0, GAP + letters / 2 + i * (letters + GAP)), line, fill=colour, font=font, anchor="lm")
    panel.paste(row, (0, band))
    return panel


def _stacked(panels: Sequence[Image.Image], *, gap: int) -> Image.Image:
    """Return pictures below one another."""
    height = sum(panel.height + gap for panel in panels) - gap
    sheet, top = Image.new("RGB", (max(panel.width for panel in panels), height), PAPER), 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height + gap
    return sheet


def _framed(sheet: Image.Image) -> Image.Image:
    """Return a picture with a margin around it."""
    return ImageOps.expand(sheet, MARGIN, PAPER)


def _save_gif(sheets: Sequence[Image.Image], path: Path, *, frame_ms: int) -> None:
    """Write pictures of one size as an endless GIF.

    All frames have one palette: a palette for each makes still regions flicker. Dithering would, and doubles the size.
    """
    tall = Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))
    palette = tall.quantize(256, method=Image.Quantize.MEDIANCUT)
    indexed = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    endless: dict[str, Any] = {"save_all": True, "append_images": indexed[1:], "duration": frame_ms, "loop": 0}
    indexed[0].save(path, optimize=False, comment=MADE_BY, **endless)


def _cell(frames: Frames) -> tuple[int, int]:
    """Return (width, height) of a frame on a contact sheet."""
    height, width = frames.shape[1:3]
    longer = max(height, width)
    if longer <= CELL:
        return width * (CELL // longer), height * (CELL // longer)
    return max(width * CELL // longer, 1), max(height * CELL // longer, 1)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Return the text in lines that fit; a word that is too long for one is broken."""
    lines = [""]
    for word in _pieces(text, font, width):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, font: Font, width: int) -> Iterator[str]:
    for word in text.split():
        while font.getlength(word) > width:
            cut = next(n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width)
            yield word[:cut]
            word = word[cut:]
        yield word


def _fitting(frames: Frames) -> Frames:
    """Return frames for an animation's panels, scaled down if a full line of them would be wider than a page."""
    height, width = frames.shape[1:3]
    room = PAGE // PANELS - GAP
    if width <= room:
        return frames
    size = (room, max(1, height * room // width))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def _in_lines(panels: Sequence[Image.Image], columns: int, *, gap: int = GAP) -> Image.Image:
    """Return pictures of one size in lines of `columns`, with a gap below each line."""
    across, down = panels[0].width + GAP, panels[0].height + gap
    lines = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * across - GAP, lines * down - gap), PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % columns * across, i // columns * down))
    return sheet
