import logging
from pathlib import Path

import numpy as np
import pytest

from preprocess.plan import Found, Request, Settings
from preprocess.problems import Problem
from preprocess.sources import Source, frame_folders, long_samples, video_files
from tests.media import make_frame_folder, make_video


def find(root: Path, ledger: str, **settings: float) -> tuple[list[Request], list[Problem]]:
    found = find_all(root, ledger, **settings)
    return found.requests, found.problems


def find_all(root: Path, ledger: str, **settings: float) -> Found:
    (root / "ledger.csv").write_text(ledger)
    return frame_folders(root, root / "ledger.csv", settings=Settings(**settings)).find()  # type: ignore[arg-type]


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
    assert f"taken from {tmp_path / below}" in caplog.text


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
        "2 frame folders on disk are not in the ledger: extra1, extra2",
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
    with pytest.raises(ValueError, match="no such folder"):
        frame_folders(tmp_path / "nowhere", tmp_path / "ledger.csv", settings=Settings())


def names(source: Source) -> list[str]:
    return [request.name for request in source.find().requests]


def test_folders_of_videos_are_walked_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.mp4", "a/z.avi", "a/B.MP4", ".hidden.mp4", ".cache/c.mp4"):
        make_video(tmp_path / name, 3)
    (tmp_path / "notes.txt").touch()
    caplog.set_level(logging.INFO)
    assert names(video_files([tmp_path], settings=Settings())) == ["a/B.MP4", "a/z.avi", "b.mp4"]
    assert "3 videos, 2 other files" in caplog.text


@pytest.mark.parametrize("row", ["{} 3", "{},3", "{}, 3", '"{}",3', "{}\t3", "{}"])
@pytest.mark.parametrize("name", ["clip.mp4", "my clip.mp4"])
def test_every_kind_of_list_row_is_read(tmp_path: Path, row: str, name: str) -> None:
    make_video(tmp_path / name, 3)
    (tmp_path / "list.csv").write_text(row.format(name) + "\n")
    found = video_files([tmp_path / "list.csv"], settings=Settings()).find()
    (request,) = found.requests
    assert found.problems == []
    assert (request.path, request.labels, request.line) == (name, () if row == "{}" else ("3",), 1)


def test_lists_may_have_a_header_and_absolute_paths_and_bad_rows(tmp_path: Path) -> None:
    video = make_video(tmp_path / "elsewhere" / "a.mp4", 3)
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    rows = ["path,label", f"{video},cat", "junk.mp4,dog", "absent.mp4,dog", f"{video},cat"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    found = video_files([tmp_path / "list.csv"], settings=Settings()).find()
    assert [request.labels for request in found.requests] == [("cat",)]
    assert [(problem.line, problem.reason) for problem in sorted(found.problems, key=lambda one: one.line)] == [
        (3, "unreadable"),
        (4, "missing_file"),
        (5, "duplicate_row"),
    ]


def test_several_sources_keep_their_roots(tmp_path: Path) -> None:
    make_video(tmp_path / "one" / "a.mp4", 3)
    single = make_video(tmp_path / "two" / "b.mp4", 3)
    source = video_files([tmp_path / "one", single], settings=Settings())
    requests = source.find().requests
    for request in requests:
        with source.roots[request.root].local([request.path]) as (file,):
            assert file.is_file()
    with pytest.raises(ValueError, match="no such file or folder"):
        video_files([tmp_path / "three"], settings=Settings())


def test_identity_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        make_video(tmp_path / place / "clips" / "a.mp4", 3)
        (tmp_path / place / "list.csv").write_text("clips/a.mp4 1\n")
    given = [[tmp_path / place / "clips", tmp_path / place / "list.csv"] for place in ("here", "there")]
    here, there = (video_files(paths, settings=Settings()).identity for paths in given)
    assert here == there
    (tmp_path / "there" / "list.csv").write_text("clips/a.mp4 2\n")
    assert video_files(given[1], settings=Settings()).identity != here


def test_videos_are_cut_into_even_spans_without_gap_or_overlap(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 45, fps=10)
    for settings, pieces in ((Settings(segment_seconds=2), 3), (Settings(segment_frames=12), 4), (Settings(), 1)):
        requests = video_files([video], settings=settings).find().requests
        assert len(requests) == pieces
        assert requests[0].start_s == 0
        assert requests[-1].stop_s == float("inf")
        assert [one.stop_s for one in requests[:-1]] == [one.start_s for one in requests[1:]]


def test_long_samples_get_the_cut_to_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seconds, frames = np.array([59.0, 61.0, 0.0, 0.0]), np.array([1800, 10, 1801, 1])
    (line,) = long_samples(seconds, frames)
    assert "2 samples are longer than 60 s or 1,800 frames; cut them with --segment-seconds 10" in line
    (line,) = long_samples(0 * seconds, frames)
    assert line.endswith("1 samples are longer than 60 s or 1,800 frames; cut them with --segment-frames 300")
    assert long_samples(seconds[:1], frames[:1]) == []
    # Said before the work starts, from what the headers announce.
    video = make_video(tmp_path / "a.mp4", 7, times=[10.0 * i for i in range(7)])
    video_files([video], settings=Settings()).find()
    assert "--segment-seconds 10" in caplog.text
    caplog.clear()
    video_files([video], settings=Settings(segment_seconds=10)).find()
    assert caplog.text == ""
