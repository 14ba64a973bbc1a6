"""Labels of several datasets under one numbering, labels from a file, and what is refused before training."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.samples.corpus import Corpus, check_labels, open_corpus
from pipelines.samples.labels import Labels, numbered_as, read_labels
from preprocess.dataset.index import DatasetError
from tests.support.datasets import SAMPLES, build_named

NAMES = [name for name, *_ in SAMPLES]


@pytest.fixture(scope="module")
def plain(shards: Path) -> Corpus:
    """Labels are the numbers 0 to 3."""
    return open_corpus([shards])


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    """Two datasets whose labels have names, one of them common to both: (a, walk, run) and (run, swim)."""
    root = tmp_path_factory.mktemp("named")
    both = (build_named(root / "a", {"a0": "walk", "a1": "run"}), build_named(root / "b", {"b0": "run", "b1": "swim"}))
    return open_corpus([both[0]]), open_corpus([both[1]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="latin-1")
    return path


def by_name(corpus: Corpus, labels: Labels) -> dict[str, list[int]]:
    return {corpus.name(row): labels.of(row) for row in range(len(corpus))}


def test_names_of_several_datasets_are_united(named: tuple[Corpus, Corpus]) -> None:
    a, b = named
    both = Corpus([*a.datasets, *b.datasets])
    assert both.label_names == [*a.label_names, "swim"]
    told = {both.name(row): [both.label_names[i] for i in both.labels_of(row)] for row in range(len(both))}
    assert told == {"a0": ["walk"], "a1": ["run"], "b0": ["run"], "b1": ["swim"]}
    assert both.num_classes == 3
    assert Corpus([*b.datasets, *a.datasets]).label_names[:2] == b.label_names


def test_labels_take_the_numbers_of_a_model_by_name(plain: Corpus, named: tuple[Corpus, Corpus]) -> None:
    classes = ["swim", "walk", "run"]
    for corpus in named:
        for order in (classes, corpus.label_names[::-1]):
            renumbered = numbered_as(corpus.labels, order)
            for row in range(len(corpus)):
                assert [order[i] for i in renumbered.of(row)] == [corpus.label_names[i] for i in corpus.labels_of(row)]
    with pytest.raises(DatasetError, match=r"1 classes of the dataset are none of the model's 2: 'swim'"):
        numbered_as(named[1].labels, ["walk", "run"])
    without = numbered_as(named[1].labels, ["walk", "run"], rows=np.array([0]))
    assert (without.of(0), without.of(1)) == ([1], [-1])  # b1 swims, and takes no part
    with pytest.raises(DatasetError, match="'swim'"):
        numbered_as(named[1].labels, ["walk", "run"], rows=np.array([1]))
    with pytest.raises(DatasetError, match=r"the dataset's classes have names and the model's are mere numbers"):
        numbered_as(named[0].labels, [])
    assert numbered_as(plain.labels, []) is plain.labels
    with pytest.raises(DatasetError, match=r"the model's classes have names.*--data\.labels FILE"):
        numbered_as(plain.labels, classes)


def test_the_number_of_classes_goes_with_the_labels(named: tuple[Corpus, Corpus]) -> None:
    corpus = Corpus(named[1].datasets)
    assert corpus.num_classes == 2
    corpus.labels = numbered_as(corpus.labels, ["swim", "jump", "walk", "run"])
    assert corpus.num_classes == 4


def test_numbers_stay_numbers_and_are_not_mixed_with_names(plain: Corpus, named: tuple[Corpus, Corpus]) -> None:
    twice = Corpus([*plain.datasets, *plain.datasets])
    assert [twice.labels_of(row) for row in range(28)] == [plain.labels_of(row) for row in range(14)] * 2
    with pytest.raises(DatasetError, match=r"have names.*are numbers.*--data\.labels FILE"):
        Corpus([*plain.datasets, *named[0].datasets])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_replaces_the_labels_and_tells_what_did_not_match(plain: Corpus, tmp_path: Path, kind: str) -> None:
    rows = {NAMES[3]: 1, "stranger": 2, NAMES[5]: 0, NAMES[7]: 2}
    frame = pd.DataFrame({"name": [*rows, NAMES[3]], "label": [*rows.values(), 9], "remark": "x"})
    path = tmp_path / f"labels.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    labels = read_labels(path, plain.datasets)
    expected = {name: [rows[name]] if name in rows else [] for name in NAMES}
    assert by_name(plain, labels) == expected
    assert labels.note == (
        f"{path}: 5 rows, 1 match no sample, 1 repeat another; 3 samples labelled, 11 without a label"
    )
    corpus = open_corpus([plain.datasets[0].root], labels=path)
    assert (corpus.num_classes, corpus.has_multiple_labels) == (3, False)


def test_several_labels_a_sample_by_key(plain: Corpus, tmp_path: Path) -> None:
    keys = [plain.key(row) for row in range(len(plain))]
    text = f"key,labels\n{keys[2]},3 1\n{keys[4]},\n\n{keys[6]}, 2  0 1 \n"
    labels = read_labels(write(tmp_path / "l.csv", text), plain.datasets)
    assert {row: labels.of(row) for row in range(14) if labels.of(row)} == {2: [3, 1], 6: [2, 0, 1]}
    path = tmp_path / "l.parquet"
    pd.DataFrame({"key": [keys[2], keys[4]], "labels": [["jump", "fall"], []]}).to_parquet(path)
    labels = read_labels(path, plain.datasets)
    assert labels.names == ["fall", "jump"]
    assert [labels.of(2), labels.of(4)] == [[1, 0], []]


def test_names_keep_their_numbers_and_new_ones_are_numbered(named: tuple[Corpus, Corpus], tmp_path: Path) -> None:
    a, _ = named
    labels = read_labels(write(tmp_path / "known.csv", "name,label\na1,walk\n"), a.datasets)
    assert (labels.names, labels.of(1), labels.of(0)) == (a.label_names, [a.label_names.index("walk")], [])
    labels = read_labels(write(tmp_path / "new.csv", "name,label\na0,sits down\na1,gets up\n"), a.datasets)
    assert (labels.names, labels.of(0), labels.of(1)) == (["gets up", "sits down"], [1], [0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,label\na0,walk\n\na1,wlak\n", r"l\.csv, line 4: label 'wlak' is no label of the datasets"),
        ("name,label\na0,0\na1,7\n", r"l\.csv, line 3: label 7; numbers must be 0 to 1"),
        ("name,label,remark\na0,0,\xe9\na1,7,x\n", r"l\.csv, line 3: label 7; numbers must be 0 to 1"),  # no UTF-8
        ("name,label\na0,-1\n", r"l\.csv: no labels"),
        ("name,label\na0,2147483648\n", r"l\.csv, line 2: label 2147483648; numbers must be 0 to 1"),
        ("name,label\na0,sit\na1,1O\n\na1,3\n", r"l\.csv, line 5: label '3' is a number, others are names"),
        ("name,tag\na0,1\n", r"l\.csv: give one column `label`.*neither among name, tag"),
        ("video,label\na0,1\n", r"l\.csv: no column `name` or `key` among video, label"),
        ("name,label\nzz,1\n", r"none of its 1 rows matches a sample; the first row says zz, the first sample is a0"),
        ("name,label\na0\n", r"l\.csv: cannot be read as labels .*Expected 2 columns"),
        ("name,label\n", r"l\.csv: no labels"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    named: tuple[Corpus, Corpus], tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(DatasetError, match=told):
        read_labels(write(tmp_path / "l.csv", text), named[0].datasets)


def test_a_file_that_is_missing_or_of_keys_for_two_datasets_is_refused(
    named: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.csv: cannot be read"):
        read_labels(tmp_path / "nowhere.csv", named[0].datasets)
    path = write(tmp_path / "keys.csv", "key,label\n000000,1\n")
    with pytest.raises(DatasetError, match="keys belong to one dataset, and there are 2"):
        read_labels(path, [*named[0].datasets, *named[1].datasets])


def test_labels_that_are_true_and_false_are_refused(plain: Corpus, tmp_path: Path) -> None:
    pd.DataFrame({"name": NAMES[:2], "label": [True, False]}).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(DatasetError, match=r"l\.parquet: its labels are true and false"):
        read_labels(tmp_path / "l.parquet", plain.datasets)


def _labelled(plain: Corpus, *samples: list[int]) -> Corpus:
    """The corpus with these labels of its first samples; the others have none."""
    padded = [*samples, *[[]] * (len(plain) - len(samples))]
    values = np.array([label for sample in padded for label in sample], dtype=np.int32)
    labels = Labels(np.cumsum([0, *map(len, padded)]), values, ["walk", "run", "sit", "fall"])
    return Corpus(plain.datasets, labels=labels)


def test_fault_39_labels_out_of_range_and_missing_classes_are_refused_with_the_list(plain: Corpus) -> None:
    check_labels(_labelled(plain, [0], [1, 2], []), np.arange(14), num_classes=3, multi_label=True)
    corpus = _labelled(plain, [0], [5, 1], [], [2], [7])
    first, second = (f"{label} ({corpus.name(row)}, key {corpus.key(row)})" for label, row in ((5, 1), (7, 4)))
    told = f"2 labels are out of range for 4 classes (0 to 3): {first}, {second}."
    with pytest.raises(DatasetError, match=re.escape(told)):
        check_labels(corpus, np.arange(14), num_classes=4, multi_label=True, missing_classes="refuse")
    with pytest.raises(DatasetError, match=r"3 of 8 classes have no training sample: 3 \(fall\), 4, 6\."):
        check_labels(corpus, np.arange(14), num_classes=8, multi_label=True, missing_classes="refuse")
    # Samples that do not take part are no training samples, and are not checked.
    with pytest.raises(DatasetError, match=r"1 of 3 classes have no training sample: 1 \(run\)"):
        check_labels(corpus, np.array([0, 3]), num_classes=3, multi_label=False, missing_classes="refuse")
    # Validation need not have every class, but its labels must fit as well.
    check_labels(corpus, np.array([0, 3]), num_classes=3, multi_label=False)
    with pytest.raises(DatasetError, match=re.escape(told)):
        check_labels(corpus, np.arange(14), num_classes=4, multi_label=True)


def test_samples_without_one_label_each_are_refused_where_each_must_have_one(plain: Corpus) -> None:
    corpus = _labelled(plain, [0], [1, 2], [], [2])
    odd = ", ".join(f"{corpus.name(row)}, key {corpus.key(row)} ({count})" for row, count in ((1, 2), (2, 0)))
    with pytest.raises(DatasetError, match=re.escape(f"2 of 4 samples do not have one label each: {odd}.")):
        check_labels(corpus, np.arange(4), num_classes=3, multi_label=False)


def test_fault_39_missing_classes_are_listed_in_a_warning(plain: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    corpus = _labelled(plain, [0], [3])
    check_labels(corpus, np.array([0, 1]), num_classes=174, multi_label=False, missing_classes="warn")
    assert "172 of 174 classes have no training sample: 1 (run), 2 (sit), 4" in caplog.text


@pytest.mark.parametrize(
    ("samples", "num_classes", "counting", "told"),
    [
        ([[1], [2], [3]], 4, "The labels count from 1: ids count from 0", r"classes have no training sample: 0\."),
        (
            [[1], [2], [3]],
            3,
            "They count from 1, and ids count from 0",
            "Give --model.num_classes 4, .* --val.labels FILE",
        ),
        ([[0], [1], [3]], 3, "", "Give --model.num_classes 4, .* --val.labels FILE"),
        ([[1], [2], [4]], 3, "", "Give --model.num_classes 5, .* --val.labels FILE"),
        ([[0], [1], [3]], 4, "", r"classes have no training sample: 2\."),
        ([[0], [1], [-1]], 2, "", r"1 labels are out of range for 2 classes \(0 to 1\): -1 \("),
    ],
)
def test_fault_39_labels_that_count_from_one_are_told_so_and_no_others(
    plain: Corpus, samples: list[list[int]], num_classes: int, counting: str, told: str
) -> None:
    corpus = _labelled(plain, *samples)
    with_names = corpus.labels
    corpus.labels = Labels(with_names.offsets, with_names.values)
    options: dict[str, Any] = {"multi_label": False, "missing_classes": "refuse", "option": "val"}
    with pytest.raises(DatasetError, match=told) as refused:
        check_labels(corpus, np.arange(3), num_classes=num_classes, **options)
    assert counting in str(refused.value)
    assert counting or "count from" not in str(refused.value)
    corpus.labels = with_names  # of names none is the first
    if "training" in told:
        with pytest.raises(DatasetError, match="1 of 4 classes have no training sample") as refused:
            check_labels(corpus, np.arange(3), num_classes=num_classes, **options)
        assert "count from" not in str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "text", "lists", "typed"])
@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2.0", "10.0"], [[2], [10]]),
        (["2", "10"], [[2], [10]]),
        (["-1", "10"], [[], [10]]),
        (["", "10.0"], [[], [10]]),
        (["NaN", " 3 "], [[], [3]]),
    ],
)
def test_fault_45_a_missing_label_or_a_float_permutes_nothing(
    plain: Corpus, tmp_path: Path, kind: str, cells: list[str], expected: list[list[int]]
) -> None:
    names = [plain.name(0), plain.name(1)]
    path = tmp_path / ("l.csv" if kind == "csv" else "l.parquet")
    values: list[object] = [float(cell or "nan") for cell in cells] if kind == "typed" else list(cells)
    if kind == "csv":
        write(path, "name,label\n" + "".join(f"{name},{cell}\n" for name, cell in zip(names, cells, strict=True)))
    else:
        pd.DataFrame({"name": names, "label": [[value] for value in values] if kind == "lists" else values}).to_parquet(
            path
        )
    labels = read_labels(path, plain.datasets)
    assert (labels.names, [labels.of(0), labels.of(1)]) == ([], expected)


@pytest.mark.parametrize("cells", [["2.0", "walk"], ["1.5", "2"], ["1e1", "2"], ["walk", "10"]])
def test_fault_45_numbers_and_words_of_a_file_are_refused_with_an_example_of_each(
    plain: Corpus, tmp_path: Path, cells: list[str]
) -> None:
    path = write(tmp_path / "l.csv", f"name,label\n{plain.name(0)},{cells[0]}\n{plain.name(1)},{cells[1]}\n")
    with pytest.raises(DatasetError, match=r"l\.csv, line [23]: label '[^']+' is a number, others are names, such as "):
        read_labels(path, plain.datasets)
