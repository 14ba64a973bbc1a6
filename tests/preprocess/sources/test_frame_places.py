"""The rows of a ledger are located: parts of folders by offset, names with blanks, and other spellings of them."""

import zipfile
from pathlib import Path

import pytest

from mae3d.io.storage import Storage
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.frame_folders import frame_folders
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import Reading

# The same parts of a folder of ten frames and of one of six, as mmaction2's lists with offsets have them.
PARTS = "v0 0 4 7\nv0 4 6 8\nv1 0 6 9\n"


def find(root: Path | str, text: str, *columns: str) -> ScanResult:
    where = str(root)
    if "://" in where:
        Storage(where).write("ledger.txt", text.encode())
    else:
        (Path(where) / "ledger.txt").write_text(text)
    return frame_folders([root], f"{where}/ledger.txt", settings=Settings(), reading=Reading(columns=columns)).find()


def make_folder(path: Path, count: int, *, first: int = 1, stride: int = 1, prefix: str = "img_") -> Path:
    """Make a folder of empty files with the names of frames."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (path / f"{prefix}{first + number * stride:05d}.jpg").touch()
    return path


def spans(scan: ScanResult) -> list[tuple[str, int, int, tuple[str, ...]]]:
    return [(one.name, one.first, one.stop, one.labels) for one in scan.requests]


@pytest.mark.parametrize("first", [0, 1, 7])
def test_fault_45_raw_frames_with_offsets_are_read_as_such(tmp_path: Path, first: int) -> None:
    make_folder(tmp_path / "v0", 10, first=first)
    make_folder(tmp_path / "v1", 6, first=first)
    expected = [("v0", 0, 4, ("7",)), ("v0", 4, 10, ("8",)), ("v1", 0, 6, ("9",))]
    header = "frame_dir offset total_frames label\n" + PARTS
    for scan in (find(tmp_path, header), find(tmp_path, PARTS, "path=1", "offset=2", "total_frames=3", "label=4")):
        assert scan.problems == []
        assert spans(scan) == [(name, start + first, stop + first, labels) for name, start, stop, labels in expected]


def test_fault_45_offsets_without_a_header_are_found_by_the_frames_that_are_there(tmp_path: Path) -> None:
    for name in ("v0", "v1", "v2"):
        make_folder(tmp_path / name, 10)
    scan = find(tmp_path, "v0 0 10 3\nv1 0 10 3\nv2 6 4 1\nv2 0 6 0\n")
    assert (scan.problems, [one.stop - one.first for one in scan.requests]) == ([], [10, 10, 4, 6])
    assert any("read as `name offset total_frames label`" in note for note in scan.notes)
    scan = find(tmp_path, "v0 0 10 3\nv1 0 10 3\nv2 6 3 1\n")  # one frame of v2 is in no row: who knows
    assert scan.requests == []
    assert any("--columns path=1 offset=2 total_frames=3 label=4" in note for note in scan.notes)


def test_fault_45_rows_that_fit_as_offsets_and_as_first_and_last_are_refused_with_both(tmp_path: Path) -> None:
    make_folder(tmp_path / "v", 10)
    with pytest.raises(LedgerError, match=r"--columns path=1 first=2 last=3 label=4, or .*offset=2 total_frames=3"):
        find(tmp_path, "v 0 5 1\nv 5 5 2\n")
    assert len(find(tmp_path, "v 1 5 1\nv 6 10 2\n").requests) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [("v 4 7 0", "7 frames asked for after the first 4"), ("v -1 7 0", "offset '-1'"), ("v 0 0 1", "0 fr")],
)
def test_a_part_that_is_not_there_is_told(tmp_path: Path, row: str, told: str) -> None:
    make_folder(tmp_path / "v", 10)
    (problem,) = find(tmp_path, f"name offset total_frames label\n{row}\n").problems
    assert told in problem.message


def test_offsets_count_the_frames_of_a_strided_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "v", 10, first=0, stride=25)
    assert spans(find(tmp_path, "name offset total_frames label\nv 2 3 0\n")) == [("v", 50, 101, ("0",))]


@pytest.mark.parametrize(
    "text", ["my video 2/take one 1 4 3\n", "my video 2/take one 4 3\n", '"my video 2/take one" 1 4 3\n']
)
def test_a_name_may_hold_blanks(tmp_path: Path, text: str) -> None:
    make_folder(tmp_path / "my video 2" / "take one", 4)
    assert spans(find(tmp_path, text)) == [("my video 2/take one", 1, 5, ("3",))]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Class\\V1", "train/class/v1"),
        ("cafe\u0301/v1", "caf\u00e9/V1"),
        ("TRAIN/class/v1", "train/class/v1"),
        ("./some\\v1", "some/v1"),
    ],
)
@pytest.mark.parametrize("behind_url", [False, True])
def test_fault_45_a_folder_is_found_under_another_spelling(
    tmp_path: Path, name: str, folder: str, behind_url: bool
) -> None:
    root: Path | str = tmp_path
    make_folder(tmp_path / folder, 4)
    make_folder(tmp_path / "other", 4)
    if behind_url:
        root = f"memory://places/{tmp_path.name}"
        for path in sorted(tmp_path.rglob("*.jpg")):
            Storage(root).put(path, path.relative_to(tmp_path).as_posix())
    scan = find(root, f"{name} 1 4 3\nother 1 4 0\n")
    assert [(one.path, one.labels) for one in scan.requests] == [(folder, ("3",)), ("other", ("0",))]
    assert any(note.startswith("1 folders were found under another spelling") for note in scan.notes)
    assert "0 frame folders on disk are not in the ledger" in scan.notes


def test_fault_45_a_video_of_a_folder_of_several_is_found_under_another_spelling(tmp_path: Path) -> None:
    for prefix in ("v1_", "v2_"):
        make_folder(tmp_path / "train" / "class", 3, prefix=prefix)
    scan = find(tmp_path, "Class\\V2 1 3 0\n")
    assert [(one.path, one.prefix) for one in scan.requests] == [("train/class", "v2_")]


def test_fault_45_a_name_that_could_be_two_folders_is_refused_with_both(tmp_path: Path) -> None:
    for name in ("Clip", "clip"):
        make_folder(tmp_path / name, 3)
    (problem,) = find(tmp_path, "CLIP 1 3 0\n").problems
    assert (problem.reason, problem.line) == ("ambiguous_folder", 1)
    assert "it could be Clip or clip" in problem.message


def test_fault_07_another_spelling_of_a_folder_does_not_leave_the_root(tmp_path: Path) -> None:
    make_folder(tmp_path / "secret", 3)
    (tmp_path / "root").mkdir()
    (problem,) = find(tmp_path / "root", "..\\secret 1 3 0\n").problems
    assert problem.reason == "missing_folder"


def test_a_folder_that_is_missing_names_where_it_was_looked_for_and_the_archive_beside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archery.zip", "w") as file:
        file.writestr("v1/img_00001.jpg", b"")
    archived, missing = find(tmp_path, "archery/v1 1 3 0\nbowling/v1 1 3 0\n").problems
    assert missing.message == "no such folder, nor below train, val, validation, test"
    assert f"archery.zip: unzip -d {tmp_path}/archery {tmp_path}/archery.zip" in archived.message
