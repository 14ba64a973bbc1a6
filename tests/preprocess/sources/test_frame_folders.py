import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae3d.io.storage import Storage
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.frame_folders import frame_folders
from preprocess.sources.list_records import LedgerError
from preprocess.sources.roots import Scratch
from preprocess.sources.source import Reading
from tests.support.media import frame_number, make_frame_folder


def find(root: Path, ledger: str, **settings: float) -> tuple[list[Request], list[Problem]]:
    found = find_all(root, ledger, **settings)
    return found.requests, found.problems


def find_all(root: Path, ledger: str, **settings: float) -> ScanResult:
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
    _, problems = find(tmp_path, "absent 1 2 0\nv1 one 2 0\nv1 1 17 0\n")
    assert [problem.line for problem in problems] == [1, 2, 3]  # of whichever kind they are


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


@pytest.mark.parametrize("ledger", ["v1 1 2 0\nv2 1 2 0\n", None])
def test_fault_07_a_frame_that_is_a_link_out_of_the_root_costs_its_folder(tmp_path: Path, ledger: str | None) -> None:
    root, secret = tmp_path / "root", make_frame_folder(tmp_path / "secret", 1) / "img_00001.jpg"
    for name in ("v1", "v2"):
        make_frame_folder(root / "a" / name, 2)
    (root / "a" / "v1" / "img_00003.jpg").symlink_to("../v2/img_00001.jpg")  # within: fine
    (root / "a" / "v2" / "README").symlink_to(secret)  # no frame
    (root / "a" / "v2" / "img_00002.jpg").unlink()
    (root / "a" / "v2" / "img_00002.jpg").symlink_to(secret)
    given = [root / "a"]
    if ledger is not None:
        (root / "a" / "ledger.csv").write_text(ledger)
    found = frame_folders(given, settings=Settings()).find()
    assert [request.name for request in found.requests] == ["v1"]
    (problem,) = found.problems
    assert (problem.name, problem.reason) == ("v2", "unsafe_name")
    assert problem.message == "img_00002.jpg is a link that leaves the root (--allow-outside permits it)"
    found = frame_folders(given, settings=Settings(), reading=Reading(allow_outside=True)).find()
    assert [request.name for request in found.requests] == ["v1", "v2"]


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


def test_columns_without_a_ledger_are_told(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v1", 2)
    with pytest.raises(LedgerError, match=r"--columns.*there is none: give it with --ledger"):
        frame_folders([tmp_path], settings=Settings(), reading=Reading(columns=("path=1",)))


def test_fault_05_gaps_are_filled_if_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_frame_folder(tmp_path / "train" / "v", 9)
    for number in (4, 5, 8):
        (tmp_path / "train" / "v" / f"img_{number:05d}.jpg").unlink()
    (tmp_path / "ledger.csv").write_text("v 1 9 0\nv 0 9 0\nv 1 10 0\n")
    found = frame_folders([tmp_path], settings=Settings(), reading=Reading(fill_gaps=True)).find()
    assert [(one.first, one.stop, one.gaps) for one in found.requests] == [(1, 10, (4, 5, 8))]
    assert [(problem.line, problem.reason) for problem in found.problems] == [
        (2, "missing_frame"),
        (3, "missing_frame"),
    ]
    (tmp_path / "ledger.csv").write_text("v 1 9 0\n")
    run = ["build", "--frames", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(run) == 2
    assert "--fill-gaps takes the frame before" in capsys.readouterr().err
    assert main([*run, "--fill-gaps"]) == 0
    assert "3 missing frames of 1 samples are the ones before them" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out")
    spans = dataset.spans(0, np.arange(9))
    tar = dataset.shard_path(0).read_bytes()
    pictures = [tar[at : at + size] for at, size in zip(spans.offset.tolist(), spans.size.tolist(), strict=True)]
    assert [frame_number(Image.open(io.BytesIO(data))) for data in pictures] == [0, 1, 2, 2, 2, 5, 6, 6, 8]
    assert dataset.meta["totals"]["remarks"] == {"filled_gaps": 1}
    assert main(["verify", str(tmp_path / "out"), "--full", "--decode", "--workers", "1"]) == 0


def test_names_are_looked_for_in_every_root(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "one" / "train" / "a", 3)
    make_frame_folder(tmp_path / "two" / "b", 3)
    make_frame_folder(tmp_path / "two" / "val" / "c", 3)
    for root in ("one", "two"):
        make_frame_folder(tmp_path / root / "both", 3)
    (tmp_path / "list.txt").write_text("".join(f"{name} 1 3 0\n" for name in ("a", "b", "c", "both", "none")))
    source = frame_folders([tmp_path / "one", tmp_path / "two"], tmp_path / "list.txt", settings=Settings())
    found = source.find()
    assert [(one.name, one.root, one.path) for one in found.requests] == [
        ("a", 0, "train/a"),
        ("b", 1, "b"),
        ("c", 1, "val/c"),
        ("both", 0, "both"),
    ]
    assert "warning: 1 names of the ledger are there more than once; the first is taken: both" in found.notes
    assert [problem.name for problem in found.problems] == ["none"]


def test_without_a_ledger_the_folders_are_classes_and_splits(tmp_path: Path) -> None:
    for name in ("train/cat/v1", "train/dog/v1", "val/cat/v2"):
        make_frame_folder(tmp_path / name, 4, first=3)
    make_frame_folder(tmp_path / "train" / "cat" / ".hidden", 4)
    found = frame_folders([tmp_path], settings=Settings()).find()
    assert [(one.name, one.labels, one.split, one.first, one.stop) for one in found.requests] == [
        ("train/cat/v1", ("cat",), "train", 3, 7),
        ("train/dog/v1", ("dog",), "train", 3, 7),
        ("val/cat/v2", ("cat",), "val", 3, 7),
    ]
    assert found.notes[0].startswith(f"no ledger: 3 frame folders of {tmp_path.name}; splits by folder: train, val")


def test_one_folder_of_frames_is_a_sample(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "take 1", 4)
    assert main(["build", "--frames", str(tmp_path / "take 1"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.name(0), dataset.num_frames.tolist(), dataset.labels_of(0)) == ("take 1", [4], [])


def test_fault_01_a_missing_ledger_ends_with_2_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_frame_folder(tmp_path / "v", 4)
    run = ["build", "--frames", str(tmp_path), "--out", str(tmp_path / "out"), "--ledger", str(tmp_path / "no.csv")]
    assert main(run) == 2
    assert f"{tmp_path / 'no.csv'}: no such file" in capsys.readouterr().err
    (tmp_path / "no.csv").write_bytes(b"")
    assert main(run) == 2
    assert "no.csv, line 1: the file is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../v", "/v", "link", "a/../../v"])
def test_fault_07_names_may_leave_the_root_only_if_allowed(tmp_path: Path, name: str) -> None:
    make_frame_folder(tmp_path / "v", 3)
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "v")
    name = name.replace("/v", f"{tmp_path}/v") if name == "/v" else name
    (tmp_path / "ledger.csv").write_text(f'"{name}",1,3,0\n')
    given = [tmp_path / "root"], tmp_path / "ledger.csv"
    (problem,) = frame_folders(*given, settings=Settings()).find().problems
    assert (problem.reason, problem.line) == ("unsafe_name", 1)
    assert "--allow-outside" in problem.message
    found = frame_folders(*given, settings=Settings(), reading=Reading(allow_outside=True)).find()
    assert (len(found.requests), found.problems) == (1, [])


def test_fault_08_odd_names_are_kept(tmp_path: Path) -> None:
    long = "/".join(("x" * 150, "y" * 149))
    names = ["two words", "naïve.v1.0", "日本", long]
    for name in names:
        make_frame_folder(tmp_path / "train" / name, 3)
    rows = "".join(f'"{name}" 1 3 "{label}"\n' for name, label in zip(names, "abcd", strict=True))
    (tmp_path / "ledger.csv").write_text(rows)
    assert main(["build", "--frames", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(4)] == names
    assert all(dataset.key(i).isascii() and dataset.key(i).isdigit() for i in range(4))


def test_frame_folders_behind_a_url(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "extra"):
        make_frame_folder(tmp_path / name, 3)
    (tmp_path / "ledger.csv").write_text("a 0 2 x\nb 1 3 y\nnone 1 3 y\ntrain 1 3 y\n")
    storage = Storage("memory://frames/in")
    for path in sorted(tmp_path.rglob("*.*")):
        storage.put(path, path.relative_to(tmp_path).as_posix())
    out, local = tmp_path / "out", tmp_path / "local"
    tail = ["--workers", "1", "--max-bad-fraction", "1", "--out"]
    assert main(["build", "--frames", storage.url, "--scratch", str(tmp_path), *tail, str(out)]) == 0
    assert main(["build", "--frames", str(tmp_path), "--ledger", f"{storage.url}/ledger.csv", *tail, str(local)]) == 0
    for name in ("shard-00000.tar", "rejected.parquet"):
        assert (out / name).read_bytes() == (local / name).read_bytes()
    assert open_dataset(out).meta["totals"]["rejected"] == {"missing_folder": 1, "no_frames": 1}
    notes = frame_folders([storage.url], settings=Settings(), scratch=Scratch(tmp_path, 1 << 20)).find().notes
    assert "1 frame folders on disk are not in the ledger: extra" in notes


@pytest.mark.parametrize("first", [0, 1, 100])
@pytest.mark.parametrize("labels", [("3", "0", "7"), ("2 5", "1", "0"), ("30", "40", "50"), ("-1", "2", "1")])
def test_fault_45_raw_frames_of_mmaction2_are_read_by_their_totals(
    tmp_path: Path, first: int, labels: tuple[str, ...]
) -> None:
    totals = (5, 8, 6)
    for number, total in enumerate(totals):
        make_frame_folder(tmp_path / "some" / f"v{number}", total, first=first, template="img_{:05d}.jpg")
    rows = [f"some/v{i} {total} {label}\n" for i, (total, label) in enumerate(zip(totals, labels, strict=True))]
    found = find_all(tmp_path, "".join(rows))
    assert found.problems == []
    assert [(one.first, one.stop) for one in found.requests] == [(first, first + total) for total in totals]
    assert [one.labels for one in found.requests] == [tuple(label.split()) for label in labels]
    assert any("name total_frames label" in note for note in found.notes)


def test_totals_that_are_not_all_of_a_folder_are_told(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v", 5)
    found = find_all(tmp_path, "name,total_frames\nv,3\nv,6\nv,5\nv,0\n")
    assert [(one.first, one.stop) for one in found.requests] == [(1, 4), (1, 6)]
    assert [(one.line, one.reason) for one in found.problems] == [(3, "missing_frame"), (5, "bad_row")]
    assert "6 frames asked for, there are 5 frames" in found.problems[0].message
    assert "1 rows ask for fewer frames than their folders hold: the first ones are taken" in found.notes


def test_rows_that_fit_in_no_reading_are_told_of_the_other_one(tmp_path: Path) -> None:
    for where in ("v", "train/v"):
        make_frame_folder(tmp_path / where, 5)
    found = find_all(tmp_path, "v 4 9 1\n")
    assert [one.reason for one in found.problems] == ["missing_frame"]
    notes = "\n".join(found.notes)
    assert "if its rows are `name total_frames label`: --columns path=1 total_frames=2 label=3,4" in notes
    assert "1 names of the ledger are there more than once" in notes


def test_a_name_that_is_a_file_is_no_folder(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v", 3)
    _, (problem,) = find(tmp_path, "v 1 3 0\nledger.csv 1 3 0\n")
    assert (problem.name, problem.reason) == ("ledger.csv", "missing_folder")


def test_a_link_out_of_the_root_costs_its_own_video_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for prefix, count in (("v1", 3), ("v2", 2)):
        make_frame_folder(root / "c", count, template=f"{prefix}_{{:05d}}.jpg")
    (root / "c" / "v2_00003.jpg").symlink_to(make_frame_folder(tmp_path / "elsewhere", 1) / "img_00001.jpg")
    found = frame_folders([root], settings=Settings()).find()
    assert [one.name for one in found.requests] == ["c/v1"]
    assert [(one.name, one.reason) for one in found.problems] == [("c/v2", "unsafe_name")]


def test_a_folder_with_frames_comes_before_one_without(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    make_frame_folder(tmp_path / "train" / "v", 3)
    found = find_all(tmp_path, "v 1 3 0\n")
    assert [(one.path, one.stop) for one in found.requests] == [("train/v", 4)]
    assert "more than once" not in "\n".join(found.notes)


@pytest.mark.parametrize(
    "rows", ["v0 5 5\nv1 8 8\n", "v0 1 5 0\nv1 1 8 3\n", "v0 5 5 3\nv1 8 8 1\n", "v0 5 3\nv1 7 0\n"]
)
def test_rows_that_can_be_read_as_first_and_last_are(tmp_path: Path, rows: str) -> None:
    for number, total in enumerate((5, 8)):
        make_frame_folder(tmp_path / f"v{number}", total)
    assert not any("is read as `name total_frames" in note for note in find_all(tmp_path, rows).notes)
