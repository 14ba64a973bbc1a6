"""Pictures whose pixels are numbers of objects, as DAVIS has them, are read, written and drawn over frames.

    ids = MaskReader().read(Path("Annotations/480p/bear/00000.png"))        # uint8 (H, W): 0 background, 1 ... 255
    write_ids(Path("00001.png"), ids)                                        # a PNG with a palette
    picture = tinted(frame, ids)

numpy and Pillow.
"""

import colorsys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae3d.io.contact_sheet import png_mark
from mae3d.io.files import replace_file

MOST = 255  # objects of a picture
_OPACITY = 0.55  # of an object's colour over the frame
_TURN = 0.381966  # of the circle of hues, from one object to the next: the golden section keeps any number apart

Ids = NDArray[np.uint8]  # (H, W)


class MaskReader:
    """A reader of the masks of one video, for which a colour means the same object in all of them."""

    def __init__(self) -> None:
        self._colours: dict[int, int] = {0: 0}  # 0xRRGGBB ─► number

    def read(self, path: Path) -> Ids:
        """Return the numbers of a picture's pixels, uint8 (H, W).

        Indices of a palette and values of grey are the numbers. In a picture of colours black is the background, and
        the other colours are numbered in ascending order of red, green and blue; a later picture's new ones follow.

        Raises:
            ValueError: The file is no picture, or has a number or more colours than 255.
        """
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture if picture.mode in ("P", "L", "1", "I", "I;16") else picture.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{path}: no picture that can be read ({error}): give a PNG") from error
        if pixels.ndim == 2:
            if pixels.max(initial=0) > MOST or pixels.min(initial=0) < 0:
                raise ValueError(f"{path}: object number {pixels.max()}: numbers go from 0 to {MOST}")
            return pixels.astype(np.uint8)
        codes = (pixels.astype(np.int64) * (1 << 16, 1 << 8, 1)).sum(axis=2)
        colours, places = np.unique(codes, return_inverse=True)
        for colour in colours.tolist():
            self._colours.setdefault(colour, len(self._colours))
        if len(self._colours) > MOST + 1:
            raise ValueError(
                f"{path}: {len(colours):,} colours, which is no mask of at most {MOST} objects: give a PNG of indices"
            )
        numbers = np.array([self._colours[colour] for colour in colours.tolist()], np.uint8)
        return numbers[places.reshape(codes.shape)]


def write_ids(path: Path, ids: Ids) -> None:
    """Replace a PNG whose palette indices are the numbers of objects."""
    picture = Image.fromarray(ids, mode="L")
    picture.putpalette(palette().tobytes())
    with replace_file(path) as aside:
        picture.save(aside, format="PNG", pnginfo=png_mark())


def tinted(frame: NDArray[np.uint8], ids: Ids) -> NDArray[np.uint8]:
    """Return a frame (H, W, 3) with each object in its colour, and a line of that colour around it."""
    colours = palette()[ids].astype(np.float64)
    padded = np.pad(ids, 1, mode="edge")
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    opacity = np.where(np.logical_or.reduce([ids != other for other in beside]), 1.0, _OPACITY)
    mixed = np.where((ids > 0)[..., None], frame + opacity[..., None] * (colours - frame), frame)
    return mixed.round().astype(np.uint8)


@cache
def palette() -> NDArray[np.uint8]:
    """Return the colours of the numbers, (256, 3): black, then hues that differ from their neighbours'."""
    hues = [(0.02 + number * _TURN) % 1 for number in range(MOST)]
    colours = [colorsys.hsv_to_rgb(hue, 0.75 if i // 12 % 2 == 0 else 0.45, 1.0) for i, hue in enumerate(hues)]
    return np.array([(0, 0, 0), *colours] * np.array(255.0)).round().astype(np.uint8)
