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
from preprocess.dataset.label_cells import MAX_ID, MISSING, number_of

Array = Any  # a pa.Array; the stubs of pyarrow do not know which
SHOWN = 10  # so many of a list stand in a message


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


def united_labels(datasets: Sequence[Dataset], *, option: str = "data") -> Labels:
    """Unite the datasets' labels by name: the first dataset's keep their numbers, new ones follow.

    Args:
        datasets: in their order.
        option: section of the command line that they come from, for messages.

    Raises:
        DatasetError: the labels of one dataset have names, those of another are mere numbers.
    """
    named = [dataset for dataset in datasets if dataset.label_names]
    numbered = [dataset for dataset in datasets if not dataset.label_names and len(dataset.label_values)]
    if named and numbered:
        raise DatasetError(
            f"the labels of {named[0].location} have names, those of {numbered[0].location} are numbers: nobody knows "
            f"which are the same. Give both by name in a file: --{option}.labels FILE"
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
    spaces). All samples of a name get its labels; of two rows for one sample the first counts. Names that are the
    datasets' own keep their numbers; names that are all new are numbered in alphabetical order.

    Raises:
        DatasetError: the file cannot be read, has other columns, no row that matches a sample, or a label that is none.
    """
    path = Path(path)
    table = _read_table(path)
    samples, of_row = _sample_column(path, table, datasets)
    labels = _label_column(path, table)
    lengths = pc.list_value_length(labels).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers, names = _numbered(path, labels.flatten(), np.repeat(np.arange(len(table)), lengths), datasets)

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
            f"(--{option}.select.names FILE), rename them with --{option}.labels FILE, or finetune a model that "
            "has them (--model.class_names)"
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


def _label_column(path: Path, table: pa.Table) -> Array:
    """Return a list of labels per row; numbers or strings."""
    given = [name for name in ("label", "labels") if name in table.column_names]
    if len(given) != 1:
        columns = " and ".join(given) or "neither among " + ", ".join(table.column_names)
        raise DatasetError(f"{path}: give one column `label` (one per sample) or `labels` (several); it has {columns}")
    column: Array = _one(table[given[0]])
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.fill_null([])
        lengths, flat = pc.list_value_length(column).to_numpy(zero_copy_only=False), column.flatten()
    elif given == ["labels"]:
        column = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column.cast(pa.string()).fill_null("")))
        lengths, flat = pc.list_value_length(column).to_numpy(), column.flatten()
    else:
        lengths, flat = np.ones(len(column), np.int64), column
    if pa.types.is_boolean(flat.type):
        raise DatasetError(f"{path}: its labels are true and false; give whole numbers or names")
    text: Array = pc.utf8_trim_whitespace(flat.cast(pa.string()).fill_null(""))
    there = pc.invert(pc.is_in(pc.utf8_lower(text), pa.array(sorted(MISSING))))
    row = np.repeat(np.arange(len(column)), lengths)[there.to_numpy(zero_copy_only=False)]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(column)))])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), text.filter(there))


def _numbered(path: Path, text: Array, row: np.ndarray, datasets: Sequence[Dataset]) -> tuple[np.ndarray, list[str]]:
    """Return the numbers of all labels, concatenated, and the labels' names; `row` is for messages."""
    try:
        names_before = united_labels(datasets).names
    except DatasetError:  # their own labels cannot be united: the file is the remedy
        names_before = []
    if not len(text):
        raise DatasetError(f"{path}: no labels; give whole numbers or names")
    encoded = text.dictionary_encode()
    words, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)

    code_of = {word: code for code, word in enumerate(words)}

    def first(chosen: Sequence[str]) -> tuple[str, str]:
        at = int(np.isin(codes, [code_of[word] for word in chosen]).argmax())
        return _where(path, int(row[at])), words[codes[at]]

    known = {name: number for number, name in enumerate(names_before)}
    numbers = {word: number for word in words if (number := number_of(word)) is not None}
    strangers = [word for word in words if word not in known]
    if not strangers:
        return np.array([known[word] for word in words])[codes], names_before
    if len(numbers) == len(words):
        most = len(names_before) - 1 if names_before else MAX_ID
        if wrong := [word for word in words if numbers[word] > most]:
            where, word = first(wrong)
            names = ", the datasets' labels; names can be new" if names_before else ""
            raise DatasetError(f"{where}: label {word}; numbers must be 0 to {most}{names}")
        return np.array([numbers[word] for word in words])[codes], names_before
    if len(strangers) < len(words):
        where, word = first(strangers)
        raise DatasetError(
            f"{where}: label {word!r} is no label of the datasets, though others are: correct it, or give names that "
            "are all new"
        )
    if numbers:
        (where, word), (there, name) = first(list(numbers)), first([word for word in words if word not in numbers])
        raise DatasetError(
            f"{where}: label {word!r} is a number, others are names, such as {name!r} ({there}): correct it, or give "
            "names that are all new"
        )
    ordered = sorted(words)
    id_of = {word: i for i, word in enumerate(ordered)}
    return np.array([id_of[word] for word in words])[codes], ordered


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
