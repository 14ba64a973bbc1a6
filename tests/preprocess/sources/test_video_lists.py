import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.sources.list_records import LedgerError
from preprocess.sources.list_tables import ListRow, VideoList
from preprocess.sources.video_lists import read_list


def rows(text: str, **options: object) -> list[ListRow]:
    read = read_list(text.encode(), "list.csv", **options)  # type: ignore[arg-type]
    assert read.problems == []
    return read.rows


@pytest.mark.parametrize("row", ["{} 3", "{},3", "{}, 3", '"{}",3', "{}\t3", "{};3", '"{}"\t3', "{}"])
@pytest.mark.parametrize("name", ["clip.mp4", "my clip.mp4", "s3://bucket/a b/clip.MOV", "/data/kücük.webm"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_fault_02_every_kind_of_row_is_read(row: str, name: str, mark: str) -> None:
    (one,) = rows(mark + row.format(name) + "\r\n\r\n")
    assert (one.path, one.labels, one.line) == (name, () if row == "{}" else ("3",), 1)


def test_several_labels_and_none() -> None:
    assert [one.labels for one in rows("a.mp4 1 2 7\nb.mp4\nc d.mp4 cat\n")] == [("1", "2", "7"), (), ("cat",)]
    assert [one.labels for one in rows("a.mp4,1,2\nb.mp4,,\n")] == [("1", "2"), ()]


def test_a_header_may_name_columns_in_any_order() -> None:
    text = "label,path,start,end,split,comment\ncat,a.mp4,1.5,4,validation,x\n,b.mp4,,,train,\n"
    assert rows(text) == [
        ListRow(2, "a.mp4", ("cat",), 1.5, 4.0, "val"),
        ListRow(3, "b.mp4", (), 0.0, math.inf, "train"),
    ]
    assert [one.path for one in rows("path label\na b.mp4 3\n")] == ["a b.mp4"]


def test_fault_02_the_dialect_is_told_and_can_be_overridden() -> None:
    read = read_list(b"name,label\na.mp4,3\n", "list.csv")
    assert read.dialect == "list.csv: commas, a header (name, label), 1 rows"
    assert len(rows("name,label\na.mp4,3\n", header="no")) == 2
    assert rows("a,b.mp4 3\n", delimiter="space")[0].path == "a,b.mp4"
    with pytest.raises(LedgerError, match="no column is called path"):
        rows("x,y\na.mp4,3\n", header="yes")
    for text, columns in (("path start end\na.mp4 0 1\n", []), ("path label\na.mp4 0\n", ["path=path"])):
        with pytest.raises(LedgerError, match="separate them by commas"):
            rows(text, columns=columns)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,start,end\na.mp4,5,2\n", "bad_row"),
        ("path,start,end\na.mp4,x,2\n", "bad_row"),
        ("path,start,end\na.mp4,-1,2\n", "bad_row"),
        ("path,start,end\na.mp4,nan,2\n", "bad_row"),
        ("path,label\na.mp4,2,3,4\n", "bad_row"),
        ("path,label\n,2\n", "unsafe_name"),
        ("path,label\na\x00.mp4,2\n", "unsafe_name"),
        ("path,label\nb.mp4,2\nb.mp4,2\n", "duplicate_row"),
        (3 * "v,1,.1,.1,.2,.2,3,1\n" + "v,1,.1,.1,.2,.2,nan,1\n", "bad_row"),
    ],
)
def test_fault_03_a_bad_row_has_its_line_and_reason(text: str, reason: str) -> None:
    read = read_list(text.encode(), "list.csv")
    (problem,) = read.problems
    assert (problem.reason, problem.line) == (reason, text.count("\n"))


def test_fault_04_spans_of_one_video_are_no_duplicates() -> None:
    assert len(rows("path,start,end\na.mp4,0,2\na.mp4,2,4\n")) == 2
    assert len(rows("path,start_frame,end_frame\na.mp4,0,2\na.mp4,2,4\n")) == 2
    assert len(rows("a.mp4 1\na.mp4 2\n")) == 2


def kinetics(text: str) -> VideoList:
    read = read_list(text.encode(), "train.csv")
    assert read.published
    return read


def test_kinetics_as_published() -> None:
    train = "label,youtube_id,time_start,time_end,split,is_cc\n"
    read = kinetics(train + 'testifying,---QUuC4vJs,84,94,train,0\n"drinking, beer",-0,0,10,validate,1\n')
    assert read.dialect == "train.csv: Kinetics' csv, 2 rows"
    first, second = read.rows
    assert first.stems == ("---QUuC4vJs_000084_000094", "---QUuC4vJs")
    assert (first.labels, first.start_s, first.stop_s, first.split) == (("testifying",), 84.0, 94.0, "train")
    assert (second.labels, second.split) == (("drinking, beer",), "val")
    (hidden,) = kinetics("youtube_id,time_start,time_end,split\nabc,3,13,test\n").rows
    assert (hidden.labels, hidden.split) == ((), "test")
    assert kinetics("youtube_id,start,end\nabc,3,13\n").without_unit == ()  # Kinetics counts seconds
    (problem,) = kinetics("youtube_id,time_start,time_end\nabc,3,13\n,3,13\n").problems
    assert (problem.message, problem.line) == ("no youtube_id", 3)


def test_something_something_as_published() -> None:
    entries = [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        },
        {"id": "1420"},
    ]
    read = read_list(json.dumps(entries).encode(), "train.json")
    assert read.dialect == "train.json: Something-Something's json, 2 rows"
    assert [(row.stems, row.labels) for row in read.rows] == [
        (("78687",), ("Holding something next to something",)),
        (("1420",), ()),
    ]
    (other,) = rows('[{"id": 7, "video_path": "a.mp4", "label": 3}]')  # a table whose rows are numbered
    assert (other.path, other.labels) == ("a.mp4", ("3",))


@pytest.mark.parametrize("text", ["", " \n\n", "path,label\n", "[]", "{}", "[1"])
def test_fault_01_what_holds_no_row_is_told(text: str) -> None:
    with pytest.raises(LedgerError, match=r"list\.csv"):
        read_list(text.encode(), "list.csv")


@pytest.mark.parametrize(
    "text", ["0,a.mp4,7\n1,b.mp4,7\n", ",path,label\n0,a.mp4,7\n1,b.mp4,7\n", "1\ta.mp4\t7\n2\tb.mp4\t7\n"]
)
def test_the_index_of_a_table_is_no_label(text: str) -> None:
    assert [(one.path, one.labels) for one in rows(text)] == [("a.mp4", ("7",)), ("b.mp4", ("7",))]


def test_fault_45_numbers_before_paths_that_count_the_rows_are_refused_with_both_readings() -> None:
    with pytest.raises(LedgerError, match=r"--columns path=2 label=1, or --columns path=2"):
        read_list(b"0,a.mp4\n1,b.mp4\n", "list.csv")
    assert [one.labels for one in rows("0,a.mp4\n1,b.mp4\n", columns=["path=2", "label=1"])] == [("0",), ("1",)]
    assert [one.labels for one in rows("0,a.mp4\n1,b.mp4\n", columns=["path=2"])] == [(), ()]


def test_fault_45_columns_named_by_number_make_no_header_of_a_row_that_holds_such_numbers() -> None:
    found = rows("v1,2\nv2,1\n", columns=["path=1", "label=2"])
    assert [(one.path, one.labels) for one in found] == [("v1", ("2",)), ("v2", ("1",))]
    (one,) = rows("clip,one,two\nv1,2,3\n", columns=["path=1", "label=one,two"])
    assert (one.path, one.labels) == ("v1", ("2", "3"))


def test_a_label_may_come_first() -> None:
    assert [(one.path, one.labels) for one in rows("7 a b.mp4\n9 c.mp4\n")] == [("a b.mp4", ("7",)), ("c.mp4", ("9",))]
    assert [one.labels for one in rows("cat,a.mp4\ndog,b.mp4\n")] == [("cat",), ("dog",)]


def test_a_path_without_suffix_names_a_video() -> None:
    assert [(one.path, one.stems) for one in rows("sub/v1 0\n.\\v2 1\n")] == [
        ("sub/v1", ("sub/v1",)),
        (".\\v2", ("./v2",)),
    ]


@pytest.mark.parametrize("text", ['path,label\na.mp4,"x\ny\nw"\nb.mp4,z\n', 'a.mp4,"x\ny\nw"\nb.mp4,z\n'])
def test_quotes_protect_line_breaks(text: str) -> None:
    assert [one.labels for one in rows(text)] == [("x\ny\nw",), ("z",)]
    assert rows(text)[1].line == text.count("\n")


def test_a_quote_that_is_never_closed_costs_its_line_only() -> None:
    assert [one.path for one in rows('12" disc.mp4,1\nb.mp4,2\n')][-1] == "b.mp4"


def test_comments_are_counted() -> None:
    read = read_list(b"# made by hand\na.mp4 1\n#b.mp4 2\n", "list.txt")
    assert (len(read.rows), read.dialect) == (1, "list.txt: spaces, no header, 2 comments, 1 rows")
    with pytest.raises(LedgerError, match=r"list\.txt: only comments"):
        read_list(b"# made by hand\n\n#b.mp4 2\n", "list.txt")


@pytest.mark.parametrize(("label", "labels"), [("1;2", ("1", "2")), ("1|2", ("1", "2")), ("cut; pour", ("cut; pour",))])
def test_numbers_in_one_cell_are_several_labels(label: str, labels: tuple[str, ...]) -> None:
    assert rows(f"path,label\na.mp4,{label}\n")[0].labels == labels


def test_json_lines_and_parquet_are_tables(tmp_path: Path) -> None:
    text = '{"video": "a.mp4", "label": [3, 4], "start": 1}\n{"video": "b.mp4", "label": null}\n'
    expected = [("a.mp4", ("3", "4"), 1.0), ("b.mp4", (), 0.0)]
    assert [(one.path, one.labels, one.start_s) for one in rows(text)] == expected
    (one, two) = rows('{"path": "a.mp4", "label": "x\u2028y"}\r\n{"path": "b.mp4", "label": "z"}\r\n')
    assert (one.labels, two.labels) == (("x\u2028y",), ("z",))  # a line separator of Unicode ends no line
    table = pa.table(
        {
            "video": ["a.mp4", "b.mp4"],
            "label": [[3, 4], None],
            "start": [1.0, float("nan")],
            "__index_level_0__": [4, 7],
        }
    )
    pq.write_table(table, tmp_path / "l.parquet")
    read = read_list((tmp_path / "l.parquet").read_bytes(), "l.parquet")
    assert [(one.path, one.labels, one.start_s) for one in read.rows] == expected
    assert "__index_level_0__" not in read.dialect  # of pandas
    with pytest.raises(LedgerError, match=r"l\.parquet: not a Parquet file that can be read"):
        read_list((tmp_path / "l.parquet").read_bytes()[:-9], "l.parquet")


def test_fault_45_a_header_of_unknown_names_is_no_row() -> None:
    with pytest.raises(
        LedgerError, match=r"'clipfile' is not understood.*--columns path=clipfile start=t_begin end=t_finish, or"
    ):
        read_list(b"clipfile,t_begin,t_finish\na.mp4,0,10\n", "list.csv")
    with pytest.raises(LedgerError, match=r"no column is called path.*--columns path="):
        read_list(b"clipfile,x\na.mp4,0\n", "list.csv")
    with pytest.raises(LedgerError, match=r"no column is called path; understood: label = label.*--columns path="):
        read_list(b"label,fps\n0,25\n", "list.csv")
    columns = ["path=clipfile", "start=t_begin", "end=t_finish"]
    for name in ("a.mp4", "a"):  # what --columns names is a header, whatever is below it
        (one,) = rows(f"clipfile,t_begin,t_finish\n{name},0,10\n", columns=columns)
        assert (one.path, one.start_s, one.stop_s, one.labels) == (name, 0.0, 10.0, ())


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a.mp4,0.0,1.5,cut\nb.mp4,2.0,3.5,pour\n", "path=1 start=2 end=3 label=4"),
        ("a.mp4,cut,00:00:01,00:00:02\n", "path=1 start=3 end=4 label=2"),
        ("a.mp4 0 30 2\na.mp4 30 60 1\n", "path=1 start_frame=2 end_frame=3 label=4"),
        ("a.mp4,3,0.97\n", "path=1 label=2"),
    ],
)
def test_fault_45_times_in_the_place_of_labels_are_refused(text: str, remedy: str) -> None:
    with pytest.raises(LedgerError, match=rf"--columns {remedy}"):
        read_list(text.encode(), "list.csv")
    (first, *_) = rows(text, columns=remedy.split())
    assert first.path == "a.mp4"


def test_several_labels_that_increase_are_labels_where_each_video_has_one_row() -> None:
    assert [one.labels for one in rows("a.mp4 0 3\nb.mp4 1 2\n")] == [("0", "3"), ("1", "2")]


@pytest.mark.parametrize("label", ["1,2", "[1, 2]", "['1', '2']"])
def test_a_cell_may_hold_a_list(label: str) -> None:
    assert rows(f'path,label\na.mp4,"{label}"\n')[0].labels == ("1", "2")
    for name in ("Holding [something]", "[something]"):
        assert rows(f"path,label\na.mp4,{name}\n")[0].labels == (name,)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_list_is_encoded(encoding: str) -> None:
    for text in ("path,label\né.mp4,3\n", '[{"path": "é.mp4", "label": 3}]'):
        (one,) = read_list(text.encode(encoding), "list.csv").rows
        assert (one.path, one.labels) == ("é.mp4", ("3",))


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "é"), ("utf-16-le", "é"), ("utf-16-le", "a")])
def test_another_encoding_is_refused_with_the_command_that_converts_it(encoding: str, name: str) -> None:
    with pytest.raises(LedgerError, match=r"list\.csv.*iconv -f"):
        read_list(f"path,label\n{name}.mp4,3\n".encode(encoding), "list.csv")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('["a.mp4", "b.mp4"]', [(), ()]),
        ('[["a.mp4", 1], ["b.mp4", 2]]', [("1",), ("2",)]),
        ('{"a.mp4": 1, "b.mp4": 2}', [("1",), ("2",)]),
        ('{"a.mp4": {"label": 1}, "b.mp4": {"label": 2}}', [("1",), ("2",)]),
    ],
)
def test_other_shapes_of_json(text: str, labels: list[tuple[str, ...]]) -> None:
    found = rows(text)
    assert [one.path for one in found] == ["a.mp4", "b.mp4"]
    assert [one.labels for one in found] == labels


def test_kinetics_as_json() -> None:
    entry = '{"annotations": {"label": "archery", "segment": [2.0, 5.0]}, "duration": 10.0, "subset": "val"}'
    (one,) = rows(f'{{"abcdefghijk": {entry}}}')
    assert (one.labels, one.start_s, one.stop_s, one.split) == (("archery",), 2.0, 5.0, "val")


def test_ava_gives_a_sample_a_key_frame() -> None:
    boxes = ("v,0.2,.1,.1,.2,.2,80,1", "v,0.2,.1,.1,.2,.2,9,1", "v,0.2,.3,.3,.4,.4,9,2", "v,3,.1,.1,.2,.2,7,1")
    found = rows("\n".join(boxes))
    assert [(one.stems, one.labels) for one in found] == [(("v",), ("9", "80")), (("v",), ("7",))]
    assert [(one.start_s, one.stop_s) for one in found] == [(0.0, 0.7), (2.5, 3.5)]
    (one,) = rows(boxes[3], columns=["path=1", "label=7"])  # what --columns says comes first
    assert (one.path, one.labels, one.stop_s) == ("v", ("7",), math.inf)


def test_activity_net_names_videos_without_annotations_too() -> None:
    (one,) = rows('{"database": {"a": {"subset": "testing", "annotations": []}}}')
    assert (one.stems, one.labels, one.split) == (("v_a", "a"), (), "test")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", '{"database": {"a": {"annotations": [{"label": "x"}]}}}', "bad_row"),
        ("a.json", '{"database": {"a": {"annotations": [{"label": "x", "segment": [1, "b"]}]}}}', "bad_row"),
        ("s.json", '[{"id": ""}, {"id": "1"}]', "bad_row"),
        ("s.json", '[{"id": "1"}, 3]', "bad_row"),
        ("wave_test_split1.txt", "a.avi 7\n", "bad_row"),
        ("wave_test_split1.txt", "a b.avi 0\n", "not_in_split"),
        ("c.csv", "id,actions\na,c092 x 1\n", "bad_row"),
        ("c.csv", "id,actions\na,\n", "no_action"),
    ],
)
def test_fault_03_a_bad_row_of_a_published_list_costs_itself_only(name: str, text: str, reason: str) -> None:
    assert [problem.reason for problem in read_list(text.encode(), name).problems] == [reason]


def test_fields_between_blanks_may_be_between_tabs_as_well() -> None:
    assert [one.labels for one in rows("a.mp4 1\nb.mp4\t2\n")] == [("1",), ("2",)]


def test_a_path_may_begin_with_a_bracket_or_file() -> None:
    assert [one.path for one in rows("[a] b.mp4\nfile:///data/c%20d.mp4\n")] == ["[a] b.mp4", "/data/c d.mp4"]
