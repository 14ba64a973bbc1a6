"""Labels that a program gives, sample by sample, become words of the plan; a wrong one is refused as it comes.

labels = GivenLabels(("cat", "dog"))
labels.words("clip", "dog"), labels.words("clip", [0, 1])          # ("dog",), ("cat", "dog")
"""

import operator
from collections.abc import Iterable, Sequence

from preprocess.dataset.label_cells import MAX_ID
from preprocess.plan.label_ids import LabelKind
from preprocess.plan.label_names import LabelNames

Label = str | int
_SHOWN = 5


class GivenLabels:
    """The labels of a dataset so far: all of them are words, or all are ids."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Begin; `names` are those of ids 0, 1, ..., and there are no others. Without them words are sorted at the end.

        Raises:
            ValueError: a name is there twice, or is none.
        """
        if bad := [name for name in names if not isinstance(name, str) or not name or list(names).count(name) > 1]:
            raise ValueError(f"label_names: {bad[0]!r} must be a text, and be there once")
        self.names = LabelNames(tuple(names)) if names else None
        self._numbers: dict[str, int] = {name: id for id, name in enumerate(names)}
        self._kind: LabelKind = "auto"

    @property
    def kind(self) -> LabelKind:
        """Return whether the labels are words or numbers; auto if there was none."""
        return self._kind

    def words(self, sample: str, given: Label | Sequence[Label] | None) -> tuple[str, ...]:
        """Return the labels of a sample as words.

        Args:
            sample: its name, for messages.
            given: a word or an id, several of them, or None.

        Raises:
            ValueError: a label is neither, has no name, or is of another kind than those before.
        """
        if given is None:
            return ()
        if isinstance(given, str) or not isinstance(given, Iterable):
            return (self._word(sample, given),)
        return tuple(self._word(sample, label) for label in given)

    def _word(self, sample: str, label: Label) -> str:
        if isinstance(label, str):
            if self.names and label not in self._numbers:
                listed = ", ".join(self.names.names[:_SHOWN]) + (", ..." if len(self.names.names) > _SHOWN else "")
                raise ValueError(f"{sample}: label {label!r} is not among label_names ({listed})")
            self._require_kind(sample, label, "words")
            return label
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"{sample}: label {label!r} must be a word or an id") from None
        if not 0 <= number < (len(self.names.names) if self.names else MAX_ID):
            ids = f"0 to {len(self.names.names) - 1}, an id of label_names" if self.names else "an id, 0 or more"
            raise ValueError(f"{sample}: label {number} must be {ids}; label=None means that there is none")
        if self.names:
            return self._word(sample, self.names.names[number])
        self._require_kind(sample, label, "numbers")
        return str(number)

    def _require_kind(self, sample: str, label: Label, kind: LabelKind) -> None:
        if self._kind not in ("auto", kind):
            raise ValueError(f"{sample}: label {label!r}, but earlier ones are {self._kind}; give all in one kind")
        self._kind = kind
