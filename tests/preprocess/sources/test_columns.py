import math

import pytest

from preprocess.sources.column_names import could_mean, role_of, seconds_of
from preprocess.sources.columns import MAX_FRAME, read_columns
from preprocess.sources.list_records import LedgerError


@pytest.mark.parametrize(
    "start", ["start", "Start_Sec", "time start", "t-start", "begin", "start_timestamp", "start_s"]
)
@pytest.mark.parametrize("stop", ["end", "stop_time", "END_SECONDS", "t_stop", "time_end", "stop_timestamp"])
def test_fault_45_a_span_is_known_by_its_common_names(start: str, stop: str) -> None:
    columns = read_columns(["video", stop, "label", start], [], source="x.csv")
    assert columns.span_s(["a.mp4", "0:05.5", "cut", "1.5"]) == (1.5, 5.5)
    assert columns.span_s(["a.mp4", "", "cut", ""]) == (0.0, math.inf)
    assert (columns.one("path", ["a.mp4"]), columns.all("label", ["a.mp4", "", "cut"])) == ("a.mp4", ["cut"])
    either = read_columns(["video", "label", start, "t0"], [f"start={start},t0"], source="x.csv")
    assert either.one("start_s", ["a.mp4", "cut", "", "2"]) == "2"


@pytest.mark.parametrize(
    ("names", "fields", "frames"),
    [
        (["start_frame", "end_frame"], ["3", "10"], (3, 10)),
        (["frame_start", "stop_frame"], ["3.0", "10.0"], (3, 10)),
        (["first_frame", "last_frame"], ["3", "10"], (3, 11)),
        (["start_frame", "end_frame"], ["3", ""], (3, MAX_FRAME)),
        (["start_frame", "end_frame"], ["", ""], None),
    ],
)
def test_fault_45_frames_are_half_open_and_a_last_frame_is_included(
    names: list[str], fields: list[str], frames: tuple[int, int] | None
) -> None:
    columns = read_columns(["path", *names], [], source="x.csv")
    assert columns.frames(["a.mp4", *fields]) == frames
    with_seconds = read_columns(["path", *names, "start_s", "end_s"], [], source="x.csv")
    assert with_seconds.has_seconds(["a.mp4", *fields, "1", "2"])  # they need no rate


def test_milliseconds_and_a_duration() -> None:
    assert read_columns(["path", "start_ms", "end_ms"], [], source="x").span_s(["a", "1500", "2000"]) == (1.5, 2.0)
    columns = read_columns(["path", "start", "duration"], ["duration=duration"], source="x")
    assert columns.span_s(["a", "1.5", "2"]) == (1.5, 3.5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.5", 12.5), ("1:02", 62.0), ("01:00:00.250", 3600.25), ("1e2", 100.0)]
)
def test_times_are_seconds_or_a_clock(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "fields", [["5", "2"], ["x", "2"], ["-1", "2"], ["nan", "2"], ["1", "nan"], ["2", "2"], ["1:x", "2"]]
)
def test_what_is_no_span_is_refused(fields: list[str]) -> None:
    with pytest.raises(ValueError, match=r"seconds|reversed"):
        read_columns(["start", "end"], [], source="x").span_s(fields)


@pytest.mark.parametrize(
    ("header", "column"),
    [
        (["path", "label", "seg_begin_utc"], "seg_begin_utc"),
        (["path", "label", "start_idx_in_frames"], "start_idx_in_frames"),
        (["path", "label", "timestamp"], "timestamp"),
        (["path", "label", "clip_time"], "clip_time"),
        (["path", "label", "clipTime"], "clipTime"),
        (["path", "label", "start", "duration"], "duration"),
        (["path", "fine_class_de"], "fine_class_de"),
        (["path", "label", "cv_fold"], "cv_fold"),
    ],
)
def test_fault_45_a_column_that_could_mean_something_is_refused_with_what_is_understood(
    header: list[str], column: str
) -> None:
    with pytest.raises(LedgerError, match=rf"x\.csv.*'{column}'.*path = path.*--columns \w+={column}.*ignore={column}"):
        read_columns(header, [], source="x.csv")
    assert column in read_columns(header, [f"ignore={column}"], source="x.csv").ignored


@pytest.mark.parametrize("header", [["path", "label", "class_name"], ["path", "verb_class", "noun_class"]])
def test_fault_45_two_columns_that_could_be_the_same_are_refused(header: list[str]) -> None:
    with pytest.raises(LedgerError, match=rf"{header[1]}, {header[2]}.*--columns label={header[1]}"):
        read_columns(header, [], source="x.csv")
    columns = read_columns(header, [f"label={header[2]}"], source="x.csv")
    assert columns.all("label", ["a", "b", "c"]) == ["c"]
    both = read_columns(header, [f"label={header[1]},{header[2]}"], source="x.csv")
    assert both.all("label", ["a", "b", "c"]) == ["b", "c"]


def test_a_column_called_path_and_one_that_columns_names_leave_no_question() -> None:
    assert read_columns(["video", "path", "label"], [], source="x").at["path"] == [1]
    named = read_columns(["path", "start_frame", "begin"], ["start_frame=start_frame"], source="x")
    assert (named.at["first"], named.ignored) == ([1], ("begin",))


def test_columns_that_say_nothing_are_ignored_by_name() -> None:
    header = ["", "path", "label", "fps", "width", "num_frames", "caption", "is_cc", "weather"]
    assert read_columns(header, [], source="x").ignored == (
        "",
        "fps",
        "width",
        "num_frames",
        "caption",
        "is_cc",
        "weather",
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        *((given, "give ROLE=COLUMN") for given in ("start", "begins=t0", "start=")),
        *((given, "no such column; there are , path, t0") for given in ("start=absent", "label=9", "label=0")),
    ],
)
def test_a_wrong_columns_option_is_told(given: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"--columns.*{told}"):
        read_columns(["", "path", "t0"], [given], source="x")


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["Start (s)", "startTime", "start[s]", "start time (sec)"], "start_s"),
        (["startFrame", "Start Frame", "start_frame_idx"], "first"),
        (["end[ms]", "endMs"], "stop_ms"),
        (["videoPath", "Video Path"], "path"),
        (["classId", "class-id"], "label"),
    ],
)
def test_fault_45_signs_and_capitals_of_a_name_are_of_no_importance(names: list[str], role: str) -> None:
    for name in names:
        assert role_of(name) == role, name


@pytest.mark.parametrize(
    ("header", "rows", "remedy"),
    [
        (["path", "in", "out", "label"], [["a", "0", "1", "c"], ["a", "2", "3", "c"]], "start=in end=out"),
        (["path", "label", "u", "v"], [["a", "c", "0:01", "0:02"]], "start=u end=v"),
        (["path", "when", "label"], [["a", "00:00:01", "c"]], "start=when"),
        (["path", "segment", "label"], [["a", "[0.5, 2]", "c"]], "span=segment"),
        (["path", "emotion"], [["a", "sad"], ["b", "glad"]], "label=emotion"),
        (["path", "sport"], [["a", "polo"], ["b", "golf"]], "label=sport"),
        (["path", "label", "is_train"], [["a", "c", "1"]], "split=is_train"),
        (["label", "clipfile"], [["c", "a.mp4"]], "path=clipfile"),
        (["path", "start_frame", "num_frames", "label"], [["a", "5", "9", "c"]], "num_frames=num_frames"),
    ],
)
def test_fault_45_values_show_what_a_column_could_be(header: list[str], rows: list[list[str]], remedy: str) -> None:
    records = list(enumerate(rows, start=2))
    with pytest.raises(LedgerError, match=rf"--columns {remedy}, or --columns ignore="):
        read_columns(header, [], source="x", records=records)
    columns = read_columns(header, remedy.split(), source="x", records=records)
    assert columns.at.keys() > {"path"} or "path=" in remedy


@pytest.mark.parametrize(
    ("values", "meaning"),
    [
        (["sad", "glad"], "a label"),
        ([f"memo {i}" for i in range(10)], "a label"),
        ([f"memo {i}" for i in range(11)], None),  # no two are alike: no classes
        (["sad", "glad"] * 6, "a label"),
        (["a" * 61], None),
        (["1.5", "2"], None),
        (["sad", "0:01"], "a span"),
        ([], None),
    ],
)
def test_values_of_a_column_without_a_telling_name(values: list[str], meaning: str | None) -> None:
    assert could_mean("memo", values, {"path"}) == meaning
    records = [(i, ["a.mp4", value]) for i, value in enumerate(values, start=2)]
    if meaning:
        with pytest.raises(LedgerError, match=meaning):
            read_columns(["path", "memo"], [], source="x", records=records)


def test_only_times_whose_columns_leave_it_open_may_be_frames() -> None:
    units = {"start end": True, "start_sec end_sec": False, "start end_sec": False, "from to": True, "label": False}
    for names, is_open in units.items():
        assert read_columns(["path", *names.split()], [], source="x").without_unit == is_open, names


@pytest.mark.parametrize(
    "header", [["path", "width", "height"], ["path", "caption"], ["path", "label", "x1", "x2"], ["", "path"]]
)
def test_what_says_nothing_may_have_any_values(header: list[str]) -> None:
    read_columns(header, [], source="x", records=[(2, ["a.mp4", "1", "2", "3"][: len(header)])])


@pytest.mark.parametrize("names", [["start_frame", "end_sec"], ["start_s", "end_frame"], ["start_ms", "last_frame"]])
def test_fault_45_a_start_and_an_end_of_different_units_are_refused(names: list[str]) -> None:
    with pytest.raises(LedgerError, match=r"the start is in .* and the end in"):
        read_columns(["path", *names], [], source="x")


def test_fault_45_a_span_may_be_one_column_or_a_number_of_frames() -> None:
    assert read_columns(["path", "segment"], ["span=segment"], source="x").span_s(["a", "(0.5, 2)"]) == (0.5, 2.0)
    counted = read_columns(["path", "start_frame", "n"], ["num_frames=n"], source="x")
    assert counted.frames(["a", "5", "9"]) == (5, 14)
    with pytest.raises(ValueError, match="last_frame"):
        read_columns(["path", "start_frame", "end_frame"], [], source="x").frames(["a", "5", "5"])
