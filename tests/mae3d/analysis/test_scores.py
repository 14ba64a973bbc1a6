"""mae3d.analysis.scores: against scikit-learn and brute force; the same for any grouping of the samples."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, top_k_accuracy_score

from mae3d.analysis.scores import (
    average_precisions,
    class_table,
    confused_pairs,
    confusion,
    hits_at,
    mean_average_precision,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(300, 8)).astype(np.float32)
LABELS = RNG.integers(0, 8, 300)
SEVERAL = (RNG.random((300, 8)) < 0.3).astype(np.int64)
COARSE = np.round(SCORES)  # many ties


@pytest.mark.parametrize("k", [1, 3, 5, 8, 20])
def test_top_k_is_scikit_learns(k: int) -> None:
    expected = top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(8)) if k < 8 else 1.0
    assert hits_at(SCORES, LABELS, k=k).mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("scores", [COARSE, np.maximum(SCORES, 0), np.zeros_like(SCORES)], ids=["ties", "zeros", "one"])
def test_the_numbers_of_classes_have_no_part_in_a_hit(scores: np.ndarray[Any, Any], k: int) -> None:
    hits = hits_at(scores, LABELS, k=k)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(8)
        assert (hits_at(scores[:, order], np.argsort(order)[LABELS], k=k) == hits).all()
    ahead = [sorted(range(8), key=lambda c: (-row[c], c == label)) for row, label in zip(scores, LABELS, strict=True)]
    assert hits.tolist() == [label in order[:k] for order, label in zip(ahead, LABELS.tolist(), strict=True)]


@pytest.mark.parametrize("k", [1, 5])
def test_a_class_without_a_score_is_no_hit(k: int) -> None:
    """Votes, probabilities that underflow, classes that were not trained: one class has all, the other seven none."""
    one_hot = np.eye(8)[np.arange(300) % 8]
    assert (hits_at(one_hot, LABELS, k=k) == (np.arange(300) % 8 == LABELS)).all()


def test_any_number_of_classes_is_counted_without_a_square_of_them() -> None:
    classes = 2_000_000  # 32 TB as a matrix
    scores = np.zeros((3, classes), dtype=np.float32)
    scores[[0, 1, 2], [7, 7, 1_999_999]] = 1
    true, predicted, count = confused_pairs(scores, np.array([9, 9, 1_999_999]))
    assert [*zip(true.tolist(), predicted.tolist(), count.tolist(), strict=True)] == [
        (9, 7, 2),
        (1_999_999,) * 2 + (1,),
    ]


def test_a_class_is_taken_for_the_one_it_is_mistaken_for_most_often() -> None:
    labels, guesses = np.array([0, 0, 0, 1, 1, 2, 0]), np.array([2, 2, 1, 2, 0, 2, 0])
    assert class_table(np.eye(3)[guesses], labels)["taken_for"] == ["2", "0", None]


@pytest.mark.parametrize("scores", [SCORES, COARSE, COARSE.astype(np.int64)])
def test_average_precision_is_scikit_learns(scores: np.ndarray[Any, Any]) -> None:
    expected = [average_precision_score(SEVERAL[:, c], scores[:, c]) for c in range(8)]
    np.testing.assert_allclose(average_precisions(scores, SEVERAL), expected, rtol=1e-12)
    assert mean_average_precision(scores, SEVERAL) == pytest.approx(np.mean(expected), rel=1e-12)
    single = np.eye(8, dtype=np.int64)[LABELS]
    assert (average_precisions(scores, LABELS) == average_precisions(scores, single)).all()


def test_a_class_without_positives_has_no_precision_and_does_not_count() -> None:
    targets = SEVERAL.copy()
    targets[:, 3] = 0
    precisions = average_precisions(SCORES, targets)
    assert np.isnan(precisions).tolist() == [c == 3 for c in range(8)]
    assert mean_average_precision(SCORES, targets) == pytest.approx(np.delete(precisions, 3).mean())
    assert np.isnan(mean_average_precision(SCORES, targets * 0))


@pytest.mark.parametrize("scores", [SCORES, COARSE])
def test_no_grouping_or_order_changes_anything(scores: np.ndarray[Any, Any]) -> None:
    whole_hits, whole_confusion = hits_at(scores, LABELS, k=3), confusion(scores, LABELS)
    whole_map = mean_average_precision(scores, SEVERAL)
    for parts in (1, 2, 7, 300):
        order = np.random.default_rng(parts).permutation(300)
        groups = np.array_split(order, parts)
        assert (np.concatenate([hits_at(scores[g], LABELS[g], k=3) for g in groups]) == whole_hits[order]).all()
        assert (sum(confusion(scores[g], LABELS[g]) for g in groups) == whole_confusion).all()
        assert mean_average_precision(scores[order], SEVERAL[order]) == whole_map


def test_confusion_is_scikit_learns() -> None:
    expected = confusion_matrix(LABELS, SCORES.argmax(axis=1), labels=range(8))
    assert (confusion(SCORES, LABELS) == expected).all()


def test_the_table_of_a_small_case() -> None:
    scores = np.array([[9, 1, 0], [2, 3, 1], [1, 7, 0], [8, 1, 0]])
    table = class_table(scores, np.array([0, 0, 1, 1]), names=["run", "jump", "sit"], k=2)
    assert table == {
        "class": [0, 1, 2],
        "name": ["run", "jump", "sit"],
        "samples": [2, 2, 0],
        "predicted": [2, 2, 0],
        "top1": [0.5, 0.5, None],
        "top2": [1.0, 1.0, None],
        "precision": [0.5, 0.5, None],
        "taken_for": ["jump", "run", None],
    }


def test_the_table_adds_up() -> None:
    table = class_table(SCORES, LABELS)
    weighted = sum(a * n for a, n in zip(table["top1"], table["samples"], strict=True)) / 300
    assert weighted == pytest.approx(hits_at(SCORES, LABELS, k=1).mean())
    assert sum(table["predicted"]) == sum(table["samples"]) == 300


def test_nothing_at_all_is_no_error() -> None:
    none = np.zeros((0, 8))
    assert len(hits_at(none, np.zeros(0, dtype=np.int64), k=1)) == 0
    assert confusion(none, np.zeros(0, dtype=np.int64)).sum() == 0
    assert np.isnan(mean_average_precision(none, np.zeros((0, 8))))


def test_what_cannot_be_scored_is_refused() -> None:
    holed = SCORES.copy()
    holed[5, 2] = np.nan
    with pytest.raises(ValueError, match="row 5"):
        hits_at(holed, LABELS, k=1)
    with pytest.raises(ValueError, match="row 5"):
        average_precisions(holed, SEVERAL)
    with pytest.raises(ValueError, match=r"\[-1, 8\]"):
        confusion(SCORES[:2], np.array([-1, 8]))
    with pytest.raises(ValueError, match="class number"):
        hits_at(SCORES, LABELS[:5], k=1)
    with pytest.raises(ValueError, match="class number"):
        hits_at(SCORES, LABELS.astype(float), k=1)
    with pytest.raises(ValueError, match="0 or 1"):
        average_precisions(SCORES, SEVERAL * 2)
    with pytest.raises(ValueError, match="2 names for 8 classes"):
        class_table(SCORES, LABELS, names=["a", "b"])
