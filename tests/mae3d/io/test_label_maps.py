"""Pictures of object numbers, of every kind that masks come in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae3d.io.label_maps import MaskReader, palette, tinted, write_ids

IDS = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


def test_numbers_come_back_from_palette_and_grey(tmp_path: Path) -> None:
    write_ids(tmp_path / "p.png", IDS)
    Image.fromarray(IDS).save(tmp_path / "l.png")
    Image.fromarray(IDS.astype(np.uint16)).save(tmp_path / "i.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), palette()[IDS])
    for name in ("p.png", "l.png", "i.png"):
        assert np.array_equal(MaskReader().read(tmp_path / name), IDS)
    Image.fromarray(np.array([[0, 1]], np.uint8) > 0).save(tmp_path / "1.png")
    assert MaskReader().read(tmp_path / "1.png").tolist() == [[0, 1]]


def test_a_colour_is_the_same_object_in_all_masks_of_a_video(tmp_path: Path) -> None:
    red, green, blue, black = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
    for name, row in (("a", [black, red, green]), ("b", [blue, green, red])):
        Image.fromarray(np.array([row], np.uint8)).save(tmp_path / f"{name}.png")
    reader = MaskReader()
    assert reader.read(tmp_path / "a.png").tolist() == [[0, 2, 1]]  # in the order of their colours
    assert reader.read(tmp_path / "b.png").tolist() == [[3, 1, 2]]


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    with pytest.raises(ValueError, match=r"photograph\.png.*colours.*255"):
        MaskReader().read(tmp_path / "photograph.png")
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "many.png")
    with pytest.raises(ValueError, match=r"many\.png.*300.*255"):
        MaskReader().read(tmp_path / "many.png")
    (tmp_path / "text.png").write_text("a thesis")
    with pytest.raises(ValueError, match=r"text\.png.*PNG"):
        MaskReader().read(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        MaskReader().read(tmp_path / "absent.png")


def test_objects_are_tinted_and_outlined_and_the_rest_stays() -> None:
    frame = np.full((7, 7, 3), 100, np.uint8)
    ids = np.zeros((7, 7), np.uint8)
    ids[1:6, 1:6] = 1
    picture = tinted(frame, ids)
    assert (picture[0] == 100).all()
    assert picture[1, 1].tolist() == palette()[1].tolist()
    assert (picture[3, 3] == np.round(100 + 0.55 * (palette()[1] - 100.0))).all()
    assert len(np.unique(palette(), axis=0)) == 256
