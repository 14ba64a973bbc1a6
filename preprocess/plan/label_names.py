"""The names of classes are read from the files in which datasets publish them: a file ─► names, numbers and codes.

names = read_label_names(b"1 ApplyEyeMakeup\\n2 ApplyLipstick\\n", "classInd.txt")
names.names, names.numbers              # ("ApplyEyeMakeup", "ApplyLipstick"), (1, 2): lists mean these numbers

Understood are one name per line, with or without its number before or after it, tables with a column of numbers, the
pbtxt of AVA, and JSON: a dataset.json, a list, {name: number} or {number: name}. Ids are positions in the order of the
numbers, or in that of the file.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from preprocess.dataset.schema import DatasetError

_REMEDY = "give one name per line, `number name` per line, or a dataset.json"
_NAME_COLUMNS = ("name", "label_name", "class_name", "key", "label", "class", "category", "verb", "noun", "action")
_NUMBER_COLUMN = re.compile(r"(.*_)?(id|index|idx|number|label|class)")
# 1 ApplyEyeMakeup; 0,name; 1. name; 1) name; 1 - name; c000 Holding some clothes
_NUMBERED = re.compile(r"([A-Za-z]?)([0-9]+)(?:\s+-\s+|[.)]?[\s,;:]+)(\S.*)")
_NUMBER_LAST = re.compile(r"(.*\S)\s*[\s,;:]\s*([0-9]+)")
_PBTXT_ITEM = re.compile(r"\w+\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class LabelNames:
    """The names of ids 0, 1, ..., and what stands for them in lists."""

    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()  # of each name in its file; empty if it has none
    codes: tuple[str, ...] = ()  # of each name in its file, such as c092; empty if it has none
    base: int | None = None  # the number that lists give to the first name, if the user has said so

    @property
    def first(self) -> int:
        """Return the number that lists give to the first name."""
        return self.base if self.base is not None else self.numbers[0] if self.numbers else 0

    def ids_of(self, numbers: set[int]) -> dict[int, int]:
        """Return the id of every number that stands for a name.

        Args:
            numbers: those that occur in lists.

        Raises:
            DatasetError: they can be read in two ways.
        """
        listed = self.numbers or tuple(range(len(self.names)))
        if self.base is not None:
            return {number - listed[0] + self.base: id for id, number in enumerate(listed)}
        # Numbers that are not all those of the names may count from 1 where the names count from 0, or reversed.
        # One stray number must not decide: doubtful is what leaves more of them without a name than another reading.
        other, counts = 1 - listed[0], listed == tuple(range(listed[0], listed[0] + len(listed)))
        strange, if_other = len(numbers - set(listed)), len(numbers - set(range(other, other + len(listed))))
        is_open = not (self.numbers or 0 in numbers) and if_other <= strange < len(numbers)
        if counts and (is_open or if_other < strange):
            raise DatasetError(self._two_readings(numbers))
        return {number: id for id, number in enumerate(listed)}

    def note(self, numbers: set[int]) -> str:
        """Return a line with both readings, if the numbers fit the file's own and, from another base, its names too.

        Args:
            numbers: those that occur in lists.
        """
        if self.base is not None or not self.numbers or not numbers:
            return ""
        of_file, other = (range(base, base + len(self.names)) for base in (self.first, 1 - self.first))
        if self.numbers != tuple(of_file) or not numbers <= set(of_file).intersection(other):
            return ""
        return f"the numbers of the labels are those of the label names, from {self.first}: {self._readings(numbers)}"

    def _two_readings(self, numbers: set[int]) -> str:
        return f"the numbers of the labels can be read in two ways: {self._readings(numbers)}"

    def _readings(self, numbers: set[int]) -> str:
        number = min(numbers - {0}, default=0)
        readings = [
            f"{self.names[number - base]!r} if they count from {base}"
            for base in (0, 1)
            if 0 <= number - base < len(self.names)
        ]
        return (
            f"{number} is {', '.join(readings)}; give --label-base 0 or --label-base 1, the number that stands for the "
            f"first name, {self.names[0]!r}"
        )


def read_label_names(data: bytes, source: str) -> LabelNames:
    """Return the names in a file.

    Args:
        data: the file's bytes.
        source: its name, for messages.

    Raises:
        DatasetError: it is none of what is understood, or a name or number occurs twice.
    """
    try:
        text = data.decode("utf-8-sig")
        parsed = _from_json(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else _from_text(text)
    except (ValueError, TypeError, csv.Error) as error:
        raise DatasetError(f"{source}: no label names ({error}); {_REMEDY}") from error
    if not parsed.names:
        raise DatasetError(f"{source}: no label names in it; {_REMEDY}")
    for what, values in (("name", parsed.names), ("number", parsed.numbers)):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise DatasetError(f"{source}: the label {what} {twice[0]!r} occurs twice")
    return parsed


def _by_number(pairs: Sequence[tuple[int, str]], codes: Sequence[str] = ()) -> LabelNames:
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
    named = [pairs[i] for i in order]
    return LabelNames(
        tuple(name for _, name in named), tuple(number for number, _ in named), tuple(codes[i] for i in order if codes)
    )


def _from_text(text: str) -> LabelNames:
    lines = [line.strip() for line in re.split("\r\n?|\n", text) if line.strip()]
    if items := _PBTXT_ITEM.findall(text):
        return _from_pbtxt(items)
    if (table := _from_table(lines)) is not None:
        return table
    if lines and all(parsed := [_NUMBERED.fullmatch(line) for line in lines]):
        matches = [match for match in parsed if match]
        prefixes = {match[1] for match in matches}
        pairs = [(int(match[2]), _unquoted(match[3])) for match in matches]
        codes = [match[1] + match[2] for match in matches] if prefixes != {""} else []
        if len(prefixes) == 1 and (codes or _counts(pairs)):
            return _by_number(pairs, codes)
        if prefixes == {""} and len(dict(pairs)) == len(pairs):
            raise ValueError(
                "numbers before the names that are neither 0, 1, 2, ... nor 1, 2, 3, ...: give {name: number}"
            )
    if lines and all(parsed := [_NUMBER_LAST.fullmatch(line) for line in lines]):
        pairs = [(int(match[2]), _unquoted(match[1])) for match in parsed if match]
        if _counts(pairs):
            return _by_number(pairs)
    return LabelNames(tuple(lines))


def _counts(pairs: Sequence[tuple[int, str]]) -> bool:
    """Return whether the numbers are 0, 1, 2, ... or 1, 2, 3, ...: others may be part of the names (50 m freestyle)."""
    ordered = sorted(number for number, _ in pairs)
    return ordered in (list(range(len(ordered))), list(range(1, len(ordered) + 1)))


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name


def _from_table(lines: Sequence[str]) -> LabelNames | None:
    """Return the names of a table with a header, such as id,name or EPIC's id,key,category; None if it is none."""
    delimiter = next((one for one in (",", "\t", ";") if lines and one in lines[0]), "")
    if not delimiter:
        return None
    head, *rows = csv.reader(lines, delimiter=delimiter)
    head = [field.strip().lower() for field in head]
    named = next((head.index(name) for name in _NAME_COLUMNS if name in head), None)
    whole = [row for row in rows if len(row) == len(head)]
    numbers = [i for i in range(len(head)) if whole and all(row[i].strip().isdecimal() for row in whole)]
    if named is None or not rows or len(whole) != len(rows) or named in numbers or any(map(str.isdecimal, head)):
        return None
    names = [row[named].strip() for row in rows]
    if not numbers:
        return LabelNames(tuple(names))
    numbered = next((i for i in numbers if _NUMBER_COLUMN.fullmatch(head[i])), numbers[0])
    return _by_number([(int(row[numbered]), name) for row, name in zip(rows, names, strict=True)])


def _from_pbtxt(items: Sequence[str]) -> LabelNames:
    pairs = []
    for item in items:
        name, number = re.search(r'name:\s*"([^"]*)"', item), re.search(r"\bid:\s*(\d+)|_id:\s*(\d+)", item)
        if not name or not number:
            raise ValueError("an item without name and id")
        pairs.append((int(number[1] or number[2]), name[1]))
    return _by_number(pairs)


def _from_json(content: object) -> LabelNames:
    """Return the names of a list, of a dataset.json, of {name: number} as Something-Something has it, or reversed."""
    if isinstance(content, dict) and "label_names" in content:
        return LabelNames(tuple(map(str, content["label_names"])))
    if isinstance(content, dict):
        pairs = list(content.items())
        if all(str(key).isdecimal() for key, _ in pairs) and not all(str(value).isdecimal() for _, value in pairs):
            pairs = [(value, key) for key, value in pairs]
        return _by_number([(int(number), str(name)) for name, number in pairs])
    if not isinstance(content, list):
        raise TypeError("neither a list nor {name: number}")
    if content and all(isinstance(item, dict) and {"id", "name"} <= item.keys() for item in content):
        return _by_number([(int(item["id"]), str(item["name"])) for item in content])
    return LabelNames(tuple(map(str, content)))
