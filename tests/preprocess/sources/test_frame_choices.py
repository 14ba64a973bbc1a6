"""What is taken of a tree of frames, and what is said about the rest: prefixes, flow, masks, strides, strays, links."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.frame_folders import frame_folders
from preprocess.sources.source import Reading
from tests.support.media import frame_number, make_frame_folder, numbered_image


def find(root: Path, *, ledger: str = "", settings: Settings | None = None, **reading: bool) -> ScanResult:
    if ledger:
        (root / "ledger.csv").write_text(ledger)
    return frame_folders([root], settings=settings or Settings(), reading=Reading(**reading)).find()  # type: ignore[arg-type]


def touch(root: Path, names: list[str]) -> Path:
    """Makes empty files; a name that ends with #N stands for N numbered ones: `a/img_#3.jpg`."""
    for name in names:
        before, mark, rest = name.partition("#")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        files = [f"{before}{i:04d}{rest[len(digits) :]}" for i in range(1, int(digits) + 1)] if mark else [name]
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
    return root


def taken(found: ScanResult) -> list[tuple[str, str, int]]:
    return [(one.name, one.prefix, one.stop - one.first) for one in found.requests]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["ca/v1_#4.jpg", "ca/v2_#5.jpg"], [("ca/v1", "v1_", 4), ("ca/v2", "v2_", 5)]),
        (["c/v1 #3.jpg", "c/v2 #3.jpg"], [("c/v1", "v1 ", 3), ("c/v2", "v2 ", 3)]),
        (["v1-#3.png", "v2-#3.png"], [("v1", "v1-", 3), ("v2", "v2-", 3)]),
        (["c/0001_#3.jpg", "c/0002_#3.jpg"], [("c/0001", "0001_", 3), ("c/0002", "0002_", 3)]),
        (["a/v1_#3.jpg", "a/v2_#3.jpg", "b/v3_#3.jpg"], [("a/v1", "v1_", 3), ("a/v2", "v2_", 3), ("b/v3", "v3_", 3)]),
        (["a/v1_#3.jpg", "a/v2_#3.jpg", "b/img_#3.jpg"], [("a/v1", "v1_", 3), ("a/v2", "v2_", 3), ("b", "img_", 3)]),
        (["c/v1_#3.jpg", "c/v1-#4.jpg"], [("c/v1-", "v1-", 4), ("c/v1_", "v1_", 3)]),
        (["c/v1_#3.jpg", "c/v2_#3.jpg", "c/v1/#2.jpg"], [("c/v1_", "v1_", 3), ("c/v2", "v2_", 3), ("c/v1", "", 2)]),
        (["c/#3.jpg", "c/v1_#4.jpg"], [("c", "", 3), ("c/v1", "v1_", 4)]),
        (["c/x_#3.jpg", "c/y_#3.jpg", "c/z_#3.jpg", "c/w_#3.jpg"], [(f"c/{p}", f"{p}_", 3) for p in "wxyz"]),
        (["c/v1_#3.webp", "c/v2_#3.BMP"], [("c/v1", "v1_", 3), ("c/v2", "v2_", 3)]),
    ],
)
def test_fault_46_every_prefix_is_a_video(
    tmp_path: Path, files: list[str], expected: list[tuple[str, str, int]]
) -> None:
    found = find(touch(tmp_path, files))
    assert sorted(taken(found)) == sorted(expected)
    assert found.problems == []
    assert any("hold frames of" in note for note in found.notes)
    if all("/" in name for name, _, _ in expected):  # labelled by the folder that holds the videos
        assert {one.labels for one in found.requests} == {(one.name.split("/")[0],) for one in found.requests}


@pytest.mark.parametrize(
    ("files", "kept", "words"),
    [
        (["c/v/img_#3.jpg", "c/v/x_#3.jpg", "c/v/y_#3.jpg"], "img_", "optical flow left out by name: 6 files"),
        (["c/v/img_#3.jpg", "c/v/flow_x_#9.jpg", "c/v/flow_y_#9.jpg"], "img_", "optical flow left out by name: 18"),
        (["c/v/image_#3.jpg", "c/v/flow_i_#3.jpg"], "image_", "optical flow left out by name: 3 files"),
        (["c/v/flow_i_#3.jpg", "c/v/flow_x_#3.jpg", "c/v/flow_y_#3.jpg"], "flow_i_", "optical flow left out"),
        (["c/v/#3.jpg", "c/v/u_#3.jpg", "c/v/v_#3.jpg"], "", "optical flow left out by name: 6 files"),
        (["c/v/clip#3.jpg", "c/v/x_#3.jpg", "c/v/y_#3.jpg"], "clip", "optical flow left out by name: 6 files"),
        (["c/v/a_#3.jpg", "c/v/a_x_#3.jpg", "c/v/a_y_#3.jpg"], "a_", "optical flow left out by name: 6 files"),
        (["c/v/#3.jpg", "c/v/mask/#3.png"], "", "or the like left out by name: 1 folders: c/v/mask"),
        (["c/v/img_#3.jpg", "c/v/img_mask_#4.png"], "img_", "masks, depth, thumbnails or the like left out by name: 4"),
        (
            ["c/v/frame_#3.jpg", "c/v/depth_#4.png"],
            "frame_",
            "masks, depth, thumbnails or the like left out by name: 4",
        ),
        (["c/v/frame_#3.jpg", "c/v/thumb_#1.jpg"], "frame_", "thumbnails or the like left out by name: 1 files"),
        (["c/v/frame_#3.jpg", "c/v/frame_#3.png"], "frame_", "numbers with other suffixes left out by name: 3 files"),
        (["c/v/frame_#3.jpg", "c/v/frame_4.jpg"], "frame_", "numbers of other widths left out by name: 1 files"),
        (["c/v/frame_#3.jpg", "c/v/frame_99999999999999999999.jpg"], "frame_", "1 other files of 1 frame folders"),
        (["c/v/frame_#3.jpg", "c/v/photo_7.jpg"], "frame_", "single pictures left out by name: 1 files"),
        (
            ["c/v/frame_#3.jpg", "c/v/frame_#2.heic"],
            "frame_",
            "pictures of a kind that is not read left out by name: 2",
        ),
        (
            ["c/v/frame_#3.jpg", "c/v/a.txt", "c/v/b.mp4"],
            "frame_",
            "2 other files of 1 frame folders are not read, 1 .mp4",
        ),
        (["c/v/#3.jpg", "c/v/flow_x/#3.jpg", "c/v/flow_y/#3.jpg"], "", "optical flow left out by name: 2 folders"),
        (["c/v/img/#3.jpg", "c/v/u/#3.jpg", "c/v/v/#3.jpg"], "", "optical flow left out by name: 2 folders"),
        (
            ["jpegs_256/v/#3.jpg", "tvl1_flow/u/v/#3.jpg", "tvl1_flow/v/v/#3.jpg"],
            "",
            "optical flow left out by name: 2",
        ),
        (["rgb/v/#3.jpg", "flow/v/#3.jpg"], "", "optical flow left out by name: 1 folders: flow/v"),
        (["JPEGImages/v/#3.jpg", "Annotations/v/#3.png"], "", "or the like left out by name: 1 folders: Annotations/v"),
        (["c/v/#3.jpg", "c/notes.txt", "c/w/clip.mp4"], "", "2 files outside of frame folders are not read, 1 .mp4"),
    ],
)
def test_fault_46_what_is_left_out_beside_frames_is_told(
    tmp_path: Path, files: list[str], kept: str, words: str
) -> None:
    found = find(touch(tmp_path, files))
    assert [(one.prefix, one.suffix, one.stop - one.first) for one in found.requests] == [(kept, ".jpg", 3)]
    assert found.problems == []
    assert words in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["c/v/x_#3.jpg", "c/v/y_#3.jpg"], "nothing but optical flow (x_, y_)"),
        (["c/v/flow_x_#3.jpg", "c/v/flow_y_#3.jpg"], "nothing but optical flow (flow_x_, flow_y_)"),
        (["c/v/flow_x/#3.jpg", "c/v/flow_y/#3.jpg"], "optical flow by its name, and nothing else"),
        (["c/v/a_1.jpg", "c/v/b_7.jpg"], "no two of its 2 numbered pictures share the name"),
        (["c/v/img_#3.heic"], "pictures of a kind that is not read"),
        (["c/v/#3", "c/v/a.mp4"], "no numbered pictures below; other files: 3 without a suffix, 1 .mp4"),
    ],
)
def test_fault_46_a_folder_without_a_clear_choice_is_refused(tmp_path: Path, files: list[str], words: str) -> None:
    found = find(touch(tmp_path, files))
    assert found.requests == []
    assert {problem.reason for problem in found.problems} == {"no_frames"}
    assert words in found.problems[0].message


def test_masks_beside_nothing_but_flow_are_told_too(tmp_path: Path) -> None:
    found = find(touch(tmp_path, ["c/v/x_#3.jpg", "c/v/y_#3.jpg", "c/v/z_mask_#3.png"]))
    assert "nothing but optical flow (x_, y_)" in found.problems[0].message
    assert "or the like left out by name: 3 files" in "\n".join(found.notes)


@pytest.mark.parametrize(
    "names",
    [("x", "y"), ("u", "v"), ("mask", "face", "depth"), ("a", "flow"), ("x", "y", "z"), ("img", "dog", "u", "v")],
)
def test_classes_may_be_called_as_flow_and_masks_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = find(touch(tmp_path, [f"{name}/1/img_#3.jpg" for name in names]))
    assert {one.labels for one in found.requests} == {(name,) for name in names}


@pytest.mark.parametrize("names", [("cam1_rgb_", "cam2_rgb_"), ("Cam1_rgb_", "Cam2_rgb_"), ("Cam1_", "Cam2_")])
def test_flow_belongs_to_the_pictures_of_its_name_among_several(tmp_path: Path, names: tuple[str, str]) -> None:
    first = names[0].partition("_")[0]
    found = find(touch(tmp_path, [f"c/{prefix}#3.jpg" for prefix in (*names, f"{first}_x_", f"{first}_y_")]))
    assert [one.prefix for one in found.requests] == list(names)
    assert "optical flow left out by name: 6 files of 1 folders" in "\n".join(found.notes)


def test_what_is_left_out_is_counted_in_the_folders_that_hold_it(tmp_path: Path) -> None:
    found = find(touch(tmp_path, ["a/v/#3.jpg", "a/v/notes.txt", "b/w/#3.jpg"]))
    assert "1 other files of 1 frame folders are not read" in "\n".join(found.notes)


def test_one_prefix_of_flow_is_taken_with_a_warning(tmp_path: Path) -> None:
    found = find(touch(tmp_path, ["c/v/flow_x_#3.jpg"]))
    assert taken(found) == [("c/v", "flow_x_", 3)]
    assert "warning: 1 folders hold only what is named like optical flow, and are taken: c/v" in found.notes


def test_fault_46_a_ledger_names_the_videos_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, ["ca/v1_#4.jpg", "ca/v2_#5.jpg", "ca/v3_#5.jpg", "w1_#3.jpg", "w2_#3.jpg", "train/t1_#3.jpg"])
    rows = ["ca/v1 1 4 a", "ca/v2_ 2 5 b", "w1 1 3 c", "t1 1 3 d", "ca 1 4 e", "ca/v9 1 4 f"]
    found = find(tmp_path, ledger="\n".join(rows))
    assert [(one.name, one.path, one.prefix, one.first, one.stop) for one in found.requests] == [
        ("ca/v1", "ca", "v1_", 1, 5),
        ("ca/v2_", "ca", "v2_", 2, 6),
        ("w1", "", "w1_", 1, 4),
        ("t1", "train", "t1_", 1, 4),
    ]
    assert [(one.name, one.reason) for one in found.problems] == [("ca", "several_videos"), ("ca/v9", "missing_folder")]
    assert "holds 3 videos, of which rows name one: ca/v1, ca/v2, ca/v3" in found.problems[0].message
    assert "2 frame folders on disk are not in the ledger: ca/v3, w2" in found.notes


@pytest.mark.parametrize(("name", "prefix"), [("s1", "s1_rgb_"), ("s1_rgb", "s1_rgb_"), ("s2", "s2-"), ("s3", "")])
def test_a_ledger_names_a_prefix_in_several_ways(tmp_path: Path, name: str, prefix: str) -> None:
    touch(tmp_path, ["s1_rgb_#3.png", "s1_depth_#3.png", "s2-#3.png", "s3_rgb_#3.png", "s3_img_#3.png"])
    found = find(tmp_path, ledger=f"{name} 1 3 0\n")
    assert [one.prefix for one in found.requests] == ([prefix] if prefix else [])  # s3 could be either


def test_videos_of_one_folder_are_built_and_added(tmp_path: Path) -> None:
    for prefix, count in (("v1_", 3), ("v2_", 3)):
        make_frame_folder(tmp_path / "in" / "ca", count, template=f"{prefix}{{:04d}}.jpg")
    run = ["build", "--frames", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(run) == 0
    make_frame_folder(tmp_path / "in" / "ca", 3, template="v3_{:04d}.jpg")
    for number in range(5):
        numbered_image(number).save(tmp_path / "in" / "ca" / f"v4_{10 * number:04d}.jpg")
    assert main([*run, "--append"]) == 0
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(4)] == ["ca/v1", "ca/v2", "ca/v3", "ca/v4"]
    assert dataset.num_frames.tolist() == [3, 3, 3, 5]
    assert main(["verify", str(tmp_path / "out"), "--decode", "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("numbers", "stride", "gaps"),
    [
        (range(0, 500, 25), 25, ()),
        (range(1, 60, 5), 5, ()),
        (range(7, 100, 2), 2, ()),
        ([0, 10, 20, 30, 50, 60], 10, (40,)),
        (range(10), 1, ()),
        ([1, 2, 3, 5, 6], 1, (4,)),
        ([1, 3], 1, (2,)),
    ],
)
def test_strided_numbers_are_found(tmp_path: Path, numbers: list[int], stride: int, gaps: tuple[int, ...]) -> None:
    touch(tmp_path, [f"c/v/f{number:06d}.jpg" for number in numbers])
    found = find(tmp_path, settings=Settings(source_fps=25.0))
    if gaps != ():
        assert ("--fill-gaps takes the frame before" in found.problems[0].message) == bool(gaps)
        found = find(tmp_path, settings=Settings(source_fps=25.0), fill_gaps=True)
    (request,) = found.requests
    assert (request.first, request.stop, request.stride) == (min(numbers), max(numbers) + 1, stride)
    assert (request.gaps, request.rate) == (gaps, 25.0 / stride)
    count = len(numbers) + len(gaps)
    assert request.length_s == pytest.approx(count * stride / 25.0)
    assert any(f"numbered in steps of {stride}" in note for note in found.notes) == (stride > 1)


@pytest.mark.parametrize("numbers", [[0, 25, 50, 75, 110], [0, 30, 60, 89, 119], [3, 10, 18, 25, 33]])
def test_uneven_steps_are_named_and_the_remedy_keeps_their_time(tmp_path: Path, numbers: list[int]) -> None:
    folder = tmp_path / "in" / "v"
    folder.mkdir(parents=True)
    for number in numbers:
        numbered_image(number).save(folder / f"f{number:03d}.png")
    step = int(np.median(np.diff(numbers)))
    message = find(tmp_path / "in").problems[0].message
    assert f"mostly in steps of {step}; --fill-gaps takes the frame before" in message
    assert f"--source-fps HZ --fps HZ/{step} stores" in message
    run = ["build", "--frames", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1", "--fill-gaps"]
    assert main([*run, "--source-fps", str(step), "--fps", "1"]) == 0  # as the message says
    dataset = open_dataset(tmp_path / "out")
    stored = dataset.spans(0, np.arange(int(dataset.num_frames[0])))
    tar = dataset.shard_path(0).read_bytes()
    pictures = [tar[at : at + size] for at, size in zip(stored.offset.tolist(), stored.size.tolist(), strict=True)]
    shown = [frame_number(Image.open(io.BytesIO(data))) for data in pictures]
    grid = range(numbers[0], numbers[-1] + 1, step)
    assert shown == [max(number for number in numbers if number <= at) for at in grid]
    assert dataset.fps[0] == 1.0


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4, 500], [3, 70, 72, 500], [1, 900]])
def test_numbers_without_a_step_are_not_filled(tmp_path: Path, numbers: list[int]) -> None:
    touch(tmp_path, [f"v/f{number:06d}.jpg" for number in numbers])
    (problem,) = find(tmp_path, fill_gaps=True).problems
    assert "--fill-gaps" not in problem.message
    assert "steps" not in problem.message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0 475", (0, 476)),
        ("0 499", (0, 476)),  # the last frame of the source
        ("26 101", (50, 101)),
        ("0 19", "are 1 files by their numbers, or all 20 by their positions"),
        ("1 20", "are 0 files by their numbers, or all 20 by their positions"),
        ("3 9", "no frame has such a number"),
        ("0 500", "frame_000500.jpg is missing"),
    ],
)
def test_a_ledger_names_strided_frames_by_their_numbers(
    tmp_path: Path, row: str, expected: tuple[int, int] | str
) -> None:
    touch(tmp_path, [f"v/frame_{25 * i:06d}.jpg" for i in range(20)])
    found = find(tmp_path, ledger=f"v {row} 0\n")
    if isinstance(expected, str):
        assert expected in found.problems[0].message
        return
    assert [(one.first, one.stop, one.stride) for one in found.requests] == [(*expected, 25)]


def test_strided_frames_are_stored_with_their_time(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "c" / "v"
    folder.mkdir(parents=True)
    for i in range(12):
        if i != 4:
            numbered_image(i).save(folder / f"f{5 * i:03d}.jpg")
    run = ["build", "--frames", str(tmp_path / "in"), "--source-fps", "30", "--fill-gaps", "--workers", "1", "--out"]
    assert main([*run, str(tmp_path / "all"), "--segment-frames", "6"]) == 0
    dataset = open_dataset(tmp_path / "all")
    assert (dataset.num_frames.tolist(), dataset.fps.tolist()) == ([6, 6], [6.0, 6.0])
    assert dataset.start_s.tolist() == [0.0, 1.0]
    assert main([*run, str(tmp_path / "half"), "--fps", "3"]) == 0
    dataset = open_dataset(tmp_path / "half")
    assert (dataset.num_frames.tolist(), dataset.fps.tolist()) == ([6], [3.0])
    spans = dataset.spans(0, np.arange(6))
    assert len(spans.offset) == 6


@pytest.mark.parametrize("ledger", ["", "v 1 3 0\nw 1 3 0\n"])
def test_dense_folders_have_a_plan_without_strides(tmp_path: Path, ledger: str) -> None:
    import pyarrow.parquet as pq

    from preprocess.plan.plan import PLAN_SCHEMA

    for name in "vw":
        make_frame_folder(tmp_path / "in" / name, 3)
    if ledger:
        (tmp_path / "in" / "ledger.csv").write_text(ledger)
    assert main(["build", "--frames", str(tmp_path / "in"), "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    assert pq.read_schema(tmp_path / "out" / "plan.parquet").remove_metadata() == PLAN_SCHEMA
