"""Labels get ids: words ─► numbers; numbers stay as they are, names are sorted, or keep the order of a file.

names = read_label_names(data, "labels.txt")                      # one name per line, or a .json
ids = label_ids([("dog",), ("cat", "dog")], fixed=names)
ids.number["dog"]                                                 # 1
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preprocess.dataset.schema import DatasetError


@dataclass(frozen=True)
class LabelIds:
    """`number` maps every label that occurs to its id; `names` are those of ids 0, 1, ..., empty for numbers."""

    names: tuple[str, ...]
    number: dict[str, int]
    unknown: frozenset[str] = frozenset()  # labels that are not among the names that were given


def label_ids(
    labels: Iterable[Sequence[str]], *, fixed: Sequence[str] = (), continued: Sequence[str] | None = None
) -> LabelIds:
    """Return the ids of all labels.

    Args:
        labels: the labels of each sample, as words.
        fixed: the names of ids 0, 1, ..., if the user gave them: any other label is unknown. A number is an id.
        continued: the names of a dataset that is appended to: they keep their ids, new names come after in sorted
            order. Empty if its labels are numbers; None if there is no such dataset, or it has no label.

    Raises:
        DatasetError: words and numbers meet, or `fixed` does not begin with what is continued.
    """
    words = {label for of_sample in labels for label in of_sample}
    if continued and fixed and tuple(fixed[: len(continued)]) != tuple(continued):
        raise DatasetError("the label names given do not begin with those of the dataset; the ids would change")
    numeric = {word for word in words if word.isascii() and word.isdigit()}
    if fixed:
        number = {name: i for i, name in enumerate(fixed)}
        number |= {word: int(word) for word in numeric - number.keys() if int(word) < len(fixed)}
        return LabelIds(tuple(fixed), number, frozenset(words - number.keys()))
    if words == numeric and not continued:
        return LabelIds((), {word: int(word) for word in words})
    if continued is not None and not continued:
        shown = ", ".join(sorted(words - numeric)[:5])
        raise DatasetError(f"the labels of the dataset are numbers, new ones are words ({shown}); give their numbers")
    names = (*(continued or ()), *sorted(words.difference(continued or ())))
    return LabelIds(names, {name: i for i, name in enumerate(names)})


def read_label_names(data: bytes, source: str) -> tuple[str, ...]:
    """Return the names of ids 0, 1, ...: one per line, or from JSON: a dataset.json, a list, or {name: id}.

    Args:
        data: the file's bytes.
        source: its name, for messages.

    Raises:
        DatasetError: it is none of these, or a name occurs twice.
    """
    try:
        text = data.decode("utf-8-sig")
        names = _json_names(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else _lines(text)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{source}: no label names ({error}); give one name per line, or a dataset.json") from error
    if not names:
        raise DatasetError(f"{source}: no label names in it; give one name per line, or a dataset.json")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{source}: the label name {twice[0]!r} occurs twice")
    return tuple(names)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_names(content: object) -> list[str]:
    """Return the names in a list, in a dataset.json, or with their ids as Something-Something publishes them."""
    if isinstance(content, dict) and "label_names" in content:
        content = content["label_names"]
    if isinstance(content, dict):
        by_id = {int(number): str(name) for name, number in content.items()}
        if sorted(by_id) != list(range(len(content))):
            raise ValueError("its ids are not 0, 1, 2, ...")
        return [by_id[i] for i in range(len(by_id))]
    if not isinstance(content, list):
        raise TypeError("neither a list nor {name: id}")
    return [str(name) for name in content]
