"""Clips with captions ─► a PNG sheet and an endless GIF. numpy and Pillow only.

save_sheet(strips, Path("sheet.png"))         # strips = [Strip("000017  surfing", "frames 0 ... 60", clip)]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = (38, 42, 48), (110, 116, 124), (255, 255, 255)
MARGIN, GAP = 12, 4  # around the sheet; between frames, pixels
LETTERS = 14  # height of the captions' letters, pixels
COLUMNS = 8  # most frames of a strip; of more, some are shown, spread evenly
CELL = 152  # side of a frame on the sheet, at most; small frames are enlarged by a whole factor up to it
FRAME_MS = 160


@dataclass(frozen=True)
class Strip:
    """A clip, and what it is in words: one line, and more below it."""

    title: str
    details: str
    frames: np.ndarray  # (T, H, W, C) uint8


def save_sheet(strips: Sequence[Strip], path: Path) -> None:
    """One strip below the other, each captioned above, its frames from left to right.

    Args:
        strips: clips of one shape.
        path: of the PNG.
    """
    count = len(strips[0].frames)
    shown = np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int)
    cell = _cell(strips[0].frames)
    width = max(len(shown) * (cell + GAP) - GAP, 3 * CELL)
    font = ImageFont.load_default(size=LETTERS)
    captions = [
        [(line, INK) for line in _wrapped(strip.title, font, width)]
        + [(line, FAINT) for line in _wrapped(strip.details, font, width)]
        for strip in strips
    ]
    height = sum(_height(lines, cell) for lines in captions)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for strip, lines in zip(strips, captions, strict=True):
        for i, (line, colour) in enumerate(lines):
            draw.text((MARGIN, top + i * (LETTERS + GAP)), line, fill=colour, font=font)
        for column, frame in enumerate(shown):
            below = top + len(lines) * (LETTERS + GAP) + GAP
            sheet.paste(_scaled(strip.frames[frame], cell), (MARGIN + column * (cell + GAP), below))
        top += _height(lines, cell)
    sheet.save(path)


def save_animation(strips: Sequence[Strip], path: Path, *, columns: int) -> None:
    """All clips at once in a grid, each under its title.

    Args:
        strips: clips of one shape.
        path: of the GIF.
        columns: clips side by side.
    """
    cell, font = _cell(strips[0].frames), ImageFont.load_default(size=LETTERS)
    columns = min(columns, COLUMNS)
    width = max(cell, CELL)
    titles = [_wrapped(strip.title, font, width) for strip in strips]
    band = max(map(len, titles)) * (LETTERS + GAP) + GAP
    rows = -(-len(strips) // columns)
    size = (columns * (width + GAP) - GAP + 2 * MARGIN, rows * (band + cell + MARGIN) + MARGIN)
    grids = []
    for frame in range(len(strips[0].frames)):
        grid = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(grid)
        for i, (strip, lines) in enumerate(zip(strips, titles, strict=True)):
            left, top = MARGIN + i % columns * (width + GAP), MARGIN + i // columns * (band + cell + MARGIN)
            for number, line in enumerate(lines):
                draw.text((left, top + number * (LETTERS + GAP)), line, fill=INK, font=font)
            grid.paste(_scaled(strip.frames[frame], cell), (left, top + band))
        grids.append(grid)
    # One palette for all frames: a palette for each makes still regions flicker.
    palette = Image.fromarray(np.concatenate([np.asarray(grid) for grid in grids])).quantize(256)
    indexed = [grid.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for grid in grids]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=FRAME_MS, loop=0, optimize=False)


def _cell(frames: np.ndarray) -> int:
    size = frames.shape[2]
    return size * max(1, CELL // size) if size <= CELL else CELL


def _scaled(frame: np.ndarray, cell: int) -> Image.Image:
    """Enlarged so that each pixel stays a square, or made smaller."""
    rule = Image.Resampling.NEAREST if cell >= frame.shape[1] else Image.Resampling.BOX
    return Image.fromarray(frame).resize((cell, cell), rule)


def _height(lines: Sequence[object], cell: int) -> int:
    return len(lines) * (LETTERS + GAP) + GAP + cell + MARGIN


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit; a word that is too long for one is broken."""
    lines = [""]
    for word in _pieces(text, font, width):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    for word in text.split():
        while font.getlength(word) > width:
            cut = next(n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width)
            yield word[:cut]
            word = word[cut:]
        yield word
