"""mae3d.io.contact_sheet: sizes, what is where, PSNR."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from mae3d.io.contact_sheet import (
    CELL,
    GAP,
    LETTERS,
    MARGIN,
    Frames,
    Strip,
    as_rgb,
    colour_scale,
    contact_sheet,
    filmstrip,
    outline,
    overlay,
    psnr,
    save_animation,
    save_grid,
    side_by_side,
)

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


def test_heat_is_dark_at_none_and_brightest_at_the_top_and_grows_between() -> None:
    frames = plain((90, 90, 90), count=4, side=32)
    heat = np.array([[[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    for top, slot in ((0.5, 255), (0.1, 255), (1.0, 128)):
        drawn = overlay(frames, heat, top=top)
        assert drawn.shape == frames.shape
        for frame, value in ((0, 0), (1, 0), (2, slot), (3, slot)):
            colour = np.array(colormaps["inferno"](value)[:3]) * 255
            assert np.abs(drawn[frame] - (0.65 * colour + 0.35 * 90)).max() <= 1.5
    brightness = [overlay(frames, np.full((1, 1, 1), value), top=1.0).sum() for value in np.linspace(0, 1, 9)]
    assert brightness == sorted(set(brightness))


def test_heat_lies_over_its_patch() -> None:
    heat = np.zeros((1, 2, 2))
    heat[0, 0, 1] = 1
    drawn = overlay(plain((0, 0, 0), count=1, side=32), heat, top=1.0)[0].sum(axis=-1)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[0] < 8
    assert drawn[4, 28] > drawn[12, 20] > drawn[28, 4]


def test_an_outline_is_drawn_around_one_token_in_its_frames() -> None:
    frames = plain((10, 20, 30), count=4, side=32)
    changed = (outline(frames, (1, 0, 1), (2, 2, 2)) != frames).any(-1)
    assert not changed[:2].any()
    expected = np.zeros((32, 32), dtype=bool)
    expected[:16, 16:] = True
    expected[2:14, 18:30] = False
    assert (changed[2:] == expected).all()


def test_an_animation_stays_within_a_page_on_as_many_lines_as_it_needs(tmp_path: Path) -> None:
    for count, lines in ((1, 1), (4, 1), (5, 2), (9, 3)):
        rows = {str(i): np.concatenate([plain((25 * i, 0, b), count=1) for b in (0, 200)]) for i in range(count)}
        save_animation(rows, tmp_path / "a.gif", frame_ms=70)
        sizes = set()
        for kind in ("gif", "webp"):
            with Image.open(tmp_path / f"a.{kind}") as image:
                assert getattr(image, "n_frames", 1) == 2
                sizes.add(image.size)
        ((width, height),) = sizes
        assert width <= 1040
        assert lines * 256 <= height <= lines * 300


def test_the_scale_runs_from_dark_to_bright() -> None:
    scale = np.asarray(colour_scale("none", "all").convert("L")).astype(int)
    middle = scale[scale.shape[0] // 2]
    start = int(np.flatnonzero(middle < 5)[0])
    assert (np.diff(middle[start : start + 256]) >= 0).all()


def test_long_captions_are_wrapped_not_cut(tmp_path: Path) -> None:
    """Nothing runs into the margin or out of the picture."""
    frames = np.full((2, 16, 16, 3), 128, dtype=np.uint8)
    strips = [Strip("key " + "a_very_long_name" * 9, "rotate -21.3; " * 30, frames)] * 3
    contact_sheet(strips).save(tmp_path / "sheet.png")
    save_grid(strips, tmp_path / "sheet.gif", columns=2)
    for name in ("sheet.png", "sheet.gif"):
        with Image.open(tmp_path / name) as opened:
            picture = np.asarray(opened.convert("RGB"))
        assert picture[:, -MARGIN + 2 :].min() > 240
        assert picture[-2:].min() > 240
        assert picture.shape[0] > 3 * (16 * (CELL // 16) + 3 * LETTERS)


def test_pictures_side_by_side_touch_only_their_gaps() -> None:
    row = np.asarray(side_by_side([Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")], (1, 2, 3)))
    assert row.shape == (3, 5 + GAP + 5, 3)
    assert (row[:, :5] == (255, 0, 0)).all()
    assert (row[:, 5 : 5 + GAP] == (1, 2, 3)).all()
    assert (row[:, 5 + GAP :] == (0, 0, 255)).all()


def test_channels_have_their_colours() -> None:
    grey, two, four = (
        np.arange(count, dtype=np.uint8) * 50 + 10 + np.zeros((2, 3, 4, 1), np.uint8) for count in (1, 2, 4)
    )
    assert (as_rgb(grey) == 10).all()
    assert as_rgb(two)[0, 0, 0].tolist() == [10, 60, 60]
    assert as_rgb(four)[0, 0, 0].tolist() == [10, 60, 110]
    colour = plain((1, 2, 3), side=4)
    assert as_rgb(colour) is colour


def test_sixteen_bits_are_stretched_over_what_the_clip_has() -> None:
    frames = np.linspace(7000, 8000, 2 * 40 * 50).round().astype(np.uint16).reshape(2, 40, 50, 1)
    shown = as_rgb(frames)
    assert (shown.dtype, shown.shape) == (np.uint8, (2, 40, 50, 3))
    assert (shown[0, 0, 0, 0], shown[1, -1, -1, 0]) == (0, 255)
    assert 120 < shown[0, -1, -1, 0] < 135
    assert (as_rgb(np.full_like(frames, 7000)) == 0).all()


@pytest.mark.parametrize(("height", "width"), [(16, 40), (60, 16), (200, 400)])
@pytest.mark.parametrize("channels", [1, 4])
def test_frames_of_any_shape_and_channels_keep_their_shape(
    height: int, width: int, channels: int, tmp_path: Path
) -> None:
    frames = np.full((3, height, width, channels), 77, np.uint8)
    rows, columns = np.nonzero((np.asarray(contact_sheet([Strip("a", "b", frames)])) == 77).all(axis=2))
    shown = (np.ptp(columns) + 1 + GAP) // 3 - GAP, np.ptp(rows) + 1
    assert shown[0] / shown[1] == pytest.approx(width / height, rel=0.05)
    assert CELL / 2 < max(shown) <= CELL
    strip = filmstrip({"a": frames})
    shown = (strip.width + GAP) // 3 - GAP, strip.height - (LETTERS + 1 + 2 * GAP)
    assert shown[0] / shown[1] == pytest.approx(width / height, rel=0.05)
    save_grid([Strip("a", "b", frames)] * 2, tmp_path / "grid.gif", columns=2)
    save_animation({"a": frames, "heat": overlay(frames, np.ones((1, 2, 5)), top=1.0)}, tmp_path / "a.gif")
    marked = outline(frames, (0, 1, 2), (1, 2, 5))
    assert marked.shape == (3, height, width, 3)
