import json
import math

import pytest

from preprocess.sources.ledger import LedgerError
from preprocess.sources.video_lists import ListRow, VideoList, read_list


def rows(text: str, **options: str) -> list[ListRow]:
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
    with pytest.raises(LedgerError, match="separate them by commas"):
        rows("path start end\na.mp4 0 1\n")


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
    ],
)
def test_fault_03_a_bad_row_has_its_line_and_reason(text: str, reason: str) -> None:
    read = read_list(text.encode(), "list.csv")
    (problem,) = read.problems
    assert (problem.reason, problem.line) == (reason, text.count("\n"))


def test_fault_04_spans_of_one_video_are_no_duplicates() -> None:
    assert len(rows("path,start,end\na.mp4,0,2\na.mp4,2,4\n")) == 2
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


@pytest.mark.parametrize("text", ["", " \n\n", "path,label\n", "[]", "{}", "[1"])
def test_fault_01_what_holds_no_row_is_told(text: str) -> None:
    with pytest.raises(LedgerError, match=r"list\.csv"):
        read_list(text.encode(), "list.csv")
