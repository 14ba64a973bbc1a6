import logging
from pathlib import Path

import numpy as np
import pytest

from preprocess.footage import video_files
from preprocess.plan import Settings
from preprocess.sources import Source, long_samples
from tests.media import make_video


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
