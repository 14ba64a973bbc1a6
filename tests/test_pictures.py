"""mae3d.pictures: sizes, what is where, PSNR."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae3d.pictures import Frames, filmstrip, psnr, save_animation

SIDE = 300  # four do not fit on a page twice as large: no enlargement


def plain(colour: tuple[int, int, int], *, count: int = 4, side: int = SIDE) -> Frames:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (count, side, side, 3)).copy()


ROWS = {"red": plain((200, 0, 0)), "blue": plain((0, 0, 200))}


def test_a_strip_shows_every_frame_of_every_row() -> None:
    red = plain((200, 0, 0))
    red[2] = (0, 150, 0)
    sheet = np.asarray(filmstrip({"red": red, "blue": ROWS["blue"]}))
    assert (sheet == (200, 0, 0)).all(-1).sum() == 3 * SIDE**2
    assert (sheet == (0, 150, 0)).all(-1).sum() == SIDE**2
    assert (sheet == (0, 0, 200)).all(-1).sum() == 4 * SIDE**2
    top, bottom = (np.argwhere((sheet == colour).all(-1))[:, 0] for colour in ((200, 0, 0), (0, 0, 200)))
    assert top.max() < bottom.min()


def test_captions_are_drawn() -> None:
    with_text = np.asarray(filmstrip(ROWS))
    without = np.asarray(filmstrip({" ": ROWS["red"], "  ": ROWS["blue"]}))
    assert with_text.shape == without.shape
    assert (with_text != without).any()


def test_small_frames_are_enlarged_by_a_whole_factor_and_columns_are_spread() -> None:
    frames = np.stack([np.full((60, 60, 3), 10 * i, dtype=np.uint8) for i in range(16)])
    sheet = np.asarray(filmstrip({"": frames}, columns=4))
    for i in (0, 5, 10, 15):
        assert (sheet == 10 * i).all(-1).sum() == 240 * 240
    assert not (sheet == 30).all(-1).any()


def test_an_animation_has_all_frames_runs_forever_and_keeps_still_pixels_still(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    moving = generator.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    still = np.broadcast_to(generator.integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8), moving.shape)
    save_animation({"moving": moving, "still": still}, tmp_path / "a.gif", frame_ms=120)
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.n_frames == 5
        assert opened.info["loop"] == 0
        assert opened.info["duration"] == 120
        frames = []
        for i in range(5):
            opened.seek(i)
            frames.append(np.asarray(opened.convert("RGB")).astype(int))
    right = [frame[-SIDE:, -SIDE:] for frame in frames]
    assert max(np.abs(frame - right[0]).mean() for frame in right) < 8
    assert np.abs(frames[1][-SIDE:, :SIDE] - frames[0][-SIDE:, :SIDE]).mean() > 30


def test_psnr_of_known_errors() -> None:
    truth = plain((100, 100, 100))
    where = np.zeros(truth.shape[:3], dtype=bool)
    where[0, :4] = True
    other = truth.copy()
    other[where] += 10
    other[~where] = 0  # does not count
    assert psnr(other, truth, where) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(truth, truth, where) == math.inf
    assert psnr(np.array([110.0, 100, 100]), truth, where) == pytest.approx(
        20 * math.log10(255 / 10) + 10 * math.log10(3)
    )
    assert math.isnan(psnr(truth, truth, np.zeros_like(where)))
