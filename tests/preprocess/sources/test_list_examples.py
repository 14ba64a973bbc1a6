"""The examples of docs/lists.md are built with the page's commands; spans and labels are worked out by hand."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.settings import Settings
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import Reading
from preprocess.sources.videos import video_files
from tests.support.media import make_frame_folder, make_video

PAGE = (Path(__file__).parents[3] / "docs" / "lists.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- (list|file|ledger): (\S+)(.*?) -->\n\n((?:    .*\n)+)")
# The list ─► the videos that are there, ? for a blank; and (start in s, frames, labels, split) of each sample in order.
VIDEOS = {
    "plain.txt": "archery/one.mp4 my?holiday.mp4",
    "label_first.csv": "one.mp4 sub/two.mp4",
    "windows.csv": "clips/one.mp4",
    "seconds.csv": "one.mp4",
    "frames.tsv": "one.mp4",
    "own.csv": "one.mp4",
    "numbers.csv": "one.mp4 two.mp4",
    "rows.jsonl": "one.mp4 two.mp4",
    "quoted.csv": "one.mp4",
    "kinetics.csv": "abcdefghijk_000002_000005.mp4 val/lmnopqrstuv.mp4",
    "something.json": "78687.webm v/42.webm",
    "trainlist01.txt": "Archery/v_Archery_g01_c01.avi Biking/v_Biking_g01_c01.avi",
    "testlist01.txt": "Diving/v_Diving_g01_c01.avi Archery/v_Archery_g02_c01.avi",
    "brush_hair_test_split1.txt": "brush_hair/one.avi brush_hair/two.avi brush_hair/three.avi wave/one.avi",
    "EPIC_100_train.csv": "P01/P01_01.MP4",
    "Charades_v1_train.csv": "46GP8.mp4 N11GT.mp4",
    "ava_train_v2.2.csv": "one.mp4 clips/one.mp4",
    "activity_net.json": "v_abc.mp4 x/def.mp4",
    "video01-phase.txt": "videos/video01.mp4",
    "video01-tool.txt": "videos/video01.mp4",
}
EXPECTED: dict[str, list[tuple[float, int, list[str | int], str]]] = {
    "plain.txt": [(0, 100, [0], ""), (0, 100, [1], "")],
    "label_first.csv": [(0, 100, [3], ""), (0, 100, [5], "")],
    "windows.csv": [(0, 100, [0], "")],
    "seconds.csv": [(0, 20, ["cut"], ""), (2, 15, ["pour"], "")],
    "frames.tsv": [(0, 20, ["cut"], ""), (2, 15, ["pour"], "")],
    "own.csv": [(1, 20, ["cut"], "")],
    "numbers.csv": [(0, 100, [4], ""), (0, 100, [5], "")],
    "rows.jsonl": [(0, 25, ["cut", "pour"], ""), (0, 100, ["cut"], "")],
    "quoted.csv": [(0, 100, ["cut, then\npour"], "")],
    "kinetics.csv": [(0, 30, ["archery"], "train"), (0, 100, ["playing, chess"], "val")],
    "something.json": [(0, 100, ["Holding something"], ""), (0, 100, ["Dropping something"], "")],
    "trainlist01.txt": [(0, 100, ["Archery"], ""), (0, 100, ["Biking"], "")],
    "testlist01.txt": [(0, 100, ["Diving"], ""), (0, 100, ["Archery"], "")],
    "brush_hair_test_split1.txt": [(0, 100, ["brush_hair"], "train"), (0, 100, ["brush_hair"], "test")],
    "EPIC_100_train.csv": [(0.2, 32, ["open"], ""), (4.4, 18, ["turn-on"], "")],
    "Charades_v1_train.csv": [
        (1.9, 43, ["Putting clothes somewhere"], ""),
        (0, 40, ["Holding some clothes"], ""),
    ],
    "ava_train_v2.2.csv": [(2.5, 10, [9, 80], ""), (6.5, 10, [12], "")],
    "activity_net.json": [(1, 35, ["Archery"], "train"), (0, 100, [], "test")],
    "video01-phase.txt": [
        (0, 50, ["Preparation"], ""),
        (5, 25, ["CalotTriangleDissection"], ""),
        (7.5, 25, ["Preparation"], ""),
    ],
    "video01-tool.txt": [(0, 25, [], ""), (2.5, 25, ["Grasper"], ""), (5, 50, ["Grasper", "Hook"], "")],
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of ten seconds, and one of three that was cut already."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "short.mp4", 30)
    return make_video(folder / "long.mp4", 100).parent


@pytest.fixture
def root(tmp_path: Path, videos: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with the files of the page, and the videos that the list of this test names."""
    root = tmp_path / "root"
    for name in VIDEOS[request.node.callspec.params["name"]].split():
        path = root / name.replace("?", " ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(videos / ("short.mp4" if name.startswith("abc") else "long.mp4"))
    for _, name, _, text in BLOCK.findall(PAGE):
        (root / name).write_text(re.sub("^    ", "", text, flags=re.M), encoding="utf-8")
    return root


def test_every_example_of_the_page_is_expected() -> None:
    assert [name for kind, name, _, _ in BLOCK.findall(PAGE) if kind == "list"] == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_fault_45_a_list_of_the_page_gives_its_spans_and_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    given = next(options for _, one, options, _ in BLOCK.findall(PAGE) if one == name).split()
    options = [str(root / word) if (root / word).is_file() else word for word in given]
    out = tmp_path / "out"
    built = main(
        ["build", "--videos", str(root / name), *options, "--short-side", "32", "--workers", "1", "--out", str(out)]
    )
    assert built == 0, capsys.readouterr().err
    dataset = open_dataset(out)
    splits = pq.read_table(out / dataset.meta["files"]["index"]["name"])["split"].to_pylist()
    found = []
    for i in range(len(dataset)):
        labels = [dataset.label_names[label] if dataset.label_names else label for label in dataset.labels_of(i)]
        start_s = pytest.approx(float(dataset.start_s[i]), abs=0.051)
        found.append((start_s, int(dataset.num_frames[i]), labels, splits[i]))
    assert EXPECTED[name] == found


@pytest.mark.parametrize(("name", "count"), [("brush_hair_test_split1.txt", 1), ("Charades_v1_train.csv", 1)])
def test_rows_that_a_published_list_leaves_out_are_listed(root: Path, tmp_path: Path, name: str, count: int) -> None:
    assert main(["build", "--videos", str(root / name), "--out", str(tmp_path / "out"), "--short-side", "16"]) == 0
    assert pq.read_table(tmp_path / "out" / "rejected.parquet").num_rows == count


def phases(*frames: int, rows: str = "", name: str = "video01-phase.txt") -> tuple[str, str]:
    """Return a name, and a list of these frames: of phase A up to frame 29, of phase B after that."""
    labelled = "".join(f"{frame}\t{'A' if frame < 30 else 'B'}\n" for frame in frames)
    return name, f"Frame\tPhase\n{labelled}{rows}"


def test_a_folder_of_phases_gives_the_spans_of_every_video(tmp_path: Path, videos: Path) -> None:
    for name, text in (phases(*range(100)), phases(*range(1, 101), name="video02_phases.txt"), ("notes.txt", "x")):
        (tmp_path / "phases").mkdir(exist_ok=True)
        (tmp_path / "phases" / name).write_text(text)
    for name in ("video01.mp4", "video02.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / name).hardlink_to(videos / "long.mp4")
    found = video_files([tmp_path / "phases"], settings=Settings()).find()
    assert any(note.startswith("2 lists of labels are read if --root says") for note in found.notes)
    reading = Reading(root=str(tmp_path / "videos"))
    found = video_files([tmp_path / "phases"], settings=Settings(), reading=reading).find()
    assert found.problems == []
    spans = [(one.path, one.labels, round(one.start_s, 2), round(one.stop_s, 2)) for one in found.requests]
    assert spans == [  # half a frame early
        ("video01.mp4", ("A",), 0.0, 2.95),
        ("video01.mp4", ("B",), 2.95, 9.95),
        ("video02.mp4", ("A",), 0.0, 2.85),
        ("video02.mp4", ("B",), 2.85, 9.95),
    ]


def test_a_bad_row_of_phases_costs_itself(tmp_path: Path, videos: Path) -> None:
    name, text = phases(*range(50), *range(60, 100), rows="x\tB\n70\tB\n100\n")
    (tmp_path / name).write_text(text)
    (tmp_path / "video01.mp4").hardlink_to(videos / "long.mp4")
    found = video_files([tmp_path / name], settings=Settings()).find()
    assert [(one.reason, one.line) for one in found.problems] == [("bad_row", line) for line in (92, 93, 94)]
    assert [round(one.stop_s, 2) for one in found.requests] == [2.95, 4.95, 9.95]  # frames 50 to 59 have no label


@pytest.mark.parametrize("last", [10, 300])
def test_fault_45_phases_at_another_rate_than_the_video_are_refused_until_it_is_given(
    tmp_path: Path, videos: Path, last: int
) -> None:
    name, text = phases(*range(last))
    (tmp_path / name).write_text(text)
    (tmp_path / "video01.mp4").hardlink_to(videos / "long.mp4")
    with pytest.raises(LedgerError, match=rf"frame {last - 1}, .* 10\.0 s at 10 frames per second; .*--source-fps"):
        video_files([tmp_path / name], settings=Settings()).find()
    (*_, request) = video_files([tmp_path / name], settings=Settings(source_fps=last / 10)).find().requests
    assert request.stop_s == pytest.approx(10, abs=0.51)
    with pytest.raises(ValueError, match="--source-fps is the rate of frame numbers"):
        video_files([tmp_path / "video01.mp4"], settings=Settings(source_fps=25))


LEDGERS: dict[str, list[tuple[int, list[str | int]]]] = {  # (frames, labels) of each sample; folders of 10 and 8 frames
    "named.csv": [(4, ["cut"]), (6, ["pour"])],
    "rawframes.txt": [(10, [3]), (8, [30])],
    "offsets.txt": [(4, [3]), (6, [7]), (8, [30])],
    "totals.txt": [(10, [10]), (7, [8])],
}


@pytest.mark.parametrize("name", LEDGERS)
def test_fault_45_a_ledger_of_the_page_gives_its_frames_and_labels(tmp_path: Path, name: str) -> None:
    blocks = [(one, given.split(), text) for kind, one, given, text in BLOCK.findall(PAGE) if kind == "ledger"]
    assert [one for one, _, _ in blocks] == list(LEDGERS)
    (options, text) = next((given, text) for one, given, text in blocks if one == name)
    for folder, count in (("v1", 10), ("v2", 8)):
        make_frame_folder(tmp_path / "rawframes" / "some" / folder, count)
    (tmp_path / name).write_text(re.sub("^    ", "", text, flags=re.M))
    given = ["--frames", str(tmp_path / "rawframes"), "--ledger", str(tmp_path / name), *options]
    assert main(["build", *given, "--short-side", "32", "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(tmp_path / "out")
    found = []
    for i in range(len(dataset)):
        labels = [dataset.label_names[label] if dataset.label_names else label for label in dataset.labels_of(i)]
        found.append((int(dataset.num_frames[i]), labels))
    assert LEDGERS[name] == found
