"""The spans of lists are compared with their videos."""

import math
from pathlib import Path

import pytest

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.sources.columns import MAX_FRAME
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import Reading
from preprocess.sources.spans import settled, span_notes
from preprocess.sources.video_listing import VideoCandidate
from preprocess.sources.videos import video_files
from tests.support.media import make_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("spans") / "a.mp4", 50).parent  # five seconds


def find(root: Path, text: str, *, columns: tuple[str, ...] = (), whole: bool = False) -> ScanResult:
    (root / "list.csv").write_text(text)
    reading = Reading(columns=columns)
    return video_files([root / "list.csv"], settings=Settings(whole=whole), reading=reading).find()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("start", "end"), [("start", "end"), ("from", "to"), ("Begin", "Stop")])
def test_fault_45_frames_in_columns_without_a_unit_are_refused_with_both_readings(
    root: Path, start: str, end: str, whole: bool
) -> None:
    text = f"video,{start},{end},label\na.mp4,0,20,1\na.mp4,20,40,2\n"
    with pytest.raises(LedgerError, match=rf"start_frame={start} end_frame={end}.*--columns start={start} end={end}"):
        find(root, text, whole=whole)
    frames = find(root, text, columns=(f"start_frame={start}", f"end_frame={end}"), whole=whole)
    assert [one.stop_s for one in frames.requests] == [pytest.approx(1.95), pytest.approx(3.95)]
    seconds = find(root, text, columns=(f"start={start}", f"end={end}"))
    assert len(seconds.requests) + len(seconds.problems) == 2
    assert any("end more than a second after their video" in note for note in seconds.notes)


@pytest.mark.parametrize(
    "spans",
    [((0, 2), (2, 5)), ((0, 2.5), (2.5, 60)), ((0, 5), (0, 6)), ((0, 60.5), (1, 70.5)), ((0, 2), (2, 5), (3, 60))],
)
def test_seconds_are_read_as_such(root: Path, spans: tuple[tuple[float, float], ...]) -> None:
    rows = "".join(f"a.mp4,{start},{end},{i}\n" for i, (start, end) in enumerate(spans))
    found = find(root, f"video,start,end,label\n{rows}")
    assert [(one.start_s, one.stop_s) for one in found.requests] == list(spans)


@pytest.mark.parametrize(("frames", "told"), [((0, 20), 0), ((0, 45), 1), ((25, 20), None)])
def test_fault_45_frames_that_disagree_with_seconds_are_told(
    root: Path, frames: tuple[int, int], told: int | None
) -> None:
    text = f"video,start_sec,end_sec,start_frame,end_frame\na.mp4,0,2,{frames[0]},{frames[1]}\n"
    found = find(root, text)
    if told is None:
        assert [one.reason for one in found.problems] == ["bad_row"]
        return
    assert [(one.start_s, one.stop_s) for one in found.requests] == [(0.0, 2.0)]
    assert sum("frames disagree with the seconds" in note for note in found.notes) == told


def facts(duration_s: float, *, fps: float = 25.0) -> VideoFacts:
    return VideoFacts(fps=fps, duration_s=duration_s, width=64, height=48)


def spanning(start_s: float, stop_s: float) -> Request:
    return Request("video", 0, "a.mp4", "a.mp4", (), "list.csv", 1, start_s=start_s, stop_s=stop_s)


@pytest.mark.parametrize(
    ("span", "duration_s", "is_cut"),
    [
        ((84.0, 94.0), 10.0, True),
        ((84.0, 94.0), 20.0, True),  # too short to hold it
        ((0.0, 10.0), 10.4, True),  # no longer than it
        ((84.0, 94.0), 300.0, False),
        ((84.0, 94.0), 93.5, False),  # it is rounded
        ((84.0, 94.0), math.nan, True),
    ],
)
def test_a_file_that_is_the_span_already_is_taken_whole(
    span: tuple[float, float], duration_s: float, is_cut: bool
) -> None:
    settled_one = settled(VideoCandidate(spanning(*span), loose=True), facts(duration_s))
    assert (settled_one.start_s, settled_one.stop_s) == ((0.0, math.inf) if is_cut else span)


def test_frames_without_a_rate_are_told() -> None:
    with pytest.raises(MediaError, match="announces no frame rate"):
        settled(VideoCandidate(spanning(0.0, math.inf), frames=(1, 3)), facts(5.0, fps=math.nan))


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (VideoCandidate(spanning(84.0, 94.0)), "end more than a second after their video"),
        (VideoCandidate(spanning(84.0, math.inf)), "end more than a second after their video"),
        (VideoCandidate(spanning(84.0, 94.0), loose=True), None),  # the file may be the span
        (VideoCandidate(spanning(1.0, math.inf), frames_too=(25, MAX_FRAME)), None),
        (VideoCandidate(spanning(1.0, math.inf), frames_too=(75, MAX_FRAME)), "frames disagree"),
    ],
)
def test_spans_that_videos_do_not_have_are_told(one: VideoCandidate, told: str | None) -> None:
    notes = span_notes([one], {(0, "a.mp4"): facts(10.0)})
    assert len(notes) == bool(told)
    assert (told or "") in "".join(notes)


def test_absolute_paths_of_another_machine_are_found_by_their_ends_and_told(root: Path) -> None:
    found = find(root, "sub/a.mp4 3\n/data/other/a.mp4 0\nC:\\videos\\a.mp4 1\n/data/another/a.mp4 2\n")
    assert [(one.path, one.labels) for one in found.requests] == [("a.mp4", ("0",))]
    assert [one.reason for one in found.problems] == ["missing_file"] * 3  # a relative path has one beginning
    assert any(f"begin with /data/other/ were found below {root}" in note for note in found.notes)


def test_a_missing_file_is_told_with_where_and_how_it_was_looked_for(root: Path) -> None:
    (root / "folder").mkdir(exist_ok=True)
    found = find(root, "a.avi 3\nb 4\nfolder 5\n")
    texts = [problem.message for problem in found.problems]
    for text, shown in zip(texts, (f"no file {root}/a.avi, but there is a.mp4", "no b with", "--frames"), strict=True):
        assert shown in text
    assert all(word in texts[0] for word in (str(root), "'a.avi'", "labels 3", "--root", "--columns"))
