import json
import logging
import math
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mae3d.io.storage import Storage
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import (
    PLAIN,
    SCRATCH,
    Reading,
    Source,
    given_label_names,
    long_samples,
    reading_identity,
    short_samples,
)
from preprocess.sources.videos import video_files
from preprocess.workers.decoder import decoder
from tests.preprocess.sources.test_tar_files import make_tar
from tests.support.fake_ffmpeg import with_fake_ffmpeg
from tests.support.media import make_video


def names(source: Source) -> list[str]:
    return [request.name for request in source.find().requests]


def test_folders_of_videos_are_walked_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.mp4", "a/z.avi", "a/B.MP4", ".hidden.mp4", ".cache/c.mp4"):
        make_video(tmp_path / name, 3)
    (tmp_path / "notes.txt").touch()
    caplog.set_level(logging.INFO)
    assert names(video_files([tmp_path], settings=Settings())) == ["a/B.MP4", "a/z.avi", "b.mp4"]
    assert "3 videos, 1 other files" in caplog.text


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


def test_long_samples_get_the_cut_to_use() -> None:
    seconds, frames = np.array([59.0, 61.0, 0.0, 0.0]), np.array([1800, 10, 1801, 1])
    (line,) = long_samples(seconds, frames)
    assert "2 samples are longer than 60 s or 1,800 frames; cut them with --segment-seconds 10" in line
    (line,) = long_samples(0 * seconds, frames)
    assert line.endswith("1 samples are longer than 60 s or 1,800 frames; cut them with --segment-frames 300")
    assert long_samples(seconds[:1], frames[:1]) == []


def test_fault_14_samples_shorter_than_a_clip_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (15, 16, 17, 3, 1):
        make_video(tmp_path / "in" / f"{count}.mp4", count)
    assert main(["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert (
        "2 samples have fewer than 16 frames: training loops, pads or drops them (--data.short)"
        in capsys.readouterr().out
    )
    assert short_samples(np.array([16, 1])) == []


def test_what_is_longer_than_a_minute_is_cut_unless_whole(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 13, times=[15.0 * i for i in range(13)])  # 180 s or a little more
    found = video_files([video], settings=Settings()).find()
    assert [round(one.length_s) for one in found.requests] == [round(one.length_s) for one in found.requests[:1]] * 4
    assert max(one.length_s for one in found.requests) <= 60
    assert "1 of 1 sources were cut, into 4 samples (--whole: none)" in found.notes
    (one,) = video_files([video], settings=Settings(whole=True)).find().requests
    assert (one.start_s, one.stop_s) == (0, float("inf"))
    with pytest.raises(ValueError, match="whole excludes"):
        Settings(whole=True, segment_seconds=3)


def test_a_list_may_name_spans_which_are_cut_in_turn(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 60, fps=10)
    (tmp_path / "list.csv").write_text("path,start,end,label\na.mp4,1,3,x\na.mp4,2,5.5,y\na.mp4,7,9,z\na.mp4,5,,w\n")
    found = video_files([tmp_path / "list.csv"], settings=Settings(segment_seconds=2)).find()
    spans = [(one.labels[0], round(one.start_s, 3), round(one.stop_s, 3)) for one in found.requests]
    assert spans == [("x", 1, 3), ("y", 2, 3.7), ("y", 3.7, 5.5), ("w", 5, float("inf"))]
    (problem,) = found.problems
    assert (problem.reason, problem.line) == ("no_frames", 4)


def test_fault_07_paths_that_leave_the_root_are_refused(tmp_path: Path) -> None:
    outside = make_video(tmp_path / "outside.mp4", 3)
    inside = make_video(tmp_path / "root" / "a.mp4", 3)
    (inside.parent / "link.mp4").symlink_to(outside)
    (inside.parent / "inner.mp4").symlink_to(inside)
    (inside.parent / "list.csv").write_text(f"../outside.mp4\n{outside}\na.mp4\n")
    found = video_files([inside.parent], settings=Settings()).find()
    assert [one.name for one in found.requests] == ["a.mp4", "inner.mp4"]
    assert [(one.name, one.reason) for one in found.problems] == [("link.mp4", "unsafe_name")]
    assert "--allow-outside" in found.problems[0].message
    found = video_files([inside.parent / "list.csv"], settings=Settings()).find()
    assert [one.name for one in found.requests] == [str(outside), "a.mp4"]  # absolute: the user's own list
    assert [(one.line, one.reason) for one in found.problems] == [(1, "unsafe_name")]
    allowed = Reading(allow_outside=True)
    assert len(video_files([inside.parent], settings=Settings(), reading=allowed).find().requests) == 3
    found = video_files([inside.parent / "list.csv"], settings=Settings(), reading=allowed).find()
    assert (len(found.requests), found.problems) == (3, [])


def test_paths_of_a_list_may_begin_elsewhere(tmp_path: Path) -> None:
    make_video(tmp_path / "media" / "x" / "a.mp4", 3)
    (tmp_path / "list.txt").write_text("x/a.mp4 3\n")
    reading = Reading(root=str(tmp_path / "media"))
    source = video_files([tmp_path / "list.txt"], settings=Settings(), reading=reading)
    assert names(source) == ["x/a.mp4"]
    assert source.identity != video_files([tmp_path / "list.txt"], settings=Settings()).identity


def test_kinetics_finds_its_files_and_goes_on_without_the_dead_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "videos"
    make_video(root / "train" / "drinking_beer" / "abc_000003_000005.mp4", 20)
    make_video(root / "train" / "other" / "abc_000003_000005.mp4", 20)
    make_video(root / "full.mkv", 80)  # 8 s: the whole video, of which 5 s to 7 s are meant
    make_video(root / "cut.mp4", 20)  # 2 s: cut out already
    rows = ["drinking beer,abc,3,5,train", "drinking beer,full,5,7,train", "x,cut,5,7,validate"]
    rows += [f"x,dead{i},0,10,train" for i in range(7)]
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    run = ["build", "--videos", str(tmp_path / "k.csv"), "--root", str(root), "--out", str(out), "--workers", "1"]
    assert main(run) == 0
    dataset = open_dataset(out)
    assert [dataset.name(i) for i in range(3)] == [
        "train/drinking_beer/abc_000003_000005.mp4",
        "full.mkv",
        "cut.mp4",
    ]
    assert dataset.num_frames.tolist() == [20, 20, 20]
    assert dataset.start_s[1] == pytest.approx(5)
    assert dataset.label_names == ["drinking beer", "x"]
    assert [dataset.split_names[code] for code in dataset.splits] == ["train", "train", "val"]
    assert "k.csv: 7 of 10 rows have no file below videos" in capsys.readouterr().out
    assert dataset.meta["totals"]["rejected"] == {"missing_file": 7}


def test_something_something_with_its_labels(tmp_path: Path) -> None:
    for name in ("7", "8"):
        make_video(tmp_path / "sub" / f"{name}.webm", 3, codec="libvpx")
    entries = [{"id": "8", "template": "Holding [something]"}, {"id": 7, "template": "Dropping [something]"}]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "0", "Dropping something": "1"}))
    reading = Reading(label_names=str(tmp_path / "labels.json"))
    found = video_files([tmp_path / "train.json"], settings=Settings(), reading=reading).find()
    assert [(one.name, one.labels) for one in found.requests] == [
        ("sub/8.webm", ("Holding something",)),
        ("sub/7.webm", ("Dropping something",)),
    ]
    assert found.label_names == LabelNames(("Holding something", "Dropping something"), numbers=(0, 1))


def test_the_names_of_labels_are_part_of_the_identity_with_their_numbers_and_codes(tmp_path: Path) -> None:
    """Numbers that are positions are not, so that a dataset of before they were read has the same."""
    given = (), ((0, 1),), ((1, 2),), ((0, 1), ("c0", "c1"))
    plain, positions, *others = (reading_identity(PLAIN, LabelNames(("a", "b"), *more)) for more in given)
    assert plain == positions
    assert len({str(one) for one in (plain, *others)}) == 3
    (tmp_path / "names.txt").write_text("a\nb\n")
    reading = Reading(label_names=str(tmp_path / "names.txt"), label_base="1")
    names = given_label_names(reading, scratch=SCRATCH)
    assert names == LabelNames(("a", "b"), base=1)


def test_names_that_two_sources_have_are_told(tmp_path: Path) -> None:
    for place in ("one", "two"):
        make_video(tmp_path / place / "a.mp4", 3)
    found = video_files([tmp_path / "one", tmp_path / "two"], settings=Settings()).find()
    assert [one.root for one in found.requests] == [0, 1]
    assert "warning: 1 names are in several sources, and all are taken: a.mp4" in found.notes


def test_label_names_that_are_fixed_reject_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog", "ant"):
        make_video(tmp_path / "in" / name / "1.mp4", 3)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    run = ["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*run, "--label-names", str(tmp_path / "names.txt"), "--max-bad-fraction", "1"]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert [(dataset.name(i), dataset.labels_of(i)) for i in range(2)] == [("cat/1.mp4", [1]), ("dog/1.mp4", [0])]
    assert dataset.meta["totals"]["rejected"] == {"unknown_label": 1}
    # A validation set agrees by the training set's dataset.json, and is warned of without it.
    val = [*run[:-3], str(tmp_path / "val"), "--workers", "1", "--split", "val"]
    assert main(val) == 0
    assert "ids of their own" in capsys.readouterr().out
    assert main([*val, "--overwrite", "--label-names", str(tmp_path / "out"), "--labels", "none"]) == 0
    assert open_dataset(tmp_path / "val").label_names == ["dog", "cat"]


@pytest.mark.parametrize("protocol", ["memory", "s3"])
def test_all_of_it_behind_urls(tmp_path: Path, protocol: str, request: pytest.FixtureRequest) -> None:
    """A tree, a tar, a list and rows that are URLs give the samples that they give on this machine."""
    if protocol == "s3":
        request.getfixturevalue("s3")
        fsspec.filesystem("s3").mkdirs("footage", exist_ok=True)
    local = tmp_path / "local"
    make_video(local / "tree" / "cat" / "1.mp4", 5)
    make_video(local / "tree" / "dog" / "2.mp4", 6)
    make_tar(local / "tree" / "cat" / "3.tar", {"x.mp4": make_video(tmp_path / "x.mp4", 7).read_bytes()})
    storage = Storage(f"{protocol}://footage/in")
    (local / "list.csv").write_text(f"path,label\ntree/dog/2.mp4,a\n{storage.url}/tree/cat/1.mp4,b\nabsent.mp4,c\n")
    for path in sorted(local.rglob("*.*")):
        storage.put(path, path.relative_to(local).as_posix())
    given = [f"{storage.url}/tree", f"{storage.url}/list.csv"]
    out = tmp_path / "out"
    run = ["build", "--videos", *given, "--out", str(out), "--workers", "1", "--max-bad-fraction", "1"]
    assert main([*run, "--scratch", str(tmp_path / "scratch")]) == 0
    dataset = open_dataset(out)
    assert [(dataset.name(i), int(dataset.num_frames[i])) for i in range(len(dataset))] == [
        ("cat/1.mp4", 5),
        ("dog/2.mp4", 6),
        ("cat/3.tar/x.mp4", 7),
        ("tree/dog/2.mp4", 6),
        (f"{storage.url}/tree/cat/1.mp4", 5),
    ]
    assert dataset.meta["totals"]["rejected"] == {"missing_file": 1}
    assert dataset.label_names == ["a", "b", "cat", "dog"]


def test_a_store_that_cannot_be_reached_ends_with_3_and_is_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "a.mp4", 5)
    storage = Storage("memory://vanishing/in")
    storage.put(video, "a.mp4")
    run = ["build", "--videos", storage.url, "--out", str(tmp_path / "out"), "--workers", "1"]
    with monkeypatch.context() as broken:
        broken.setattr("mae3d.io.storage.time.sleep", lambda seconds: None)
        broken.setattr(type(fsspec.filesystem("memory")), "get_file", _refuse)
        assert main(run) == 3
    assert "memory://vanishing/in/a.mp4" in capsys.readouterr().err
    assert main(run) == 0
    assert len(open_dataset(tmp_path / "out")) == 1


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError("refused")


@pytest.mark.slow
def test_fault_13_a_header_that_hangs_or_crashes_ffmpeg_costs_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fake_ffmpeg(tmp_path, monkeypatch)
    decoder().close()
    for name in ("a.mp4", "hangs_at_once.mp4", "segv_at_once.mp4", "z.mp4"):
        make_video(tmp_path / "in" / name, 4)
    found = video_files([tmp_path / "in"], settings=Settings(timeout_s=1)).find()
    assert [one.name for one in found.requests] == ["a.mp4", "z.mp4"]
    assert [(one.name, one.reason) for one in found.problems] == [
        ("hangs_at_once.mp4", "timeout"),
        ("segv_at_once.mp4", "crashed"),
    ]
    decoder().close()


def test_probing_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = make_video(tmp_path / "source.mp4", 3)
    (tmp_path / "in").mkdir()
    for i in range(130):
        (tmp_path / "in" / f"{i:03d}.mp4").hardlink_to(source)
    (tmp_path / "in" / "050x.mp4").write_bytes(b"broken")
    one = video_files([tmp_path / "in"], settings=Settings(), workers=1).find()
    before = psutil.Process().children()
    two = video_files([tmp_path / "in"], settings=Settings(), workers=2).find()
    assert psutil.Process().children() == before  # the threads' decoders have been waited for, too
    assert repr(one) == repr(two)
    assert (len(one.requests), [problem.name for problem in one.problems]) == (130, ["050x.mp4"])


def listed(tmp_path: Path, text: str, *names: str) -> ScanResult:
    """What a list of this text gives beside videos with these names."""
    source = make_video(tmp_path / "source.avi", 3)
    root = tmp_path / "in"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).hardlink_to(source)
    root.mkdir(exist_ok=True)
    (root / "list.csv").write_text(text, encoding="utf-8")
    return video_files([root / "list.csv"], settings=Settings()).find()


@pytest.mark.parametrize(
    ("row", "there"),
    [
        ("v1,0", "v1.mp4"),
        ("a/v1,0", "a/v1.mkv"),
        ("v1,0", "deep/down/v1.mp4"),
        (".\\a\\v1.mp4,0", "a/v1.mp4"),
        ("./a//v1.MP4,0", "a/v1.mp4"),
        ("K\u00fcche/v1.mp4,0", "Ku\u0308che/v1.mp4"),
        ("Ku\u0308che/v1,0", "K\u00fcche/v1.mp4"),
        ("archive.tar/v1.avi.mp4,0", "archive.tar/v1.avi.mp4"),
    ],
)
def test_fault_45_a_file_is_found_under_another_spelling_if_it_is_the_only_one(
    tmp_path: Path, row: str, there: str
) -> None:
    found = listed(tmp_path, row + "\n", there, "other/v2.mp4")
    assert [(one.path, one.labels) for one in found.requests] == [(there, ("0",))]


def test_a_file_of_the_very_name_comes_before_one_with_a_suffix(tmp_path: Path) -> None:
    assert [one.path for one in listed(tmp_path, "v1,0\n", "v1", "v1.mp4").requests] == ["v1"]


def test_a_video_of_the_very_folder_comes_before_one_below(tmp_path: Path) -> None:
    assert [one.path for one in listed(tmp_path, "v1,0\n", "v1.mp4", "deep/v1.mp4").requests] == ["v1.mp4"]


def test_files_under_another_spelling_are_counted(tmp_path: Path) -> None:
    found = listed(tmp_path, "V1.MP4,0\nv2.mp4,0\n", "v1.mp4", "v2.mp4")
    assert "list.csv: 1 files were found under another spelling of their path" in found.notes


def test_a_list_behind_a_url_names_no_file_of_this_machine(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", 3)
    (tmp_path / "list.csv").write_text(f"{video},0\n")
    storage = Storage(f"memory://absolute/{tmp_path.name}")
    storage.put(tmp_path / "list.csv", "list.csv")
    (problem,) = video_files([f"{storage.url}/list.csv"], settings=Settings()).find().problems
    assert (problem.reason, problem.message) == ("unsafe_name", "an absolute path in a list that is behind a URL")


def test_lists_and_archives_are_known_by_their_first_bytes_too(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 3)
    pq.write_table(pa.table({"path": ["v.mp4"]}), tmp_path / "list.table")
    assert len(video_files([tmp_path / "list.table"], settings=Settings()).find().requests) == 1
    (tmp_path / "videos.blob").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(LedgerError, match=r"videos\.blob: zip data; unpack it"):
        video_files([tmp_path / "videos.blob"], settings=Settings())


def test_a_video_that_cannot_be_opened_is_told_with_its_list_and_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    found = listed(tmp_path, "v1.mp4,0\nbroken.mp4,1\n", "v1.mp4")
    assert [(one.reason, one.line, one.file) for one in found.problems] == [("missing_file", 2, "list.csv")]
    (tmp_path / "in" / "broken.mp4").write_bytes(b"broken")
    (problem,) = video_files([tmp_path / "in" / "list.csv"], settings=Settings()).find().problems
    assert (problem.reason != "missing_file", problem.line, problem.file) == (True, 2, "list.csv")
    (tmp_path / "in" / "broken.mp4").unlink()
    (tmp_path / "in" / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "in" / "list.csv").write_text("gone,0\n")
    (problem,) = video_files([tmp_path / "in" / "list.csv"], settings=Settings(whole=True)).find().problems
    assert (problem.reason, problem.line) == ("missing_file", 1)


def test_labels_beside_videos_in_tars_are_read_or_told(tmp_path: Path) -> None:
    data = make_video(tmp_path / "v.mp4", 3).read_bytes()
    tar = make_tar(tmp_path / "a.tar", {"v.mp4": data, "v.cls": b"3", "v.json": b"{}"})
    for labels, expected in (("auto", ("3",)), ("none", ())):
        found = video_files([tar], settings=Settings(), reading=Reading(labels=labels)).find()  # type: ignore[arg-type]
        assert [one.labels for one in found.requests] == [expected]
        assert "a.tar: 1 other files are not read, 1 .json: a.tar/v.json" in found.notes


@pytest.mark.parametrize(("row", "names"), [("v1,0", ["v1.mp4", "v1.avi"]), ("V1.mp4,0", ["v1.mp4", "v1.MP4"])])
def test_fault_45_a_file_that_could_be_two_is_refused_with_both(tmp_path: Path, row: str, names: list[str]) -> None:
    found = listed(tmp_path, row + "\n", *names)
    (problem,) = found.problems
    assert problem.reason == "ambiguous_file"
    assert "have no file" not in "\n".join(found.notes)
    assert all(name in problem.message for name in names)


def test_folders_are_labels_of_a_list_only_if_that_is_said(tmp_path: Path) -> None:
    (one,) = listed(tmp_path, "a/v1.mp4\n", "a/v1.mp4").requests
    assert one.labels == ()
    reading = Reading(labels="folder")
    (one,) = video_files([tmp_path / "in" / "list.csv"], settings=Settings(), reading=reading).find().requests
    assert one.labels == ("a",)


@pytest.mark.parametrize("path", ["..\\\\secret.avi", "..\\\\..\\\\secret", "../secret"])
def test_fault_07_another_spelling_does_not_leave_the_root(tmp_path: Path, path: str) -> None:
    make_video(tmp_path / "secret.avi", 3)
    found = listed(tmp_path, f"{path},0\n".replace("\\\\", "\\"))
    assert found.requests == []
    assert {problem.reason for problem in found.problems} <= {"unsafe_name", "missing_file"}


@pytest.mark.parametrize(
    "row", ["gone.mp4,0", "/data/of/another/machine/gone.mp4,0", "C:\\videos\\gone.mp4,0", "gone,0"]
)
def test_a_file_that_is_missing_is_told_with_where_it_was_looked_for(tmp_path: Path, row: str) -> None:
    (problem,) = listed(tmp_path, row + "\n", "v1.mp4").problems
    assert problem.reason == "missing_file"
    root, path = tmp_path / "in", row.partition(",")[0]
    looked_for = {"gone.mp4": f"no file {root}/gone.mp4;", "gone": f"no gone with a video's suffix below {root};"}
    assert problem.message.startswith(looked_for.get(path, f"no file {path}; paths begin at {root};"))
    assert "--root" in problem.message


@pytest.mark.parametrize("name", [300 * "x", f"{300 * 'x'}.mp4", f"sub/{128 * 'é'}.mp4"])
def test_fault_03_a_name_that_no_file_can_have_costs_its_row_only(tmp_path: Path, name: str) -> None:
    found = listed(tmp_path, f"v1.mp4,0\n{name},1\n", "v1.mp4")
    assert [one.path for one in found.requests] == ["v1.mp4"]
    assert [(one.reason, one.line) for one in found.problems] == [("unsafe_name", 2)]


def test_frames_become_seconds_by_the_rate_of_the_video(tmp_path: Path) -> None:
    found = listed(tmp_path, "path,start_frame,end_frame\nv1.mp4,1,3\nv1.mp4,2,\n", "v1.mp4")
    assert [(round(one.start_s, 3), round(one.stop_s, 3)) for one in found.requests] == [(0.05, 0.25), (0.15, math.inf)]
