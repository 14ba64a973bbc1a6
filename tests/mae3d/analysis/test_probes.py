"""mae3d.analysis.probes: kNN as by hand, what is separable is separated, nothing is read out of shuffled labels."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mae3d.analysis import probes
from mae3d.analysis.probes import C_GRID, attentive_scores, few_shot_rows, held_out, knn_scores, linear_scores
from mae3d.analysis.scores import hits_at, mean_average_precision

CLASSES, WIDTH = 4, 8
RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.standard_normal((CLASSES, WIDTH))

Set = tuple[NDArray[np.float32], NDArray[np.int64]]


def blobs(n: int, *, seed: int, scale: float = 1.0) -> Set:
    """Points around a centre a class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    return (scale * (CENTRES[labels] + rng.standard_normal((n, WIDTH)))).astype(np.float32), labels


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.eye(CLASSES, dtype=np.uint8)[labels]


def top1(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(hits_at(scores, labels, k=1).mean())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_knn_is_the_weighted_vote_of_the_nearest(chunk: int) -> None:
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((30, 5)), rng.standard_normal((11, 5))
    targets = (rng.random((30, 3)) < 0.4).astype(np.uint8)  # several labels, or none
    scores = knn_scores(train, targets, test, ks=(1, 4, 100), chunk=chunk)
    for k, found in scores.items():
        for i, point in enumerate(test):
            votes, weights = np.zeros(3), 0.0
            similarity = [point @ other / np.linalg.norm(point) / np.linalg.norm(other) for other in train]
            for j in sorted(range(30), key=lambda j: -similarity[j])[:k]:
                votes += np.exp(similarity[j] / 0.07) * targets[j]
                weights += np.exp(similarity[j] / 0.07)
            np.testing.assert_allclose(found[i], votes / weights, rtol=1e-4, atol=1e-7)


def test_knn_compares_no_more_at_a_time_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from mae3d.analysis import probes

    (train, labels), (test, _) = blobs(40, seed=1), blobs(20, seed=2)
    whole, most, unit = knn_scores(train, one_hot(labels), test)[5], [], probes._unit
    monkeypatch.setattr(probes, "PAIRS", 3 * len(train))
    monkeypatch.setattr(probes, "_unit", lambda vectors: most.append(len(vectors)) or unit(vectors))
    np.testing.assert_allclose(knn_scores(train, one_hot(labels), test)[5], whole, rtol=1e-5)
    assert max(most[1:]) == 3


def test_knn_takes_no_notice_of_lengths() -> None:
    (train, labels), (test, _) = blobs(40, seed=1), blobs(20, seed=2)
    lengths = np.random.default_rng(0).uniform(0.1, 1e4, (40, 1))
    plain, scaled = (knn_scores(of, one_hot(labels), test)[5] for of in (train, train * lengths))
    np.testing.assert_allclose(plain, scaled, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_separable_features_are_separated(scale: float) -> None:
    (train, labels), (test, wanted) = blobs(80, seed=1, scale=scale), blobs(60, seed=2, scale=scale)
    scores, chosen = linear_scores(train, one_hot(labels), test, several=False)
    assert top1(scores, wanted) >= 0.95
    assert chosen["C"] in C_GRID
    assert chosen["converged"]
    assert top1(knn_scores(train, one_hot(labels), test)[20], wanted) >= 0.95
    np.testing.assert_allclose(scores.sum(axis=1), 1)


def test_nothing_is_read_out_of_shuffled_labels() -> None:
    (train, labels), (test, wanted) = blobs(400, seed=1), blobs(400, seed=2)
    shuffled = one_hot(np.random.default_rng(5).permutation(labels))
    scores, _ = linear_scores(train, shuffled, test, several=False)
    for found in (scores, knn_scores(train, shuffled, test)[20]):
        assert abs(top1(found, wanted) - 1 / CLASSES) < 0.12  # deviation of 400 draws: 0.02; blobs fall together


def test_c_is_chosen_on_the_fifth_and_the_fit_is_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each C is tried on what is left of the train set; the last fit sees all of it; the test set is seen once."""
    (train, labels), (test, _) = blobs(50, seed=1), blobs(13, seed=2)
    fits: list[tuple[int, int, float]] = []
    fit = probes._fit

    def seen(some: NDArray, others: NDArray, targets: NDArray, *, c: float, several: bool):  # type: ignore[no-untyped-def]
        fits.append((len(some), len(others), c))
        scores = fit(some, others, targets, c=c, several=several)
        return scores if len(others) == len(test) or c == 1e-2 else scores[:, ::-1]  # every other C fails

    monkeypatch.setattr(probes, "_fit", seen)
    _, chosen = linear_scores(train, one_hot(labels), test, several=False)
    held = len(labels) - fits[0][0]
    assert 8 <= held <= 12
    assert sorted(fits[:-1], key=lambda fit: fit[2]) == [(50 - held, held, c) for c in C_GRID]  # on several threads
    assert fits[-1] == (50, 13, 1e-2)
    assert chosen["C"] == 1e-2


def test_the_fifth_is_of_each_class_alike_and_the_seeds() -> None:
    labels = np.repeat(np.arange(CLASSES), [50, 5, 2, 1])
    held = held_out(one_hot(labels), seed=3)
    assert np.bincount(labels[held], minlength=CLASSES).tolist() == [10, 1, 1, 0]
    assert np.array_equal(held, held_out(one_hot(labels), seed=3))
    assert not np.array_equal(held, held_out(one_hot(labels), seed=4))


def test_one_sample_a_class_leaves_nothing_to_choose_on() -> None:
    (train, labels), (test, wanted) = blobs(CLASSES, seed=1), blobs(40, seed=2)
    scores, chosen = linear_scores(train, one_hot(labels), test, several=False)
    assert (chosen["C"], chosen["held_out"]) == (1.0, None)
    assert top1(scores, wanted) > 0.6


def test_classes_without_a_train_sample_have_no_chance() -> None:
    (train, labels), (test, _) = blobs(40, seed=1), blobs(10, seed=2)
    left = labels != 2
    scores, _ = linear_scores(train[left], one_hot(labels[left]), test, several=False)
    assert (scores[:, 2] == 0).all()
    with pytest.raises(ValueError, match="one class"):
        linear_scores(train[labels == 1], one_hot(labels[labels == 1]), test, several=False)


def test_several_labels_are_probed_one_against_the_rest() -> None:
    def make(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        targets = (np.random.default_rng(seed).random((n, CLASSES)) < 0.4).astype(np.uint8)
        targets[:, 3] = 1  # of all: a constant
        noise = np.random.default_rng(seed + 1).standard_normal((n, WIDTH))
        return (targets @ CENTRES + 0.3 * noise).astype(np.float32), targets

    (train, targets), (test, wanted) = make(120, 0), make(80, 10)
    scores, chosen = linear_scores(train, targets, test, several=True)
    assert mean_average_precision(scores[:, :3], wanted[:, :3]) > 0.95
    assert (scores[:, 3] == 1).all()
    assert chosen["C"] in C_GRID
    assert held_out(targets, seed=0).sum() in range(15, 32)


def test_few_of_each_class_are_among_more_of_each() -> None:
    labels = np.repeat(np.arange(CLASSES), [20, 20, 20, 3])
    few, more, other = (few_shot_rows(one_hot(labels), shots=k, seed=s) for k, s in ((2, 0), (5, 0), (5, 1)))
    assert np.bincount(labels[few]).tolist() == [2, 2, 2, 2]
    assert np.bincount(labels[more]).tolist() == [5, 5, 5, 3]
    assert set(few) < set(more) != set(other)
    assert (np.diff(more) > 0).all()


def tokens(n: int, seed: int) -> Set:
    """The class is told by one token of six, anywhere; the mean over all hides it behind the others' noise."""
    rng = np.random.default_rng(seed)
    found = 2 * rng.standard_normal((n, 6, WIDTH)).astype(np.float32)
    found[..., -1] = 0
    labels = np.arange(n) % CLASSES
    where = rng.integers(0, 6, n)
    found[np.arange(n), where] = CENTRES[labels]
    found[np.arange(n), where, -1] = 8
    return found, labels


def test_the_attentive_probe_finds_the_token_that_tells() -> None:
    (train, labels), (test, wanted) = tokens(160, 0), tokens(80, 1)
    settings = {"several": False, "num_heads": 2}
    random_state = torch.get_rng_state()
    scores, trained = attentive_scores(train.astype(np.float16), one_hot(labels), test, seed=1, **settings)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert top1(scores, wanted) > 0.9
    assert trained["steps"] == 500
    linear, _ = linear_scores(train.mean(axis=1), one_hot(labels), test.mean(axis=1), several=False)
    assert top1(linear, wanted) < 0.8


def test_the_attentive_probe_is_the_same_under_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MIN_STEPS", 10)
    monkeypatch.setattr(probes, "EPOCHS", 1)
    (train, labels), (test, _) = tokens(100, 0), tokens(20, 1)
    runs = [
        attentive_scores(train, one_hot(labels), test, several=several, num_heads=2, seed=seed)[0]
        for several, seed in ((False, 1), (False, 1), (False, 2), (True, 1))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])
    assert not np.allclose(runs[0], runs[3])
