"""Folders and files become videos with masks, and nothing is left out without a word."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.inference.footage import find_sequences
from mae3d.io.label_maps import write_ids
from mae3d.video.clip import open_clips
from mae3d.video.reader import Video
from tests.support.media import make_video


def pictures(folder: Path, *names: str, size: tuple[int, int] = (8, 6)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)
    return folder


def masks(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_ids(folder / name, np.ones((6, 8), np.uint8))
    return folder


def test_frames_are_in_natural_order_and_begin_with_the_first_mask(tmp_path: Path) -> None:
    frames = pictures(tmp_path / "jump", "f10.png", "f2.png", "f1.png", ".f0.png")
    ((sequence,), notes) = find_sequences(frames, masks(tmp_path / "masks", "f10.png", "f2.png", "f7.png"))
    assert (sequence.name, sequence.frames, notes) == ("jump", ("f1.png", "f2.png", "f10.png"), [])
    assert sorted(sequence.masks) == [1, 2]
    assert [picture[0, 0, 0] for picture in sequence.pictures()] == [1, 0]  # in the order in which they were made
    assert [note.split()[0] for note in sequence.notes] == ["1", "1"]  # a mask without a frame, a frame before
    ((alone,), _) = find_sequences(frames, tmp_path / "masks" / "f2.png")
    assert alone.masks == {0: tmp_path / "masks" / "f2.png"}


def test_davis_has_its_own_layout_and_lists(tmp_path: Path) -> None:
    for name in ("bear", "camel", "dance"):
        pictures(tmp_path / "JPEGImages" / "480p" / name, "00000.png", "00001.png")
        pictures(tmp_path / "JPEGImages" / "1080p" / name, "00000.png")
    for name in ("bear", "camel"):
        masks(tmp_path / "Annotations" / "480p" / name, "00000.png")
    (sequences, notes) = find_sequences(tmp_path, tmp_path)
    assert [(sequence.name, len(sequence.frames)) for sequence in sequences] == [("bear", 2), ("camel", 2)]
    assert "1 of 3 videos" in notes[0]
    (tmp_path / "val.txt").write_text("camel\n\n")
    (sequences, notes) = find_sequences(tmp_path, tmp_path, str(tmp_path / "val.txt"))
    assert ([sequence.name for sequence in sequences], notes) == (["camel"], [])
    (tmp_path / "val.txt").write_text("camel\ndance\n")
    with pytest.raises(ValueError, match=r"val\.txt.*1 names.*dance"):
        find_sequences(tmp_path, tmp_path, str(tmp_path / "val.txt"))


def test_a_video_files_frames_are_numbered_from_zero(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 5)
    ((sequence,), _) = find_sequences(tmp_path / "v.mp4", masks(tmp_path / "masks", "2.png", "4.png"))
    assert sequence.frames == ("00000", "00001", "00002", "00003", "00004")
    assert sorted(sequence.masks) == [2, 4]
    ((whole,), _) = find_sequences(tmp_path / "v.mp4", tmp_path / "masks" / "2.png")
    every = list(whole.pictures())
    assert len(every) == 5
    assert [np.array_equal(a, b) for a, b in zip(sequence.pictures(), every[2:], strict=True)] == [True] * 3


@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_a_frame_stands_in_for_a_damaged_one_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    make_video(tmp_path / "v.mp4", 5)
    ((sequence,), _) = find_sequences(tmp_path / "v.mp4", masks(tmp_path / "masks", "0.png") / "0.png")
    whole, frames = list(sequence.pictures()), Video.frames

    def without_one(video: Video, start_s: float = 0.0) -> Iterator[Any]:
        return (pair for number, pair in enumerate(frames(video, start_s)) if number != damaged)

    with open_clips(tmp_path / "v.mp4") as video:
        times = video.frame_times()
    monkeypatch.setattr(Video, "frame_times", lambda video: times)
    monkeypatch.setattr(Video, "frames", without_one)
    shown = list(sequence.pictures())
    order = {0: [1, 1, 2, 3, 4], 2: [0, 1, 1, 3, 4], 4: [0, 1, 2, 3, 3]}[damaged]
    assert [np.array_equal(picture, whole[number]) for picture, number in zip(shown, order, strict=True)] == [True] * 5
    assert sequence.notes[0].startswith("1 damaged")


def test_frames_of_two_sizes_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "v", "0.png", "1.png")
    pictures(tmp_path / "v", "1.png", size=(9, 6))
    ((sequence,), _) = find_sequences(tmp_path / "v", masks(tmp_path / "m", "0.png"))
    with pytest.raises(ValueError, match=r"1\.png: 9 x 6.*8 x 6"):
        list(sequence.pictures())
    (tmp_path / "v" / "1.png").write_text("a thesis")
    with pytest.raises(ValueError, match=r"1\.png"):
        list(sequence.pictures())


@pytest.mark.parametrize(
    ("frames", "given", "message"),
    [("absent", "m", "--frames"), ("v", "absent", "--masks"), ("v", "v2", "none"), ("empty", "m", "pictures")],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, frames: str, given: str, message: str) -> None:
    pictures(tmp_path / "v", "a.png")
    pictures(tmp_path / "v2", "b.png")
    masks(tmp_path / "m", "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_sequences(tmp_path / frames, tmp_path / given)
