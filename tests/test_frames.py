import logging
from pathlib import Path

import pytest

from preprocess.frames import frame_folders
from preprocess.plan import Found, Request, Settings
from preprocess.problems import Problem
from tests.media import make_frame_folder


def find(root: Path, ledger: str, **settings: float) -> tuple[list[Request], list[Problem]]:
    found = find_all(root, ledger, **settings)
    return found.requests, found.problems


def find_all(root: Path, ledger: str, **settings: float) -> Found:
    (root / "ledger.csv").write_text(ledger)
    return frame_folders([root], root / "ledger.csv", settings=Settings(**settings)).find()  # type: ignore[arg-type]


@pytest.mark.parametrize("below", ["train", "."])
def test_folders_lie_below_train_or_below_the_root(
    tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_frame_folder(tmp_path / below / "class" / "v1", 5)
    caplog.set_level(logging.INFO)
    ((request,), problems) = find(tmp_path, "class/v1 2 5 0\n")
    assert problems == []
    assert (tmp_path / request.path).is_dir()
    assert (request.name, request.first, request.stop) == ("class/v1", 2, 6)
    assert (request.prefix, request.digits, request.suffix) == ("img_", 5, ".jpg")
    assert "ledger.csv: spaces, no header, 1 rows" in caplog.text
    assert f"1 frame folders are taken from {tmp_path / below}" in caplog.text


def test_fault_05_a_ledger_that_goes_beyond_its_folder_is_told_what_there_is(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "train" / "v1", 16)
    make_frame_folder(tmp_path / "train" / "gap", 9)
    (tmp_path / "train" / "gap" / "img_00004.jpg").unlink()
    requests, problems = find(tmp_path, "v1 1 17 0\ngap 1 9 0\ngap 5 9 0\nabsent 1 2 0\n")
    assert [request.line for request in requests] == [3]
    assert [(problem.line, problem.reason) for problem in problems] == [
        (1, "missing_frame"),
        (2, "missing_frame"),
        (4, "missing_folder"),
    ]
    assert "img_00017.jpg is missing; there are 16 frames, img_00001.jpg to img_00016.jpg" in problems[0].message
    assert "img_00004.jpg" in problems[1].message


def test_fault_05_one_shift_for_all_segments_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_frame_folder(tmp_path / "train" / "v1", 10, first=0)
    caplog.set_level(logging.INFO)
    requests, problems = find(tmp_path, "v1 1 5 0\nv1 6 10 0\n")
    assert [(request.first, request.stop) for request in requests] == [(0, 5), (5, 10)]
    assert problems == []
    assert "1 folders: frame numbers of the ledger -1 = numbers of the files" in caplog.text


def test_fault_06_both_sides_are_counted(tmp_path: Path) -> None:
    for name in ("v1", "extra1", "extra2"):
        make_frame_folder(tmp_path / "train" / name, 2)
    assert find_all(tmp_path, "v1 1 2\nabsent 1 2\n").notes == [
        "1 folders of the ledger are not on disk or hold no frames: absent",
        "2 frame folders on disk are not in the ledger: train/extra1, train/extra2",
    ]


def test_fault_07_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    outside = make_frame_folder(tmp_path / "outside", 2)
    make_frame_folder(tmp_path / "root" / "train" / "v1", 2)
    (tmp_path / "root" / "train" / "link").symlink_to(outside)
    requests, (problem,) = find(tmp_path / "root", "v1 1 2 0\nlink 1 2 0\n")
    assert [request.name for request in requests] == ["v1"]
    assert (problem.reason, problem.line) == ("unsafe_name", 2)


def test_frame_rows_are_cut_evenly_and_timed(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "train" / "v1", 26)
    requests, _ = find(tmp_path, "v1 2 26 0\n", segment_frames=10, source_fps=5.0)
    assert [(request.first, request.stop) for request in requests] == [(2, 10), (10, 18), (18, 27)]
    assert [request.start_s for request in requests] == pytest.approx([0.2, 1.8, 3.4])
    requests, _ = find(tmp_path, "v1 1 26 0\n", segment_seconds=2.0, source_fps=5.0)
    assert max(request.stop - request.first for request in requests) <= 10
    # Segments are counted in stored frames: at half the rate a piece spans twice as many files.
    requests, _ = find(tmp_path, "v1 1 26 0\n", segment_frames=10, source_fps=10.0, fps=5.0)
    assert [(request.first, request.stop) for request in requests] == [(1, 14), (14, 27)]


def test_rates_of_frame_folders_must_be_given(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v1", 2)
    with pytest.raises(ValueError, match="--source-fps"):
        find(tmp_path, "v1 1 2 0\n", fps=10.0)
    with pytest.raises(ValueError, match="no such file or folder; --frames"):
        frame_folders([tmp_path / "nowhere"], tmp_path / "ledger.csv", settings=Settings())


