from pathlib import Path

import pytest

from preprocess.sources.ledger import Ledger, LedgerRow
from preprocess.sources.ledger import read_ledger as parse
from preprocess.sources.list_records import Delimiter, Header, LedgerError


def read_ledger(path: Path, *, delimiter: Delimiter = "auto", header: Header = "auto") -> Ledger:
    return parse(path.read_bytes(), str(path), delimiter=delimiter, header=header)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.csv"


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("v1 1 24 3\nv2 1 9 0\n", "spaces, no header, 2 rows"),
        ("v1  1\t24 3\nv2 1 9 0", "tabs, no header, 2 rows"),
        ("v1,1,24,3\nv2,1,9,0\n", "commas, no header, 2 rows"),
        ("v1, 1, 24, 3\r\nv2, 1, 9, 0\r\n", "commas, no header, 2 rows"),
        ("video_name,start_frame,end_frame,class\nv1,1,24,3\nv2,1,9,0\n", "commas, a header, 2 rows"),
        ("name start end label\n\nv1 1 24 3\n\nv2 1 9 0\n", "spaces, a header, 2 rows"),
        ("v1;1;24;3\nv2;1;9;0", "semicolons, no header, 2 rows"),
    ],
)
def test_fault_02_every_dialect_gives_the_same_rows(ledger: Path, text: str, dialect: str) -> None:
    if "tabs" in dialect:
        text = text.replace("v1  1\t24 3", "v1\t1\t24\t3").replace("v2 1 9 0", "v2\t1\t9\t0")
    for mark in ("", "\ufeff"):
        ledger.write_bytes((mark + text).encode())
        read = read_ledger(ledger)
        assert [(row.name, row.first, row.stop, row.labels) for row in read.rows] == [
            ("v1", 1, 25, ("3",)),
            ("v2", 1, 10, ("0",)),
        ]
        assert read.problems == ()
        assert read.dialect == f"ledger.csv: {dialect}"


def test_ranges_become_half_open_and_labels_stay_words(ledger: Path) -> None:
    ledger.write_text('a/b 1000 1100 3 7 9\n"two words" 0 0 cat\nnone 2 3\n')
    assert read_ledger(ledger).rows == (
        LedgerRow(1, "a/b", 1000, 1101, ("3", "7", "9")),
        LedgerRow(2, "two words", 0, 1, ("cat",)),
        LedgerRow(3, "none", 2, 4, ()),
    )


def test_fault_02_overrides_win_over_the_guess(ledger: Path) -> None:
    ledger.write_text("a,b 1 2 0\nc 1 2 0\n")
    assert [row.name for row in read_ledger(ledger, delimiter="space").rows] == ["a,b", "c"]
    ledger.write_text("a 1 2 0\nc 1 2 0\n")
    assert [row.line for row in read_ledger(ledger, header="yes").rows] == [2]
    ledger.write_text("name start end\nc 1 2\n")
    (problem,) = read_ledger(ledger, header="no").problems
    assert problem.line == 1


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        ("v 1", "bad_row", "2 columns"),
        ("v one 24 0", "bad_row", "of 'v one': negative or reversed"),
        ("v 1 24.5 0", "bad_row", "'24.5'"),
        ("v -1 24 0", "bad_row", "-1"),
        ("v 24 1 0", "bad_row", "reversed"),
        ("v 1 24 -3", "bad_row", "label -3"),
        ("v 1 24 99999999999", "bad_row", "99999999999"),
        ("v 0 99999999999999999999 0", "bad_row", "99999999999999999999 is too large"),
        (f"{300 * 'v'} 1 24 0", "unsafe_name", "longer than 255 bytes"),
        ("../v 1 24 0", "unsafe_name", "leaves the root"),
        ("/v 1 24 0", "unsafe_name", "leaves the root"),
        ("v/../../w 1 24 0", "unsafe_name", "leaves the root"),
        ("v\x00 1 24 0", "unsafe_name", "control character"),
        ("good 1 24 0", "duplicate_row", "line 1"),
    ],
)
def test_fault_03_a_bad_row_is_told_with_line_and_value(ledger: Path, row: str, reason: str, told: str) -> None:
    ledger.write_text(f"good 1 24 0\n\n{row}\nalso 1 24 0\n")
    read = read_ledger(ledger)
    assert [good.name for good in read.rows] == ["good", "also"]
    (problem,) = read.problems
    assert (problem.line, problem.reason) == (3, reason)
    assert told in problem.message


def test_fault_04_segments_of_one_video_are_no_duplicates(ledger: Path) -> None:
    ledger.write_text("v 1 10 0\nv 11 20 0\nv 1 10 1\nv 1 10 0\n")
    read = read_ledger(ledger)
    assert len(read.rows) == 3
    assert [(one.line, one.reason, one.message) for one in read.problems] == [
        (4, "duplicate_row", "the same as line 1")
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "line 1: the file is empty"), (b" \n\n", "line 1"), (b"v 1 2\n\xff 1 2\n", "line 2: not UTF-8")],
)
def test_fault_01_an_unreadable_ledger_names_file_and_line(ledger: Path, data: bytes, message: str) -> None:
    ledger.write_bytes(data)
    with pytest.raises(LedgerError, match=message) as caught:
        read_ledger(ledger)
    assert str(ledger) in str(caught.value)


def test_a_header_alone_is_no_ledger(ledger: Path) -> None:
    ledger.write_text("name,start,end,label\n")
    with pytest.raises(LedgerError, match="only a header"):
        read_ledger(ledger)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("path,label,start_frame,end_frame\nv,7,0,9\n", LedgerRow(2, "v", 0, 10, ("7",))),
        ("label,name,first,last\n7,v,0,9\n", LedgerRow(2, "v", 0, 10, ("7",))),
        ("Folder;Class;First Frame;Last Frame\nv;7;0;9\n", LedgerRow(2, "v", 0, 10, ("7",))),
        ("name,start,end,split,label\nv,0,9,validation,7\n", LedgerRow(2, "v", 0, 10, ("7",), "val")),
        ("name,start,end,label,weather\nv,0,9,7,rain\n", LedgerRow(2, "v", 0, 10, ("7",))),
        ("name,start,end,emotion\nv,0,9,7\n", LedgerRow(2, "v", 0, 10, ("7",))),
        ("name,total_frames,label\nv,10,7\n", LedgerRow(2, "v", 0, 0, ("7",), total=10)),
        ("frame_dir total_frames\nv 10\n", LedgerRow(2, "v", 0, 0, (), total=10)),
    ],
)
def test_fault_45_a_header_says_what_the_columns_of_a_ledger_are(ledger: Path, text: str, row: LedgerRow) -> None:
    ledger.write_text(text)
    assert read_ledger(ledger).rows == (row,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,start_sec,end_sec,label\nv,0,9,7\n", "a ledger counts frames"),
        ("label,begin,end\n7,0,9\n", "no column names the folder"),
        ("name,label,start,end,start_of_action\nv,7,0,9,4\n", None),
    ],
)
def test_fault_45_a_header_that_fits_no_ledger_is_refused(ledger: Path, text: str, told: str | None) -> None:
    ledger.write_text(text)
    if told is None:
        assert len(read_ledger(ledger).rows) == 1  # there is a start, so nothing is open
        return
    with pytest.raises(LedgerError, match=f"{told}.*--columns"):
        read_ledger(ledger)


def test_columns_of_a_ledger_are_told_as_they_are_understood(ledger: Path) -> None:
    ledger.write_text("name,start,end,label,weather\nv,0,9,7,rain\n")
    assert (
        "read as path = name, first = start, last = end, label = label, ignored: weather" in read_ledger(ledger).dialect
    )
    read = parse(b"v 0 9 7\n", "ledger.csv", columns=["path=1", "first=2", "last=3", "ignore=4"])
    assert read.dialect.endswith("read as path = 1, first = 2, last = 3, ignored: 4")


def test_columns_of_a_ledger_may_be_named_by_number(ledger: Path) -> None:
    ledger.write_text("7 v 0 9\n")
    read = parse(ledger.read_bytes(), str(ledger), columns=["label=1", "path=2", "first=3", "last=4"])
    assert read.rows == (LedgerRow(1, "v", 0, 10, ("7",)),)
    unlabelled = parse(ledger.read_bytes(), str(ledger), columns=["path=2", "first=3", "last=4"])
    assert unlabelled.rows == (LedgerRow(1, "v", 0, 10, ()),)  # what is not named is ignored
