import pytest

from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_ids import label_ids, read_label_names


def test_numbers_stay_and_words_are_sorted() -> None:
    assert label_ids([("7",), ("2",)]).names == ()
    assert label_ids([("7",), ("2",)]).number == {"7": 7, "2": 2}
    ids = label_ids([("dog", "7"), ("cat",)])
    assert ids.names == ("7", "cat", "dog")
    assert [ids.number[name] for name in ids.names] == [0, 1, 2]


def test_fixed_names_give_their_order_and_others_are_unknown() -> None:
    ids = label_ids([("dog",), ("1",), ("bird",), ("3",)], fixed=["dog", "cat", "ant"])
    assert ids.names == ("dog", "cat", "ant")
    assert (ids.number["dog"], ids.number["1"]) == (0, 1)
    assert ids.unknown == {"bird", "3"}


def test_appended_names_come_after_the_old_ones() -> None:
    ids = label_ids([("ant",), ("dog",)], continued=["cat", "dog"])
    assert ids.names == ("cat", "dog", "ant")
    assert label_ids([("5",)], continued=["cat"]).names == ("cat", "5")
    assert label_ids([("5",)], continued=[]).names == ()
    with pytest.raises(DatasetError, match="are numbers, new ones are words"):
        label_ids([("ant",)], continued=[])
    with pytest.raises(DatasetError, match="do not begin with"):
        label_ids([], fixed=["dog", "cat"], continued=["cat"])


@pytest.mark.parametrize(
    "text",
    [
        "ant\nbee\r\n\ncat\n",
        "\ufeffant\nbee\ncat",
        '["ant", "bee", "cat"]',
        '{"bee": "1", "cat": "2", "ant": "0"}',
        '{"schema": 1, "label_names": ["ant", "bee", "cat"]}',
    ],
)
def test_label_names_are_read_from_lines_and_json(text: str) -> None:
    assert read_label_names(text.encode(), "labels") == ("ant", "bee", "cat")


@pytest.mark.parametrize("text", ["", "ant\nant\n", '{"ant": 1}', '{"ant": "x"}', '"ant"\n"', "[1", "\xff"])
def test_what_holds_no_label_names_is_told(text: str) -> None:
    data = text.encode("latin-1")
    if text == '"ant"\n"':
        assert read_label_names(data, "labels") == ('"ant"', '"')
        return
    with pytest.raises(DatasetError, match="labels: "):
        read_label_names(data, "labels")
