"""Phases along a video: the figures of action segmentation against values computed by hand, and smoothing."""

import itertools

import numpy as np
import pytest

from mae3d.analysis.phases import (
    Matches,
    agreement,
    best_setting,
    boundary_matches,
    edit_score,
    f1_at,
    frame_accuracy,
    hmm_smoothed,
    matches_at,
    median_smoothed,
    segments_of,
)


def classes(text: str) -> np.ndarray:
    """Return class numbers of letters, a = 0; a dot is unlabelled."""
    return np.array([-1 if letter == "." else ord(letter) - ord("a") for letter in text], dtype=np.int64)


def test_segments_are_the_longest_runs_without_the_unlabelled() -> None:
    assert segments_of(classes("aab.b")) == [(0, 0, 2), (1, 2, 3), (1, 4, 5)]
    assert segments_of(classes("")) == []


def test_accuracy_counts_labelled_moments_alone() -> None:
    assert frame_accuracy(classes("aabbc"), classes("aab.b")) == 3 / 4
    assert np.isnan(frame_accuracy(classes("ab"), classes("..")))


@pytest.mark.parametrize(
    ("predicted", "true", "score"),
    [
        ("aabbcc", "aaaabc", 1.0),  # lengths do not count
        ("aabacc", "aaaaac", 1 - 2 / 4),  # a b a c to a c: two insertions, of four
        ("cccccc", "aaabbb", 1 - 2 / 2),
        ("aabbbb", "aa..bb", 1.0),
        ("acabbb", "a..bbb", 1.0),  # what is predicted for unlabelled moments does not count
    ],
)
def test_edit_score_is_one_less_the_share_of_edits(predicted: str, true: str, score: float) -> None:
    assert edit_score(classes(predicted), classes(true)) == pytest.approx(score)


def test_f1_matches_segments_by_their_overlap() -> None:
    predicted, true = classes("aaabbbbbcc"), classes("aaaaaabbcc")
    # a: 3 of 6 = 0.5; b: 2 of 5 = 0.4; c: 1
    assert matches_at(predicted, true, 0.4) == Matches(3, 3, 3)
    assert matches_at(predicted, true, 0.5) == Matches(2, 3, 3)
    assert f1_at(predicted, true, 0.5) == pytest.approx(2 * 2 / 6)
    assert f1_at(predicted, true, 0.51) == pytest.approx(2 * 1 / 6)


def test_a_true_segment_is_hit_once() -> None:
    predicted, true = classes("aabaaaaaaa"), classes("aaaaaaaaaa")
    assert matches_at(predicted, true, 0.1) == Matches(1, 3, 1)  # precision 1/3, recall 1
    assert f1_at(predicted, true, 0.1) == pytest.approx(0.5)


def test_several_videos_add_their_moments_and_segments() -> None:
    predicted, true = [classes("aabb"), classes("a"), classes("a")], [classes("abbb"), classes("b"), classes(".")]
    assert agreement(predicted, true) == {
        "accuracy": 3 / 5,
        "edit": (1 + 0) / 2,
        "f1_10": pytest.approx(2 * 2 / 6),
        "f1_25": pytest.approx(2 * 2 / 6),
        "f1_50": pytest.approx(2 * 2 / 6),
    }
    assert agreement([classes("a")], [classes(".")]) == {}


def test_the_median_removes_an_outlier_and_keeps_an_edge() -> None:
    scores = np.eye(2)[classes("aabaabbbb")]
    assert median_smoothed(scores, 3).argmax(axis=1).tolist() == classes("aaaaabbbb").tolist()
    assert (median_smoothed(scores, 1) == scores).all()  # one row: as it was
    assert median_smoothed(scores, 2) == pytest.approx(median_smoothed(scores, 3))


def test_the_path_is_the_most_probable_of_all_paths() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(3), size=6)
    for stay in (0.5, 0.9):
        move = (1 - stay) / 2

        def probability(path: tuple[int, ...], stay: float = stay, move: float = move) -> float:
            steps = [stay if a == b else move for a, b in itertools.pairwise(path)]
            return float(np.prod(steps) * np.prod(scores[np.arange(6), path]))

        best = max(itertools.product(range(3), repeat=6), key=probability)
        assert hmm_smoothed(scores, stay).argmax(axis=1).tolist() == list(best)


def test_hours_keep_their_digits() -> None:
    scores = np.tile([[0.9, 0.1]], (50_000, 1))
    scores[25_000:] = [0.1, 0.9]
    path = hmm_smoothed(scores, 0.999).argmax(axis=1)
    assert path[:25_000].max() == 0
    assert path[25_000:].min() == 1


def test_a_setting_is_chosen_on_the_other_videos() -> None:
    figures = {0.0: [1.0, 0.5, 0.5], 5.0: [0.0, 0.6, 0.6], 9.0: [0.0, 0.6, 0.6]}
    assert best_setting(figures, without=0) == 5.0
    assert best_setting(figures, without=1) == 0.0


def test_a_boundary_is_hit_by_one_change_within_the_tolerance() -> None:
    counts = boundary_matches([1.0, 2.4, 2.6, 9.0], [2.0, 3.0, 7.9], tolerance=1.0)
    assert counts == Matches(2, 4, 3)  # 1.0 and 2.4 lie near 2.0, and 2.6 near 3.0; 9.0 is 1.1 from 7.9
    assert (counts.precision, counts.recall, counts.f1) == (2 / 4, 2 / 3, 4 / 7)
    assert boundary_matches([], [], tolerance=1.0).f1 == 1.0
    assert boundary_matches([1.5], [1.0, 2.0], tolerance=0.5).hits == 1
