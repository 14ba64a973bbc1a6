"""mae3d.analysis.scores: against scikit-learn and brute force; the same for any grouping of the samples."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_score, top_k_accuracy_score

from mae3d.analysis.scores import (
    average_precisions,
    class_table,
    confusion,
    credit_at,
    hits_at,
    mean_average_precision,
    summary,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(300, 8)).astype(np.float32)
LABELS = RNG.integers(0, 8, 300)
SEVERAL = (RNG.random((300, 8)) < 0.3).astype(np.int64)
COARSE = np.round(SCORES)  # many ties


@pytest.mark.parametrize("k", [1, 3, 5, 8, 20])
def test_top_k_is_scikit_learns(k: int) -> None:
    expected = top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(8)) if k < 8 else 1.0
    assert credit_at(SCORES, LABELS, k=k).mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_tie_is_worth_what_lots_give_on_average(k: int) -> None:
    luck = np.random.default_rng(1).random((2000, *COARSE.shape))
    logits = COARSE - 10  # negative: no shares
    order = np.lexsort((luck, np.broadcast_to(-logits, luck.shape)), axis=2)[:, :, :k]
    by_lot = (order == LABELS[:, None]).any(axis=2).mean(axis=0)
    assert np.abs(credit_at(logits, LABELS, k=k) - by_lot).max() < 0.06
    assert (credit_at(logits[:, ::-1], 7 - LABELS, k=k) == credit_at(logits, LABELS, k=k)).all()  # under other numbers


def test_a_hit_holds_for_any_order_of_equal_scores() -> None:
    votes = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4])
    wanted = np.array([0, 2, 0, 1])
    assert hits_at(votes, wanted, k=1).tolist() == [False, False, True, False]
    assert hits_at(votes, wanted, k=2).tolist() == [True, False, True, False]
    assert hits_at(votes, wanted, k=4).tolist() == [True, False, True, True]


def test_a_logit_of_zero_counts_like_any_other() -> None:
    """Only where no score is negative are they votes, of which zero is none."""
    logits = np.array([[0.0, -1.0, -2.0], [0.0, 1.0, -2.0], [0.0, 0.0, -1.0]])
    assert credit_at(logits, np.zeros(3, np.int64), k=1).tolist() == [1, 0, 0.5]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("level", [-2.5, 0.125])
def test_constant_scores_are_worth_chance_and_nothing_is_worth_nothing(k: int, level: float) -> None:
    assert (credit_at(np.full((300, 8), level), LABELS, k=k) == k / 8).all()
    assert not credit_at(np.zeros((300, 8)), LABELS, k=k).any()
    votes = np.zeros((300, 8))
    votes[:, 2] = 1.0
    assert (credit_at(votes, LABELS, k=k) == (LABELS == 2)).all()  # classes without a vote are no hits


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
    whole_hits, whole_confusion = credit_at(scores, LABELS, k=3), confusion(scores, LABELS)
    whole_map = mean_average_precision(scores, SEVERAL)
    for parts in (1, 2, 7, 300):
        order = np.random.default_rng(parts).permutation(300)
        groups = np.array_split(order, parts)
        assert (np.concatenate([credit_at(scores[g], LABELS[g], k=3) for g in groups]) == whole_hits[order]).all()
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


@pytest.mark.parametrize("scores", [SCORES, COARSE])
def test_the_table_adds_up(scores: np.ndarray[Any, Any]) -> None:
    table = class_table(scores, LABELS)
    weighted = sum(a * n for a, n in zip(table["top1"], table["samples"], strict=True)) / 300
    assert weighted == pytest.approx(credit_at(scores, LABELS, k=1).mean())
    assert sum(table["predicted"]) == sum(table["samples"]) == 300
    assert table["precision"] == pytest.approx(precision_score(LABELS, scores.argmax(axis=1), average=None).tolist())
    mistakes = confusion(scores, LABELS)
    np.fill_diagonal(mistakes, 0)
    assert table["taken_for"] == [str(other) for other in mistakes.argmax(axis=1)]


def test_small_types_of_labels_do_not_overflow() -> None:
    scores = np.eye(300, dtype=np.float32)
    assert (confusion(scores, np.arange(300).astype(np.int16)) == np.eye(300)).all()  # 299 x 300 is no int16
    assert class_table(scores[:200], np.arange(200, dtype=np.uint8))["taken_for"] == [None] * 300


def test_the_figures_of_a_validation() -> None:
    scores = np.array([[0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.0]] * 3)
    figures = summary(scores, np.array([0, 5, 6]))
    assert figures == {
        "top1": pytest.approx(1 / 3),
        "top5": pytest.approx((1 + 2 / 3) / 3),
        "loss": pytest.approx(-np.log([0.3, 0.1, 1e-12]).mean()),
    }  # a label that was given no chance has a loss as well
    several = summary(np.array([[0.75, 0.5], [0.0, 0.5]]), np.array([[1, 0], [1, 0]]))
    assert several == {"map": 1.0, "loss": pytest.approx(-np.log([0.75, 0.5, 1e-12, 0.5]).mean())}
    for labels, names in ((np.zeros(0, np.int64), ["top1", "top5", "loss"]), (np.zeros((0, 7)), ["map", "loss"])):
        nothing = summary(np.zeros((0, 7)), labels)
        assert list(nothing) == names
        assert all(np.isnan(value) for value in nothing.values())


def test_nothing_at_all_is_no_error() -> None:
    none = np.zeros((0, 8))
    assert len(credit_at(none, np.zeros(0, dtype=np.int64), k=1)) == 0
    assert confusion(none, np.zeros(0, dtype=np.int64)).sum() == 0
    assert np.isnan(mean_average_precision(none, np.zeros((0, 8))))


def test_what_cannot_be_scored_is_refused() -> None:
    for no_number in (np.nan, np.inf, -np.inf):
        holed = SCORES.copy()
        holed[5, 2] = no_number
        with pytest.raises(ValueError, match="row 5"):
            credit_at(holed, LABELS, k=1)
        with pytest.raises(ValueError, match="row 5"):
            average_precisions(holed, SEVERAL)
    for scorer in (confusion, average_precisions):
        with pytest.raises(ValueError, match=r"\[-1, 8\]"):
            scorer(SCORES[:2], np.array([-1, 8]))
    with pytest.raises(ValueError, match="class number"):
        credit_at(SCORES, LABELS[:5], k=1)
    with pytest.raises(ValueError, match="class number"):
        credit_at(SCORES, LABELS.astype(float), k=1)
    with pytest.raises(ValueError, match="0 or 1"):
        average_precisions(SCORES, SEVERAL * 2)
    for count in (2, 9):
        with pytest.raises(ValueError, match=f"{count} names for 8 classes"):
            class_table(SCORES, LABELS, names=["a"] * count)
