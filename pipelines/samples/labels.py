"""Labels of the datasets, or of a file that replaces them ─► one numbering of labels over all samples.

labels = read_labels("labels.csv", datasets)      # columns name (or key) and label
labels.of(7)                                      # [3]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from preprocess.dataset.index import Dataset, DatasetError

Array = Any  # a pa.Array; the stubs of pyarrow do not know which
SHOWN = 10  # so many of a list stand in a message
_MISSING = r"^(-1(\.0*)?|[nN]a[nN]|NAN|<NA>|)$"  # as tables spell an empty cell
_MISSING_AMONG_NUMBERS = r"(?i)^(none|null|na|n/a)$"  # among names they may be classes
_NUMBER = r"^\+?(\d{1,9})(\.0*)?$"  # a column of pandas with an empty cell has floats


@dataclass(frozen=True)
class Labels:
    """The labels of N samples: those of sample i are `values[offsets[i]:offsets[i + 1]]`."""

    offsets: np.ndarray  # (N + 1,) int64
    values: np.ndarray  # int32
    names: list[str] = field(default_factory=list)  # by number; empty where labels are numbers only
    note: str = ""  # one line for people, where a file gave the labels

    def of(self, i: int) -> list[int]:
        """Return the labels of sample i, none or more."""
        return self.values[self.offsets[i] : self.offsets[i + 1]].tolist()

    @property
    def per_sample(self) -> np.ndarray:
        """(N,) how many labels a sample has."""
        return np.diff(self.offsets)


def many_hot(labels: Sequence[Sequence[int]], num_classes: int, *, dtype: Any = np.uint8) -> np.ndarray:
    """Return (N, num_classes) of 0 and 1 for the labels of N samples."""
    targets = np.zeros((len(labels), num_classes), dtype=dtype)
    for row, numbers in enumerate(labels):
        targets[row, list(numbers)] = 1
    return targets


def united_labels(datasets: Sequence[Dataset]) -> Labels:
    """Unite the datasets' labels by name: the first dataset's keep their numbers, new ones follow.

    Raises:
        DatasetError: the labels of one dataset have names, those of another are mere numbers.
    """
    named = [dataset for dataset in datasets if dataset.label_names]
    numbered = [dataset for dataset in datasets if not dataset.label_names and len(dataset.label_values)]
    if named and numbered:
        raise DatasetError(
            f"the labels of {named[0].location} have names, those of {numbered[0].location} are numbers: nobody knows "
            "which are the same. Give both by name in a file: --data.labels FILE"
        )
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.label_names))
    if len(datasets) == 1:
        return Labels(datasets[0].label_offsets, datasets[0].label_values, names)
    number = {name: i for i, name in enumerate(names)}
    values = [
        np.array([number[name] for name in dataset.label_names], dtype=np.int32)[dataset.label_values]
        if dataset.label_names
        else dataset.label_values
        for dataset in datasets
    ]
    lengths = [np.diff(dataset.label_offsets) for dataset in datasets]
    return Labels(np.cumsum(np.concatenate([[0], *lengths])), np.concatenate(values), names)


def read_labels(path: str | Path, datasets: Sequence[Dataset]) -> Labels:
    """Read labels from a CSV (with a header) or Parquet file, instead of the datasets'.

    Columns: `name` or `key` of the sample; `label`, one number or name, or `labels`, several (a list, or separated by
    spaces). Empty cells, nan and -1 are no label, and 2.0 is 2. All samples of a name get its labels; of two rows for
    one sample the first counts. Names that are the datasets' own keep their numbers; names that are all new are
    numbered in alphabetical order.

    Raises:
        DatasetError: the file cannot be read, has other columns, no row that matches a sample, or a label that is none.
    """
    path = Path(path)
    table = _read_table(path)
    samples, of_row = _sample_column(path, table, datasets)
    names_before = _names_of(datasets)
    row_of_label, text = _present(*_label_column(path, table), names_before)
    lengths = np.bincount(row_of_label, minlength=len(table))
    numbers, names = _numbered(path, text, row_of_label, names_before)

    codes = of_row.dictionary_encode()
    code_of_row = codes.indices.to_numpy(zero_copy_only=False)
    first_row = np.empty(len(codes.dictionary), dtype=np.int64)
    first_row[code_of_row[::-1]] = np.arange(len(table))[::-1]
    code = _index_in(samples, codes.dictionary)
    if (code < 0).all():
        raise DatasetError(
            f"{path}: none of its {len(table)} rows matches a sample; the first row says {of_row[0]}, the first sample "
            f"is {samples[0]}"
            if len(table)
            else f"{path}: no rows"
        )
    row = np.where(code < 0, 0, first_row[code])
    row_starts = np.cumsum(lengths) - lengths
    lengths = np.where(code < 0, 0, lengths[row])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = numbers[np.repeat(row_starts[row] - offsets[:-1], lengths) + np.arange(offsets[-1])]
    unmatched = len(codes.dictionary) - len(np.unique(code[code >= 0]))
    note = (
        f"{path}: {len(table):,} rows, {unmatched:,} match no sample, {len(table) - len(codes.dictionary):,} repeat "
        f"another; {int((lengths > 0).sum()):,} samples labelled, {int((lengths == 0).sum()):,} without a label"
    )
    return Labels(offsets, values.astype(np.int32), names, note)


def numbered_as(
    labels: Labels, classes: Sequence[str], *, rows: np.ndarray | None = None, option: str = "data"
) -> Labels:
    """Return the same labels under a model's numbers: names are looked up in its classes, plain numbers stay.

    Two datasets number the same names differently as soon as one lacks a class; names are what they share.

    Args:
        labels: of a corpus.
        classes: names by number, as the model was trained; empty if its labels were numbers.
        rows: (n,) samples that take part, None = all; a name that only others have becomes -1.
        option: section of the command line that these samples come from, for messages.

    Raises:
        DatasetError: names that the model has not learned; or one side has names and the other numbers.
    """
    if list(classes) == list(labels.names):
        return labels
    if not labels.names or not classes:
        have, lack = ("the dataset's", "the model's") if labels.names else ("the model's", "the dataset's")
        raise DatasetError(
            f"{have} classes have names and {lack} are mere numbers: nobody knows which are the same. Give the labels "
            f"as {'numbers' if labels.names else 'names'} in a file: --{option}.labels FILE"
        )
    sample = np.repeat(np.arange(len(labels.per_sample)), labels.per_sample)
    values = labels.values if rows is None else labels.values[np.isin(sample, rows)]
    used = [labels.names[i] for i in np.unique(values).tolist()]
    if unknown := [name for name in used if name not in set(classes)]:
        raise DatasetError(
            f"{len(unknown)} classes of the dataset are none of the model's {len(classes)}: "
            f"{listed([repr(name) for name in unknown[:SHOWN]], len(unknown))}. Leave their samples out "
            f"(--{option}.select.names FILE), rename them with --{option}.labels FILE, or finetune a "
            "model that has them (--model.class_names with --data.missing_classes warn)"
        )
    number = {name: i for i, name in enumerate(classes)}
    values = np.array([number.get(name, -1) for name in labels.names], dtype=np.int32)[labels.values]
    return Labels(labels.offsets, values, list(classes), labels.note)


def listed(first: list[str], count: int) -> str:
    return ", ".join(first) + (", …" if count > len(first) else "")


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).combine_chunks()
        strings = dict.fromkeys(("name", "key", "label", "labels"), pa.string())  # 000017 is no number
        convert = pyarrow.csv.ConvertOptions(column_types=strings, strings_can_be_null=False)
        return pyarrow.csv.read_csv(path, convert_options=convert).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: cannot be read as labels ({error}); give a CSV or Parquet file") from error


def _sample_column(path: Path, table: pa.Table, datasets: Sequence[Dataset]) -> tuple[Array, Array]:
    """Return all samples' keys or names, and those of the file's rows."""
    if "key" in table.column_names and len(datasets) == 1:
        samples, column = [dataset.keys for dataset in datasets], "key"
    elif "name" in table.column_names:
        samples, column = [dataset.names for dataset in datasets], "name"
    elif "key" in table.column_names:
        raise DatasetError(f"{path}: keys belong to one dataset, and there are {len(datasets)}: give a column `name`")
    else:
        raise DatasetError(f"{path}: no column `name` or `key` among {', '.join(table.column_names)}")
    joined = pa.chunked_array([chunk for one in samples for chunk in one.chunks], pa.string())
    return _one(joined), _one(table[column]).cast(pa.string()).fill_null("")


def _label_column(path: Path, table: pa.Table) -> tuple[np.ndarray, Array]:
    """Return the row of each label, ascending, and the labels: numbers or strings, null where there is none."""
    given = [name for name in ("label", "labels") if name in table.column_names]
    if len(given) != 1:
        columns = " and ".join(given) or "neither among " + ", ".join(table.column_names)
        raise DatasetError(f"{path}: give one column `label` (one per sample) or `labels` (several); it has {columns}")
    column: Array = _one(table[given[0]])
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if given == ["labels"] and not is_list:
        column = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column.cast(pa.string()).fill_null("")))
        is_list = True
    if not is_list:
        return np.arange(len(column)), column
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(column)), lengths), column.flatten()


def _names_of(datasets: Sequence[Dataset]) -> list[str]:
    try:
        return united_labels(datasets).names
    except DatasetError:  # their own labels cannot be united: the file is the remedy
        return []


def _present(row: np.ndarray, labels: Array, names: Sequence[str]) -> tuple[np.ndarray, Array]:
    """Return row and text of the labels that say something: whole numbers without a fraction, or words.

    One cell without a label, which makes floats or words of a whole column, must not change what the others are.
    """
    text: Array = pc.utf8_trim_whitespace(labels.cast(pa.string()).fill_null(""))
    known = pc.is_in(text, value_set=pa.array(names, pa.string()))
    text = pc.if_else(known, text, pc.replace_substring_regex(text, _NUMBER, r"\1"))
    missing = pc.match_substring_regex(text, _MISSING)
    empty = pc.match_substring_regex(text, _MISSING_AMONG_NUMBERS)
    if pc.all(pc.or_(pc.or_(missing, empty), pc.match_substring_regex(text, _NUMBER))).as_py():
        missing = pc.or_(missing, empty)
    there: Array = pc.or_(known, pc.invert(missing))
    return row[there.to_numpy(zero_copy_only=False)], text.filter(there)


def _numbered(path: Path, text: Array, row: np.ndarray, names_before: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return the numbers of all labels, concatenated, and the labels' names; `row` is for messages."""
    if not len(text):
        raise DatasetError(f"{path}: no labels; give whole numbers or names")
    known = _index_in(text, pa.array(names_before, pa.string()))
    numeric: Array = pc.match_substring_regex(text, r"^-?\d{1,9}$")
    is_number = numeric.to_numpy(zero_copy_only=False)
    if names_before and (known >= 0).all():
        return known, names_before
    if is_number.all():
        numbers = text.cast(pa.int64()).to_numpy(zero_copy_only=False)
        wrong = (numbers < 0) | (numbers >= len(names_before) if names_before else False)
        if wrong.any():
            at = int(wrong.argmax())
            allowed = (
                f"0 to {len(names_before) - 1}, the datasets' labels; names can be new" if names_before else "0 or more"
            )
            raise DatasetError(f"{_where(path, int(row[at]))}: label {numbers[at]}; numbers must be {allowed}")
        return numbers, names_before
    wrong = known < 0 if (known >= 0).any() else is_number
    if wrong.any():
        at = int(wrong.argmax())
        raise DatasetError(
            f"{_where(path, int(row[at]))}: label {str(text[at])!r} is "
            + ("no label of the datasets, though others are" if (known >= 0).any() else "a number, others are names")
            + ": correct it, or give names that are all new"
        )
    names = sorted(set(text.to_pylist()))
    return _index_in(text, pa.array(names)), names


def _index_in(values: Array, among: Array) -> np.ndarray:
    """Return each value's index in `among`; -1 if it is not there."""
    positions: Array = pc.index_in(values, value_set=among)
    return positions.fill_null(-1).to_numpy(zero_copy_only=False)


def _where(path: Path, row: int) -> str:
    """Return file and line of a data row; blank lines count as lines, a Parquet file has none."""
    if path.suffix == ".parquet":
        return f"{path}, row {row + 1}"
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [number for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line]
    return f"{path}, line {lines[row + 1]}"


def _one(column: Array) -> Array:
    """Return the column as one array."""
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)
