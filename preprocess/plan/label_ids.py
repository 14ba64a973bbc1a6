"""Labels get ids: words ─► numbers; numbers stay as they are, names are sorted, or keep the order of a file.

names = read_label_names(data, "classInd.txt")                    # LabelNames; `preprocess.plan.label_names`
ids = label_ids([("dog",), ("cat", "dog")], fixed=names)
ids.number["dog"]                                                 # 1

A label that is a number is an id: of names without numbers the position, from 0, of names with numbers that number.
Anything that can be read in two ways is an error that shows both.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from preprocess.dataset.label_cells import MAX_ID, MISSING, number_of
from preprocess.dataset.schema import DatasetError
from preprocess.plan.label_names import LabelNames

LabelKind = Literal["auto", "numbers", "words"]

_MISSING_AMONG_NUMBERS = {"none", "null", "na", "n/a"}  # among words they may be classes
_SHOWN = 5


@dataclass(frozen=True)
class LabelIds:
    """`number` maps every label that occurs to its id; `names` are those of ids 0, 1, ..., empty for numbers."""

    names: tuple[str, ...]
    number: dict[str, int]
    unknown: frozenset[str] = frozenset()  # labels that are not among the names that were given
    missing: frozenset[str] = frozenset()  # labels that say that there is none: -1, nan, nothing
    note: str = ""  # both readings of the numbers, where one was taken


def label_ids(
    labels: Iterable[Sequence[str]],
    *,
    fixed: LabelNames | None = None,
    continued: Sequence[str] | None = None,
    kind: LabelKind = "auto",
    where: Callable[[str], str] = repr,
) -> LabelIds:
    """Return the ids of all labels.

    Args:
        labels: the labels of each sample, as words.
        fixed: the names of ids 0, 1, ..., if the user gave them: any other label is unknown.
        continued: the names of a dataset that is appended to: they keep their ids, new names come after in sorted
            order. Empty if its labels are numbers; None if there is no such dataset, or it has no label.
        kind: whether labels are numbers or words; by default what all of them are.
        where: returns a label with the place where it stands, for messages.

    Raises:
        DatasetError: words and numbers meet, the ids can be read in two ways, or `fixed` does not begin with what is
            continued.
    """
    words = {label for of_sample in labels for label in of_sample}
    missing = frozenset(word for word in words if word.strip().lower() in MISSING)
    missing -= set(fixed.names) if fixed else set()
    words -= missing
    if fixed:
        return _fixed_ids(words, fixed, continued, missing, kind)
    numbers = {word: id for word in words if (id := number_of(word)) is not None} if kind != "words" else {}
    if numbers or kind == "numbers":
        empty = {word for word in words if word.lower() in _MISSING_AMONG_NUMBERS}
        words, missing = words - empty, missing | empty
    if words == numbers.keys() and not continued:
        _check_numbers(numbers, where)
        return LabelIds((), numbers, missing=missing)
    if continued is not None and not continued:
        shown = ", ".join(sorted(words - numbers.keys())[:_SHOWN])
        raise DatasetError(f"the labels of the dataset are numbers, new ones are words ({shown}); give their numbers")
    if kind == "numbers":
        shown = ", ".join(map(where, sorted(words - numbers.keys())[:_SHOWN]))
        raise DatasetError(f"labels are no numbers, as --label-kind numbers says: {shown}")
    known = words.intersection(continued or ())
    if numbers.keys() - known:
        text = _mixture(numbers.keys() - known, words - numbers.keys(), continued or (), where)
        raise DatasetError(
            f"{text}: give the names of the ids as --label-names, or --label-kind words if all are names"
        )
    names = (*(continued or ()), *_sorted_names(words.difference(continued or ())))
    return LabelIds(names, {name: i for i, name in enumerate(names)}, missing=missing)


def _sorted_names(names: set[str]) -> list[str]:
    """Return names in their order: by number if all are whole numbers, so that 2 comes before 10; else by letters."""
    if all(number_of(name) is not None for name in names):
        return sorted(names, key=lambda name: (number_of(name) or 0, name))
    return sorted(names)


def _fixed_ids(
    words: set[str], fixed: LabelNames, continued: Sequence[str] | None, missing: frozenset[str], kind: LabelKind
) -> LabelIds:
    names = fixed.names
    if continued and names[: len(continued)] != tuple(continued):
        raise DatasetError("the label names given do not begin with those of the dataset; the ids would change")
    number = {name: id for id, name in enumerate(names)} | {code: id for id, code in enumerate(fixed.codes)}
    numbers = {word: value for word in words - number.keys() if (value := number_of(word)) is not None}
    note = ""
    if numbers and kind != "words":
        if both := sorted(word for word in words & number.keys() if number_of(word) is not None):
            raise DatasetError(
                f"numbers among the labels are names ({both[0]!r}), others would be ids ({min(numbers)!r}): correct "
                "them, or give --label-kind words if all are names"
            )
        ids, note = fixed.ids_of(set(numbers.values())), fixed.note(set(numbers.values()))
        number |= {word: ids[value] for word, value in numbers.items() if value in ids}
    if continued is not None and not continued:
        moved = any(number.get(word, value) != value for word, value in numbers.items())
        if moved or (fixed.numbers and fixed.numbers != tuple(range(len(names)))):
            raise DatasetError(
                "the labels of the dataset are numbers without names, and the label names given number them in another "
                "way; the ids would change. Append with names of ids 0, 1, ..., or without --label-names"
            )
    return LabelIds(names, number, frozenset(words - number.keys()), missing, note)


def _check_numbers(numbers: dict[str, int], where: Callable[[str], str]) -> None:
    """Raise DatasetError for ids that are too large, or that are spelled in two ways, as folders 1 and 01 are."""
    spelled: dict[int, str] = {}
    for word, number in sorted(numbers.items()):
        if number > MAX_ID:
            raise DatasetError(f"label {where(word)} is too large for an id; give --label-kind words if it is a name")
        plain = word.partition(".")[0].removeprefix("+")
        if spelled.setdefault(number, plain) != plain:
            raise DatasetError(
                f"labels {where(spelled[number])} and {where(word)} are one number in two spellings: "
                "spell it in one way, or give --label-kind words if they are two names"
            )


def _mixture(
    numbers: Iterable[str], words: Iterable[str], continued: Sequence[str], where: Callable[[str], str]
) -> str:
    examples = [where(label) for label in sorted(numbers)[:_SHOWN]]
    others = [where(label) for label in sorted(words)[:_SHOWN]] or [
        f"{name!r} of the dataset" for name in continued[:1]
    ]
    return f"labels are numbers ({', '.join(examples)}) and words ({', '.join(others)})"
