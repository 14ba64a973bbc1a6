import pytest

from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_names import LabelNames, read_label_names

ABC = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ant\nbee\r\n\ncat\n", ()),
        ("\ufeffant\nbee\ncat", ()),
        ('["ant", "bee", "cat"]', ()),
        ('{"schema": 1, "label_names": ["ant", "bee", "cat"]}', ()),
        ('{"bee": "1", "cat": "2", "ant": "0"}', (0, 1, 2)),
        ('{"2": "bee", "3": "cat", "1": "ant"}', (1, 2, 3)),
        ('{"ant": 3, "bee": 10, "cat": 20}', (3, 10, 20)),  # a subset of the classes keeps its numbers
        ("1 ant\n2 bee\n3 cat\n", (1, 2, 3)),
        ("2,cat\n0,ant\n1,bee\n", (0, 1, 2)),
        ("ant 1\nbee 2\ncat 3\n", (1, 2, 3)),
        ("ant,0\nbee,1\ncat,2\n", (0, 1, 2)),
        ("id,name\n0,ant\n1,bee\n2,cat\n", (0, 1, 2)),
        ("id,key,instances,category\n4,ant,\"['a', 'b']\",x\n7,bee,[],y\n9,cat,[],z\n", (4, 7, 9)),
        ("id,name,videos\n0,ant,9\n1,bee,7\n2,cat,8\n", (0, 1, 2)),
        ("name,videos,class_id\nant,9,1\nbee,7,2\ncat,8,3\n", (1, 2, 3)),
        ("name\tlabel\nant\t0\nbee\t1\ncat\t2\n", (0, 1, 2)),
        ('item {\n  name: "ant"\n  id: 1\n}\nitem { name: "bee" id: 2 }\nitem {name: "cat" label_id: 5}', (1, 2, 5)),
        ('[{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}, {"id": 3, "name": "cat"}]', (1, 2, 3)),
        ("c000 ant\nc001 bee\nc002 cat\n", (0, 1, 2)),
        *((f"1{mark}ant\n2{mark}bee\n3{mark}cat\n", (1, 2, 3)) for mark in (". ", ") ", ": ", " - ", ".\t")),
        ("0\tant\n1\tbee\n2\tcat\n", (0, 1, 2)),
    ],
)
def test_fault_45_names_are_read_with_their_numbers(text: str, numbers: tuple[int, ...]) -> None:
    names = read_label_names(text.encode(), "labels")
    assert (names.names, names.numbers) == (ABC, numbers)


def test_codes_stand_for_names() -> None:
    assert read_label_names(b"c000 Holding some clothes\nc001 Sitting", "x").codes == ("c000", "c001")


def test_numbers_that_belong_to_the_names_are_no_ids() -> None:
    assert read_label_names(b'["50 m freestyle", "100 m butterfly"]', "x").names == (
        "50 m freestyle",
        "100 m butterfly",
    )
    with pytest.raises(DatasetError, match="numbers before the names"):
        read_label_names(b"50 m freestyle\n100 m butterfly\n", "x")


@pytest.mark.parametrize("text", ["", "ant\nant\n", '{"ant": "x"}', "[1", "\xff", '{"a": 1, "b": 1}'])
def test_what_holds_no_label_names_is_told(text: str) -> None:
    with pytest.raises(DatasetError, match="labels: "):
        read_label_names(text.encode("latin-1"), "labels")


def test_lines_that_look_like_json_are_names() -> None:
    assert read_label_names(b'"ant"\n"', "labels").names == ('"ant"', '"')


def test_lines_of_names_end_as_those_of_lists_do() -> None:
    assert read_label_names("ant\u2028eater\r\nbee\rcat\n".encode(), "labels").names == ("ant\u2028eater", "bee", "cat")


@pytest.mark.parametrize(
    ("names", "numbers", "first"),
    [
        (LabelNames(ABC, (1, 2, 3)), {1, 2, 3}, 1),
        (LabelNames(ABC, (1, 2, 3)), {2}, 1),
        (LabelNames(ABC, (0, 1, 2)), {1, 2}, 0),
        (LabelNames(ABC), {0, 2}, 0),
        (LabelNames(ABC), {0, 3}, 0),
        (LabelNames(ABC, base=1), {1, 2, 3}, 1),
        (LabelNames(ABC, (0, 1, 2), base=1), {1, 2, 3}, 1),
        (LabelNames(ABC, (1, 2, 3), base=0), {0}, 0),
        (LabelNames(ABC), {9}, 0),
        (LabelNames(ABC, (1, 2, 3)), {9}, 1),  # in no reading a class: unknown, not ambiguous
    ],
)
def test_fault_45_numbers_mean_the_files_own(names: LabelNames, numbers: set[int], first: int) -> None:
    assert names.ids_of(numbers) == {first: 0, first + 1: 1, first + 2: 2}


def test_a_gap_between_numbers_shifts_nothing() -> None:
    assert LabelNames(ABC, (3, 10, 20)).ids_of({10}) == {3: 0, 10: 1, 20: 2}
    assert LabelNames(ABC, (0, 5, 9)).ids_of({1, 2}) == {0: 0, 5: 1, 9: 2}  # unknown, and not counted from 1


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (LabelNames(ABC), {1, 2, 3}),
        (LabelNames(ABC), {1, 2}),
        (LabelNames(ABC, (1, 2, 3)), {0, 1, 2}),
        (LabelNames(ABC, (0, 1, 2)), {1, 2, 3}),
        (LabelNames(ABC), {1, 2, 3, 99}),  # a stray number decides nothing
        (LabelNames(ABC), {1, 2, 99}),
        (LabelNames(ABC, (1, 2, 3)), {0, 1, 2, 99}),
        (read_label_names(b'{"label_names": ["ant", "bee", "cat"]}', "dataset.json"), {1, 2, 3}),
        (read_label_names(b'{"label_names": ["ant", "bee", "cat"]}', "dataset.json"), {1, 2}),  # neither end: 0, 3
    ],
)
def test_fault_45_numbers_with_two_readings_are_refused_with_both(names: LabelNames, numbers: set[int]) -> None:
    with pytest.raises(DatasetError, match=r"(?s)from 0.*--label-base 0.*--label-base 1"):
        names.ids_of(numbers)


@pytest.mark.parametrize(
    ("names", "numbers", "readings"),
    [
        (LabelNames(ABC, (1, 2, 3)), {1, 2}, "from 1: 1 is 'bee' if they count from 0, 'ant' if they count from 1"),
        (LabelNames(ABC, (0, 1, 2)), {2}, "from 0: 2 is 'cat' if they count from 0, 'bee' if they count from 1"),
        (LabelNames(ABC, (1, 2, 3)), {1, 3}, ""),
        (LabelNames(ABC, (0, 1, 2)), {0, 1}, ""),
        (LabelNames(ABC, (3, 10, 20)), {3}, ""),
        (LabelNames(ABC, (1, 2, 3), base=1), {1}, ""),
        (LabelNames(ABC, (1, 2, 3)), set(), ""),
    ],
)
def test_fault_45_the_files_own_numbers_that_fit_another_base_are_shown_with_both_readings(
    names: LabelNames, numbers: set[int], readings: str
) -> None:
    note = names.note(numbers)
    assert bool(note) == bool(readings)
    assert readings in note
