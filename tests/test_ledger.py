from pathlib import Path

import numpy as np
import pytest

from preprocess.folders import FrameFolder, index_shift, scan_folder, unlisted_folders
from preprocess.ledger import LedgerError, LedgerRow, read_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.csv"


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("v1 1 24 3\nv2 1 9 0\n", "spaces, no header, 2 rows"),
        ("v1  1\t24 3\nv2 1 9 0", "tabs, no header, 2 rows"),
        ("v1,1,24,3\nv2,1,9,0\n", "commas, no header, 2 rows"),
        ("v1, 1, 24, 3\r\nv2, 1, 9, 0\r\n", "commas, no header, 2 rows"),
        ("video_name,start_frame,end_frame,class\nv1,1,24,3\nv2,1,9,0\n", "commas, a header, 2 rows"),
        ("name start end label\n\nv1 1 24 3\n\nv2 1 9 0\n", "spaces, a header, 2 rows"),
        ("v1;1;24;3\nv2;1;9;0", "semicolons, no header, 2 rows"),
    ],
)
def test_every_dialect_gives_the_same_rows(ledger: Path, text: str, dialect: str) -> None:
    if "tabs" in dialect:
        text = text.replace("v1  1\t24 3", "v1\t1\t24\t3").replace("v2 1 9 0", "v2\t1\t9\t0")
    for mark in ("", "\ufeff"):
        ledger.write_bytes((mark + text).encode())
        read = read_ledger(ledger)
        assert [(row.name, row.first, row.stop, row.labels) for row in read.rows] == [
            ("v1", 1, 25, ("3",)),
            ("v2", 1, 10, ("0",)),
        ]
        assert read.problems == ()
        assert read.dialect == f"ledger.csv: {dialect}"


def test_ranges_become_half_open_and_labels_stay_words(ledger: Path) -> None:
    ledger.write_text('a/b 1000 1100 3 7 9\n"two words" 0 0 cat\nnone 2 3\n')
    assert read_ledger(ledger).rows == (
        LedgerRow(1, "a/b", 1000, 1101, ("3", "7", "9")),
        LedgerRow(2, "two words", 0, 1, ("cat",)),
        LedgerRow(3, "none", 2, 4, ()),
    )


def test_overrides_win_over_the_guess(ledger: Path) -> None:
    ledger.write_text("a,b 1 2 0\nc 1 2 0\n")
    assert [row.name for row in read_ledger(ledger, delimiter="space").rows] == ["a,b", "c"]
    ledger.write_text("a 1 2 0\nc 1 2 0\n")
    assert [row.line for row in read_ledger(ledger, header="yes").rows] == [2]
    ledger.write_text("name start end\nc 1 2\n")
    (problem,) = read_ledger(ledger, header="no").problems
    assert problem.line == 1


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        ("v 1", "bad_row", "2 columns"),
        ("v one 24 0", "bad_row", "'one'"),
        ("v 1 24.5 0", "bad_row", "'24.5'"),
        ("v -1 24 0", "bad_row", "-1"),
        ("v 24 1 0", "bad_row", "reversed"),
        ("v 1 24 -3", "bad_row", "label -3"),
        ("v 1 24 99999999999", "bad_row", "99999999999"),
        ("../v 1 24 0", "unsafe_name", "leaves the root"),
        ("/v 1 24 0", "unsafe_name", "leaves the root"),
        ("v/../../w 1 24 0", "unsafe_name", "leaves the root"),
        ("v\x00 1 24 0", "unsafe_name", "control character"),
        ("good 1 24 0", "duplicate_row", "line 1"),
    ],
)
def test_fault_03_a_bad_row_is_told_with_line_and_value(ledger: Path, row: str, reason: str, told: str) -> None:
    ledger.write_text(f"good 1 24 0\n\n{row}\nalso 1 24 0\n")
    read = read_ledger(ledger)
    assert [good.name for good in read.rows] == ["good", "also"]
    (problem,) = read.problems
    assert (problem.line, problem.reason) == (3, reason)
    assert told in problem.message


def test_fault_04_segments_of_one_video_are_no_duplicates(ledger: Path) -> None:
    ledger.write_text("v 1 10 0\nv 11 20 0\nv 1 10 1\n")
    assert len(read_ledger(ledger).rows) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "line 1: the file is empty"), (b" \n\n", "line 1"), (b"v 1 2\n\xff 1 2\n", "line 2: not UTF-8")],
)
def test_fault_01_an_unreadable_ledger_names_file_and_line(ledger: Path, data: bytes, message: str) -> None:
    ledger.write_bytes(data)
    with pytest.raises(LedgerError, match=message) as caught:
        read_ledger(ledger)
    assert str(ledger) in str(caught.value)


def test_fault_01_a_missing_ledger_names_the_file(ledger: Path) -> None:
    with pytest.raises(LedgerError, match=r"ledger\.csv: No such file"):
        read_ledger(ledger)


def test_a_header_alone_is_no_ledger(ledger: Path) -> None:
    ledger.write_text("name,start,end,label\n")
    with pytest.raises(LedgerError, match="only a header"):
        read_ledger(ledger)


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
    found = scan_folder(tmp_path)
    assert found is not None
    assert (found.prefix, found.digits, found.suffix) == template
    assert found.numbers.tolist() == list(numbers)
    assert all((tmp_path / found.file_name(number)).exists() for number in numbers)


def test_a_folder_without_numbered_images_has_no_template(tmp_path: Path) -> None:
    (tmp_path / "cover.jpg").touch()
    (tmp_path / "1.txt").touch()
    assert scan_folder(tmp_path) is None


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
    assert list(unlisted_folders(tmp_path, {"listed", "class/listed too"})) == ["class/other"]
