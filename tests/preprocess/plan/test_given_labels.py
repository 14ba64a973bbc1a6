"""Labels that a program gives are words or ids, and a wrong one is refused as it comes."""

from typing import Any

import numpy as np
import pytest

from preprocess.plan.given_labels import GivenLabels


def test_words_ids_and_names_for_ids() -> None:
    assert GivenLabels().words("a", "dog") == ("dog",)
    assert GivenLabels().words("a", ["dog", "7"]) == ("dog", "7")
    assert GivenLabels().words("a", np.int64(7)) == ("7",)
    assert GivenLabels().words("a", np.array([3, 0])) == ("3", "0")
    assert GivenLabels().words("a", None) == GivenLabels().words("a", []) == ()
    assert GivenLabels(["cat", "dog"]).words("a", [1, "cat"]) == ("dog", "cat")


def test_the_kind_is_that_of_the_first_label() -> None:
    labels = GivenLabels()
    assert labels.kind == "auto"
    labels.words("a", "7")
    assert labels.kind == "words"  # a text is a name, though it looks like a number
    with pytest.raises(ValueError, match=r"b: label 7.*words"):
        labels.words("b", 7)


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        ((), -1, "label -1.*None"),
        ((), 2**31, "label 2147483648"),
        ((), 1.5, r"label 1\.5 must be a word or an id"),
        (("cat", "dog"), 2, "label 2 must be 0 to 1"),
        (("cat", "dog"), "bird", r"'bird' is not among label_names \(cat, dog\)"),
    ],
)
def test_what_can_be_no_label_is_refused_by_name(names: Any, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GivenLabels(names).words("clip", label)
