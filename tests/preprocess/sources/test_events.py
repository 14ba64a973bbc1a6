"""Events of long videos become samples with labels: every format, overlaps, the background, and what is refused."""

import math
import re
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.background import gaps
from preprocess.sources.events import LABEL_ORDER, read_events
from preprocess.sources.source import Reading
from preprocess.sources.videos import video_files
from tests.support.builds import tree
from tests.support.media import frame_number, make_video

EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P1_0,P1,a,00:00:00.56,00:00:00.50,00:00:02.00,5,20,open door,open,3,door,8,\"['door']\",[8]\n"
    "P1_1,P1,a,00:00:03.10,00:00:03.00,00:00:04.50,30,45,turn on light,turn-on,6,light,114,\"['light']\",[114]\n"
)
PHASES = "Frame\tPhase\n" + "".join(f"{i}\t{'Preparation' if i < 40 else 'Clipping'}\n" for i in range(100))
TOOLS = "Frame\tGrasper\tHook\n0\t0\t1\n25\t1\t1\n50\t1\t1\n75\t0\t1\n"
AVA = "a,0003,0.077,0.151,0.283,0.811,80,1\na,0003,0.3,0.1,0.5,0.8,9,2\na,0007,0.332,0.194,0.481,0.891,12,0\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of ten seconds, 10 frames per second."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 100)
    (folder / "sub").mkdir()
    (folder / "sub" / "b.mp4").hardlink_to(folder / "a.mp4")
    return folder


def find(videos: Path, events: Path, *, settings: Settings | None = None, **reading: object) -> ScanResult:
    given = Reading(events=True, root=str(videos), **reading)  # type: ignore[arg-type]
    return video_files([events], settings=settings or Settings(), reading=given).find()


def spans(found: ScanResult) -> list[tuple[str, float, float, tuple[str, ...]]]:
    return [(one.path, round(one.start_s, 3), round(one.stop_s, 3), one.labels) for one in found.requests]


def written(folder: Path, text: str, name: str = "events.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("events.csv", "name,start_s,end_s,label\na.mp4,1,2.5,cut\nb,3,4,pour\n", [(1, 2.5, "cut"), (3, 4, "pour")]),
        ("frames.csv", "name,start_frame,end_frame,label\na.mp4,10,25,cut\n", [(0.95, 2.45, "cut")]),
        ("epic.csv", EPIC, [(0.5, 2, "3"), (3, 4.5, "6")]),
        ("ava.csv", AVA, [(2.5, 3.5, "9"), (2.5, 3.5, "80"), (6.5, 7.5, "12")]),
        ("a-phase.txt", PHASES, [(0, 3.95, "Preparation"), (3.95, 9.95, "Clipping")]),
        ("a-tool.txt", TOOLS, [(0, 2.45, "Hook"), (2.45, 7.45, "Grasper"), (2.45, 7.45, "Hook"), (7.45, 9.95, "Hook")]),
        (
            "net.json",
            '{"database": {"a": {"subset": "training", "annotations": [{"segment": [1, 4.5], "label": "cut"}]}}}',
            [(1, 4.5, "cut")],
        ),
    ],
    ids=lambda value: value if str(value).count(".") == 1 and len(value) < 20 else "",
)
def test_every_format_gives_the_same_spans_to_readers_and_to_builds(
    tmp_path: Path, videos: Path, name: str, text: str, expected: list[tuple[float, float, str]]
) -> None:
    path = written(tmp_path, text, name)
    events = [one.in_seconds(10) for one in read_events(path)]
    assert [(round(one.start_s, 3), round(one.end_s, 3), one.label) for one in events] == expected
    assert {one.name.removesuffix(".mp4") for one in events} <= {"a", "b"}
    assert [one.line for one in events] == sorted(one.line for one in events)
    found = find(videos, path)
    read = [(start, stop, label) for _, start, stop, labels in spans(found) for label in labels]
    assert read == expected
    assert {problem.reason for problem in found.problems} <= {"no_event"}


def test_frames_and_seconds_hold_the_same_pictures(tmp_path: Path, videos: Path) -> None:
    seconds = written(tmp_path, "name,start_s,end_s,label\na,1,2.5,cut\na,9,11,pour\n", "seconds.csv")
    frames = written(tmp_path, "name,start_frame,end_frame,label\na,10,25,cut\na,90,110,pour\n", "frames.csv")
    for events in (seconds, frames):
        out = tmp_path / events.stem
        given = ["--videos", str(videos), "--events", str(events), "--short-side", "48", "--out", str(out)]
        assert main(["build", *given, "--workers", "1", "--quality", "95"]) == 0
        with tarfile.open(out / "shard-00000.tar") as shard:
            pictures = [shard.extractfile(name) for name in shard.getnames() if name.endswith(".jpg")]
            assert [frame_number(Image.open(file)) for file in pictures if file] == [*range(10, 25), *range(90, 100)]


@pytest.mark.parametrize("events", ["epic", "action", "given"])
def test_the_label_is_the_action_or_the_verb_or_the_column_that_is_given(
    tmp_path: Path, videos: Path, events: str
) -> None:
    text = EPIC if events != "action" else EPIC.replace("narration,", "action,", 1)
    path = written(tmp_path, text)
    label = {"epic": ("3", "6"), "action": ("open door", "turn on light"), "given": ("8", "114")}[events]
    columns = ("label=noun_class",) if events == "given" else ()
    found = find(videos, path, columns=columns)
    assert tuple(one.labels[0] for one in found.requests) == label
    assert any("noun_class" in note or "noun," in note for note in found.notes)
    assert [one.label for one in read_events(path, label="noun_class" if columns else "")] == list(label)
    assert LABEL_ORDER.index("action") < LABEL_ORDER.index("verb_class")


def test_overlapping_events_are_samples_of_their_own(tmp_path: Path, videos: Path) -> None:
    path = written(tmp_path, "name,start_s,end_s,label\na,1,4,cut\na,2,3,pour\na,2,3,cut\n")
    assert spans(find(videos, path)) == [
        ("a.mp4", 1, 4, ("cut",)),
        ("a.mp4", 2, 3, ("pour",)),
        ("a.mp4", 2, 3, ("cut",)),
    ]


@pytest.mark.parametrize(
    ("events", "left"),
    [
        ([], [(0.0, math.inf)]),
        ([(1, 2), (3, 4)], [(0.0, 1), (2, 3), (4, math.inf)]),
        ([(3, 6), (0, 1), (4, 5)], [(1, 3), (6, math.inf)]),
        ([(0, 5), (5, 10)], []),
        ([(0, 4), (6, math.inf)], [(4, 6)]),
        ([(0, 5), (12, 13)], [(5, math.inf)]),
        ([(0, 9.95)], []),
        ([(0, 9.85)], [(9.85, math.inf)]),
    ],
)
def test_gaps_are_what_events_leave(events: list[tuple[float, float]], left: list[tuple[float, float]]) -> None:
    assert gaps(events, 10.0, frame_s=0.1) == left


def test_a_video_of_unknown_length_has_gaps_up_to_its_last_event() -> None:
    assert gaps([(1, 2), (3, 4)], math.nan) == [(0.0, 1), (2, 3)]


def test_the_background_fills_the_gaps_of_at_least_the_given_length(tmp_path: Path, videos: Path) -> None:
    path = written(tmp_path, "name,start_frame,end_frame,label,split\na,10,25,cut,train\na,30,60,pour,train\n")
    found = find(videos, path, background="other")
    assert spans(found) == [
        ("a.mp4", 0.95, 2.45, ("cut",)),
        ("a.mp4", 2.95, 5.95, ("pour",)),
        ("sub/b.mp4", 0, math.inf, ("other",)),
        ("a.mp4", 5.95, math.inf, ("other",)),
    ]
    assert [one.split for one in found.requests] == ["train", "train", "", "train"]
    assert {one.name for one in found.requests if one.path == "a.mp4"} == {"a"}  # `split --by name` keeps them together
    assert any("1 of 2 videos have no event" in note and "sub/b.mp4" in note for note in found.notes)
    assert any(note.startswith("1 gaps") and "2 are shorter than 1 s" in note for note in found.notes)
    fine = find(videos, path, background="other", background_seconds=0.2)
    assert spans(fine)[3:] == [
        ("a.mp4", 0, 0.95, ("other",)),
        ("a.mp4", 2.45, 2.95, ("other",)),
        ("a.mp4", 5.95, math.inf, ("other",)),
    ]
    path = written(tmp_path, "name,start_s,end_s,label\na,1,2.5,cut\na,4,6,pour\n", "seconds.csv")
    assert [one[1:3] for one in spans(find(videos, path, settings=Settings(whole=True), background="other"))] == [
        *((1, 2.5), (4, 6), (0, math.inf)),
        *((0, 1), (2.5, 4), (6, math.inf)),
    ]


def test_videos_without_an_event_are_listed_and_no_share_of_bad_rows(tmp_path: Path, videos: Path) -> None:
    path = written(tmp_path, "name,start_s,end_s,label\na,1,4,cut\n")
    found = find(videos, path)
    assert [(one.reason, one.name) for one in found.problems] == [("no_event", "sub/b.mp4")]
    out = tmp_path / "out"
    given = ["build", "--videos", str(videos), "--events", str(path), "--short-side", "16", "--out", str(out)]
    assert main([*given, "--max-bad-fraction", "0"]) == 0
    assert pq.read_table(out / "rejected.parquet").select(["name", "reason"]).to_pylist() == [
        {"name": "sub/b.mp4", "reason": "no_event"}
    ]


def test_bad_rows_have_their_line_and_value_and_their_videos_no_background(tmp_path: Path, videos: Path) -> None:
    rows = "a,1,2,cut\na,4,4,cut\nb,3,2,cut\nnone.mp4,0,1,cut\na,50,60,cut\na,x,2,cut\na,8,12,cut\n"
    found = find(videos, written(tmp_path, f"name,start_s,end_s,label\n{rows}"), background="other")
    faults = {(one.line, one.reason, one.file) for one in found.problems}
    expected = {3: "bad_row", 4: "bad_row", 5: "missing_file", 6: "no_frames", 7: "bad_row"}
    assert faults == {(line, reason, "events.csv") for line, reason in expected.items()}
    messages = {one.line: one.message for one in found.problems}
    assert "4 s to 4 s" in messages[3]
    assert "'x'" in messages[7]
    assert spans(found) == [("a.mp4", 1, 2, ("cut",)), ("a.mp4", 8, 12, ("cut",))]
    assert any("2 spans end more than a second after" in note for note in found.notes)
    assert any(
        "2 videos have events that cannot be read" in note and "a.mp4, sub/b.mp4" in note for note in found.notes
    )
    with pytest.raises(ValueError, match=r"events\.csv, line 3: .*4 s to 4 s.*2 more"):
        read_events(tmp_path / "events.csv")


def test_a_phase_that_cannot_be_read_leaves_its_video_without_background(tmp_path: Path, videos: Path) -> None:
    path = written(tmp_path, PHASES.replace("50\tClipping", "50"), "a-phase.txt")
    found = find(videos, path, background="other")
    assert [one.path for one in found.requests if one.labels == ("other",)] == ["sub/b.mp4"]
    whole = find(videos, written(tmp_path, PHASES, "a-phase.txt"), background="other")
    assert [one.path for one in whole.requests if one.labels == ("other",)] == ["sub/b.mp4"]  # all frames are labelled


def test_a_build_of_events_has_their_labels_and_frames_and_is_appended_to(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "name,start_frame,end_frame,label\na,10,25,cut\nb,60,100,pour\n")
    given = ["--videos", str(videos), "--events", str(path), "--background", "other", "--event-fps", "10"]
    given += ["--background-seconds", "0.5"]
    command = ["build", *given, "--short-side", "48"]
    for workers in (1, 2):
        assert main([*command, "--workers", str(workers), "--out", str(tmp_path / f"out{workers}")]) == 0
    dataset = open_dataset(tmp_path / "out1")
    found = [
        (dataset.name(i), [dataset.label_names[label] for label in dataset.labels_of(i)], int(dataset.num_frames[i]))
        for i in range(len(dataset))
    ]
    assert found == [
        ("a", ["cut"], 15),
        ("b", ["pour"], 40),
        ("a", ["other"], 10),
        ("a", ["other"], 75),
        ("b", ["other"], 60),
    ]
    numbers = [round(float(start) * 10) for start in dataset.start_s]
    assert numbers == [10, 60, 0, 25, 0]
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    assert main([*command, "--append", "--out", str(tmp_path / "out1")]) == 0
    assert "nothing new to append" in capsys.readouterr().out
    assert main(["index", *given, "--out", str(tmp_path / "index")]) == 0
    index = open_dataset(tmp_path / "index")
    assert [index.labels_of(i) for i in range(5)] == [dataset.labels_of(i) for i in range(5)]
    path.write_text(path.read_text() + "a,90,95,pour\n")
    assert main([*command, "--append", "--plan-only", "--out", str(tmp_path / "new")]) == 0
    assert "to build: 7 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--videos", "{videos}", "{videos}", "--events", "{events}"], "--videos DIR"),
        (["--videos", "{videos}", "--root", "{videos}", "--events", "{events}"], "--root"),
        (["--videos", "{videos}/a.mp4", "--events", "{events}"], r"a\.mp4: --events .* folder"),
        (["--videos", "{videos}", "--background", "other"], "--background belong to --events"),
        (["--videos", "{videos}", "--event-label", "verb"], "--event-label"),
        (["--videos", "{videos}", "--events", "{videos}"], "no list of labels"),
        (["--videos", "{videos}", "--events", "{events}", "--background-seconds", "0"], "background_seconds"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str], options: list[str], match: str
) -> None:
    path = written(tmp_path, "name,start_s,end_s,label\na,1,4,cut\n")
    given = [option.format(videos=videos, events=path) for option in options]
    assert main(["build", *given, "--out", str(tmp_path / "out")]) == 2
    assert re.search(match, capsys.readouterr().err)
