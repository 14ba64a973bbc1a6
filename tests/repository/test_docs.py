"""The pictures in docs/ are what the code of today draws."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from mae3d.io.contact_sheet import filmstrip

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_of_the_masks_is_up_to_date() -> None:
    rows = runpy.run_path(str(DOCS / "masks.py"))["draw_masks"]()
    assert len(rows) == 9
    drawn = np.asarray(filmstrip(rows)).astype(int)
    with Image.open(DOCS / "masks.png") as opened:
        kept = np.asarray(opened.convert("RGB")).astype(int)
    assert kept.shape == drawn.shape, "draw it anew: python docs/masks.py"
    # A token is 256 pixels; the rest is for letters, which another version of Pillow may draw otherwise.
    is_frame = np.zeros(drawn.shape[:2], dtype=bool)
    for row in range(len(rows)):
        is_frame[row * 123 + 23 : (row + 1) * 123 - 4] = True
    other = (np.abs(kept - drawn).max(axis=-1) > 12) & is_frame
    assert not other.any(), "draw it anew: python docs/masks.py"
