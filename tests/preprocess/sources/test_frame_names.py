from pathlib import Path

import numpy as np
import pytest

from preprocess.sources.frame_names import FrameFolder, index_shift
from preprocess.sources.frame_trees import FrameFolders
from preprocess.sources.roots import Folder


@pytest.mark.parametrize(
    ("names", "template", "numbers"),
    [
        ([f"img_{i:05d}.jpg" for i in range(1, 12)], ("img_", 5, ".jpg"), range(1, 12)),
        ([f"img_{i:06d}.jpg" for i in range(3)], ("img_", 6, ".jpg"), range(3)),
        ([f"frame_{i:012d}.PNG" for i in range(3)], ("frame_", 12, ".PNG"), range(3)),
        ([f"{i}.jpeg" for i in range(8, 13)], ("", 1, ".jpeg"), range(8, 13)),
        ([f"img_{i:02d}.jpg" for i in range(98, 103)], ("img_", 1, ".jpg"), range(98, 103)),
        ([f"img_{i:02d}.jpg" for i in range(1, 103)], ("img_", 2, ".jpg"), range(1, 103)),
        (["img_00001.jpg", "img_00002.jpg", "img_0003.jpg", "note.txt", "cover.jpg"], ("img_", 5, ".jpg"), range(1, 3)),
        (["cam1_take2_0001.jpg", "cam1_take2_0002.jpg"], ("cam1_take2_", 4, ".jpg"), range(1, 3)),
    ],
)
def test_fault_05_the_template_of_a_folder_is_found(
    tmp_path: Path, names: list[str], template: tuple[str, int, str], numbers: range
) -> None:
    for name in names:
        (tmp_path / name).touch()
    (found,) = FrameFolders(Folder(tmp_path)).scan("").videos
    assert (found.prefix, found.digits, found.suffix) == template
    assert found.numbers.tolist() == list(numbers)
    assert all((tmp_path / found.file_name(number)).exists() for number in numbers)


def test_a_folder_without_numbered_images_has_no_template(tmp_path: Path) -> None:
    (tmp_path / "cover.jpg").touch()
    (tmp_path / "1.txt").touch()
    assert FrameFolders(Folder(tmp_path)).scan("").videos == ()


def test_fault_05_the_counting_base_follows_the_files() -> None:
    def shift(numbers: range, first: int, last: int) -> int:
        folder = FrameFolder("img_", 5, ".jpg", np.array(numbers))
        return index_shift(folder, first, last + 1)

    assert shift(range(1, 11), 1, 10) == 0
    assert shift(range(0, 10), 0, 9) == 0
    assert shift(range(1, 11), 0, 9) == 1  # ledger from 0, files from 1
    assert shift(range(0, 10), 1, 10) == -1  # ledger from 1, files from 0
    assert shift(range(1, 11), 0, 10) == 0  # one too many either way: to be rejected, not shifted
    assert shift(range(1, 11), 1, 11) == 0


def test_missing_frames_are_found() -> None:
    folder = FrameFolder("img_", 5, ".jpg", np.array([1, 2, 3, 5, 6]))
    assert folder.first_missing(1, 4) is None
    assert folder.first_missing(1, 7) == 4
    assert folder.first_missing(5, 9) == 7


def test_fault_06_folders_outside_the_ledger_are_found(tmp_path: Path) -> None:
    for name in ("listed", "class/listed too", "class/other", "empty"):
        (tmp_path / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / name / "img_1.jpg").touch()
    assert FrameFolders(Folder(tmp_path)).below(skip={"listed", "class/listed too"}).folders == ["class/other"]
