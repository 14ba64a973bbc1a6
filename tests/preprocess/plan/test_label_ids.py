import pytest

from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_ids import label_ids
from preprocess.plan.label_names import LabelNames

PETS = LabelNames(("dog", "cat", "ant"))


def test_numbers_stay_and_words_are_sorted() -> None:
    assert label_ids([("7",), ("2",)]).names == ()
    assert label_ids([("7",), ("2",)]).number == {"7": 7, "2": 2}
    ids = label_ids([("dog", "eel"), ("cat",)])
    assert ids.names == ("cat", "dog", "eel")
    assert [ids.number[name] for name in ids.names] == [0, 1, 2]


@pytest.mark.parametrize("missing", ["-1", "", "nan", "NaN", "-1.0", "None", "NA", "null", "<NA>"])
def test_fault_45_a_missing_label_leaves_the_numbers_of_the_others(missing: str) -> None:
    ids = label_ids([("0",), ("2.0",), ("10",), (missing,), (), ("+3",)])
    assert (ids.names, ids.number) == ((), {"0": 0, "2.0": 2, "10": 10, "+3": 3})
    assert ids.missing == {missing}


def test_among_words_only_what_is_no_word_is_missing() -> None:
    ids = label_ids([("None",), ("cat",), ("-1",), ("nan",)])
    assert (ids.names, ids.missing) == (("None", "cat"), {"-1", "nan"})
    bread = label_ids([("nan",)], fixed=LabelNames(("nan",)))  # if the user says so
    assert (bread.number, bread.missing) == ({"nan": 0}, frozenset())


@pytest.mark.parametrize("labels", [["0", "10", "2", "cat"], ["1", "1.5"], ["3", "1e2"], ["0", "-2"], ["1", "1;2"]])
def test_fault_45_numbers_and_words_are_refused_with_an_example_of_each(labels: list[str]) -> None:
    with pytest.raises(DatasetError, match=rf"'{labels[0]}' at home.*'{labels[-1]}' at home.*--label-kind words"):
        label_ids([(label,) for label in labels], where=lambda label: f"{label!r} at home")
    assert label_ids([(label,) for label in labels], kind="words").names == tuple(sorted(labels))


def test_labels_that_are_to_be_numbers_are_no_words() -> None:
    with pytest.raises(DatasetError, match=r"--label-kind numbers.*'cat'"):
        label_ids([("cat",), ("1",)], kind="numbers")


def test_two_spellings_of_a_number_are_no_two_classes() -> None:
    with pytest.raises(DatasetError, match=r"'01'.*'1'.*--label-kind words"):
        label_ids([("01",), ("1",)])
    assert label_ids([("01",), ("1",)], kind="words").names == ("01", "1")
    assert label_ids([("1",), ("1.0",)]).number == {"1": 1, "1.0": 1}


def test_a_number_that_is_no_id_is_refused() -> None:
    with pytest.raises(DatasetError, match="'2147483648' is too large"):
        label_ids([("2147483648",)])


def test_fixed_names_give_their_order_and_others_are_unknown() -> None:
    ids = label_ids([("dog",), ("0",), ("2.0",), ("bird",), ("3",), ("-1",)], fixed=PETS)
    assert ids.names == ("dog", "cat", "ant")
    assert (ids.number["dog"], ids.number["0"], ids.number["2.0"]) == (0, 0, 2)
    assert (ids.unknown, ids.missing) == ({"bird", "3"}, {"-1"})


def test_fault_45_numbers_of_lists_are_those_of_the_file_of_names() -> None:
    ids = label_ids([("1",), ("3",), ("4",)], fixed=LabelNames(PETS.names, (1, 2, 3)))
    assert (ids.number["1"], ids.number["3"], ids.unknown) == (0, 2, {"4"})
    with pytest.raises(DatasetError, match="two ways"):
        label_ids([("1",), ("3",)], fixed=PETS)


def test_a_code_stands_for_its_name() -> None:
    ids = label_ids([("c001",), ("dog",)], fixed=LabelNames(PETS.names, (0, 1, 2), ("c000", "c001", "c002")))
    assert (ids.number["c001"], ids.number["dog"]) == (1, 0)


def test_appended_names_come_after_the_old_ones() -> None:
    ids = label_ids([("ant",), ("dog",)], continued=["cat", "dog"])
    assert ids.names == ("cat", "dog", "ant")
    assert label_ids([("5",)], continued=[]).names == ()
    assert label_ids([("5",)], continued=["cat", "5"]).number["5"] == 1
    with pytest.raises(DatasetError, match="are numbers, new ones are words"):
        label_ids([("ant",)], continued=[])
    with pytest.raises(DatasetError, match=r"'5'.*'cat' of the dataset.*--label-names"):
        label_ids([("5",)], continued=["cat"])
    with pytest.raises(DatasetError, match="do not begin with"):
        label_ids([], fixed=LabelNames(("dog", "cat")), continued=["cat"])


@pytest.mark.parametrize("word", ["1", "ant"])
def test_fault_45_names_that_would_move_the_numbers_of_a_dataset_are_refused(word: str) -> None:
    for unmoved in (PETS, LabelNames(PETS.names, (0, 1, 2))):
        assert label_ids([("0",), ("1",)], fixed=unmoved, continued=[]).number["1"] == 1
    with pytest.raises(DatasetError, match="the ids would change"):
        label_ids([(word,)], fixed=LabelNames(PETS.names, (1, 2, 3)), continued=[])
    with pytest.raises(DatasetError, match="the ids would change"):
        label_ids([("1",)], fixed=LabelNames(PETS.names, base=1), continued=[])


def test_fault_45_numbers_are_all_names_or_all_ids() -> None:
    numbers = LabelNames(("3", "1", "2"))
    assert label_ids([("1",), ("3",)], fixed=numbers).number["1"] == 1
    with pytest.raises(DatasetError, match=r"names \('1'\).*ids \('0'\).*--label-kind words"):
        label_ids([("0",), ("1",)], fixed=numbers)
    assert label_ids([("0",), ("1",)], fixed=numbers, kind="words").unknown == {"0"}


def test_names_that_are_whole_numbers_are_sorted_by_value() -> None:
    labels = [("10",), ("2",), ("01",), ("1",), ("-1",)]
    assert label_ids(labels, kind="words").names == ("01", "1", "2", "10")
    assert label_ids(labels, kind="words", continued=["3"]).names == ("3", "01", "1", "2", "10")
    assert label_ids([*labels, ("cat",)], kind="words").names == ("01", "1", "10", "2", "cat")
