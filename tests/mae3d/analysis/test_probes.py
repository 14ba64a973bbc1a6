"""mae3d.analysis.probes: kNN as by hand, separable classes are separated, nothing is read out of shuffled labels."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mae3d.analysis import probes
from mae3d.analysis.logistic import Fit, Samples
from mae3d.analysis.probes import C_GRID, attentive_scores, few_shot_rows, held_out, knn_scores, linear_scores
from mae3d.analysis.scores import credit_at, mean_average_precision
from mae3d.io import progress

CLASSES, WIDTH = 4, 8
RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.standard_normal((CLASSES, WIDTH))

Set = tuple[NDArray[np.float32], NDArray[np.int64]]


def blobs(n: int, *, seed: int, scale: float = 1.0) -> Set:
    """Draw points around one centre per class, and return them with their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    return (scale * (CENTRES[labels] + rng.standard_normal((n, WIDTH)))).astype(np.float32), labels


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.eye(CLASSES, dtype=np.uint8)[labels]


def top1(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(credit_at(scores, labels, k=1).mean())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_knn_is_the_weighted_vote_of_the_nearest(chunk: int) -> None:
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((30, 5)), rng.standard_normal((11, 5))
    targets = (rng.random((30, 3)) < 0.4).astype(np.uint8)  # any number of labels, or none
    scores = knn_scores(train, targets, test, ks=(1, 4, 100), chunk=chunk)
    for k, votes_of in scores.items():
        for i, point in enumerate(test):
            votes, weights = np.zeros(3), 0.0
            similarity = [point @ other / np.linalg.norm(point) / np.linalg.norm(other) for other in train]
            for j in sorted(range(30), key=lambda j: -similarity[j])[:k]:
                votes += np.exp(similarity[j] / 0.07) * targets[j]
                weights += np.exp(similarity[j] / 0.07)
            np.testing.assert_allclose(votes_of[i], votes / weights, rtol=1e-4, atol=1e-7)


def test_knn_compares_no_more_at_a_time_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from mae3d.analysis import probes

    (train, labels), (test, _) = blobs(40, seed=1), blobs(20, seed=2)
    unchunked, most, unit = knn_scores(train, one_hot(labels), test)[5], [], probes.unit
    monkeypatch.setattr(probes, "PAIRS", 3 * len(train))
    monkeypatch.setattr(probes, "unit", lambda vectors: most.append(len(vectors)) or unit(vectors))
    np.testing.assert_allclose(knn_scores(train, one_hot(labels), test)[5], unchunked, rtol=1e-5)
    assert max(most[1:]) == 3


def test_knn_takes_no_notice_of_lengths() -> None:
    (train, labels), (test, _) = blobs(40, seed=1), blobs(20, seed=2)
    lengths = np.random.default_rng(0).uniform(0.1, 1e4, (40, 1))
    plain, scaled = (knn_scores(of, one_hot(labels), test)[5] for of in (train, train * lengths))
    np.testing.assert_allclose(plain, scaled, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_separable_features_are_separated(scale: float) -> None:
    (train, labels), (test, expected) = blobs(80, seed=1, scale=scale), blobs(60, seed=2, scale=scale)
    scores, chosen = linear_scores(train, one_hot(labels), test, multi_label=False)
    assert top1(scores, expected) >= 0.95
    assert chosen["C"] in C_GRID
    assert chosen["converged"]
    assert top1(knn_scores(train, one_hot(labels), test)[20], expected) >= 0.95
    np.testing.assert_allclose(scores.sum(axis=1), 1)


def test_nothing_is_read_out_of_shuffled_labels() -> None:
    (train, labels), (test, expected) = blobs(400, seed=1), blobs(400, seed=2)
    shuffled = one_hot(np.random.default_rng(5).permutation(labels))
    scores, _ = linear_scores(train, shuffled, test, multi_label=False)
    for probed in (scores, knn_scores(train, shuffled, test)[20]):
        assert abs(top1(probed, expected) - 1 / CLASSES) < 0.12  # deviation of 400 draws: 0.02; blobs fall together


def test_c_is_chosen_on_the_fifth_and_the_fit_is_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each C is tried on what is left of the train set; the last fit sees all of it; the test set is seen once."""
    (train, labels), (test, _) = blobs(50, seed=1), blobs(13, seed=2)
    fits, scored, path, scores_of = [], [], probes.fit_path, Fit.scores

    def fitted(samples: Samples, strengths: Sequence[float], *, start: Fit | None = None) -> Iterator[Fit]:
        assert (start.strength if start else None) == (1e-2 if samples.count == 50 else None)
        for fit in path(samples, strengths, start=start):
            fits.append((samples.count, fit.strength))
            yield fit if fit.strength == 1e-2 else fit._replace(weights=-fit.weights)  # every other C fails

    def scores(fit: Fit, features: NDArray, rows: NDArray | None = None) -> NDArray:
        scored.append((features is test, len(features if rows is None else rows)))
        return scores_of(fit, features, rows)

    monkeypatch.setattr(probes, "fit_path", fitted)
    monkeypatch.setattr(Fit, "scores", scores)
    _, chosen = linear_scores(train, one_hot(labels), test, multi_label=False)
    held = len(labels) - fits[0][0]
    assert 8 <= held <= 12
    assert fits == [*((50 - held, c) for c in C_GRID), (50, 1e-2)]
    assert scored == [*[(False, held)] * len(C_GRID), (True, 13)]
    assert chosen["C"] == 1e-2


def test_the_fifth_is_of_each_class_alike_and_the_seeds() -> None:
    labels = np.repeat(np.arange(CLASSES), [50, 5, 2, 1])
    held = held_out(one_hot(labels), seed=3)
    assert np.bincount(labels[held], minlength=CLASSES).tolist() == [10, 1, 1, 0]
    assert np.array_equal(held, held_out(one_hot(labels), seed=3))
    assert not np.array_equal(held, held_out(one_hot(labels), seed=4))


def test_one_sample_a_class_leaves_nothing_to_choose_on() -> None:
    (train, labels), (test, expected) = blobs(CLASSES, seed=1), blobs(40, seed=2)
    scores, chosen = linear_scores(train, one_hot(labels), test, multi_label=False)
    assert (chosen["C"], chosen["held_out"]) == (1.0, None)
    assert top1(scores, expected) > 0.6


def test_classes_without_a_train_sample_have_no_chance() -> None:
    (train, labels), (test, _) = blobs(40, seed=1), blobs(10, seed=2)
    left = labels != 2
    scores, _ = linear_scores(train[left], one_hot(labels[left]), test, multi_label=False)
    assert (scores[:, 2] == 0).all()
    with pytest.raises(ValueError, match="one class"):
        linear_scores(train[labels == 1], one_hot(labels[labels == 1]), test, multi_label=False)


def test_many_labels_per_sample_are_probed_one_against_the_rest() -> None:
    def make(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        targets = (np.random.default_rng(seed).random((n, CLASSES)) < 0.4).astype(np.uint8)
        targets[:, 3] = 1  # of all: a constant
        noise = np.random.default_rng(seed + 1).standard_normal((n, WIDTH))
        return (targets @ CENTRES + 0.3 * noise).astype(np.float32), targets

    (train, targets), (test, expected) = make(120, 0), make(80, 10)
    scores, chosen = linear_scores(train, targets, test, multi_label=True)
    assert mean_average_precision(scores[:, :3], expected[:, :3]) > 0.95
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
    """Draw tokens of which one in six, anywhere, shows the class; the others' noise hides it in the mean."""
    rng = np.random.default_rng(seed)
    features = 2 * rng.standard_normal((n, 6, WIDTH)).astype(np.float32)
    features[..., -1] = 0
    labels = np.arange(n) % CLASSES
    where = rng.integers(0, 6, n)
    features[np.arange(n), where] = CENTRES[labels]
    features[np.arange(n), where, -1] = 8
    return features, labels


@pytest.mark.slow
def test_the_attentive_probe_finds_the_token_that_shows_the_class() -> None:
    (train, labels), (test, expected) = tokens(160, 0), tokens(80, 1)
    settings = {"multi_label": False, "num_heads": 2}
    random_state = torch.get_rng_state()
    scores, trained = attentive_scores(train.astype(np.float16), one_hot(labels), test, seed=1, **settings)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert top1(scores, expected) > 0.9
    assert trained["steps"] == 500
    linear, _ = linear_scores(train.mean(axis=1), one_hot(labels), test.mean(axis=1), multi_label=False)
    assert top1(linear, expected) < 0.8


def test_the_attentive_probe_is_timms_pooling_between_norms() -> None:
    torch.manual_seed(0)
    probe = probes.AttentiveProbe(WIDTH, CLASSES, num_heads=2)
    for parameter in probe.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    features = torch.randn(3, 5, WIDTH)
    ways = [probe(features), probe.head(probe.out_norm(probe.pool(probe.norm(features))))]
    gradients = [torch.autograd.grad(logits.square().sum(), list(probe.parameters())) for logits in ways]
    torch.testing.assert_close(*ways, atol=1e-4, rtol=1e-4)
    for parameter, ours, timms in zip(probe.state_dict(), *gradients, strict=True):
        torch.testing.assert_close(ours, timms, atol=1e-3, rtol=1e-3, msg=parameter)


def test_the_attentive_probe_is_the_same_under_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MIN_STEPS", 10)
    monkeypatch.setattr(probes, "EPOCHS", 1)
    (train, labels), (test, _) = tokens(100, 0), tokens(20, 1)
    runs = [
        attentive_scores(train, one_hot(labels), test, multi_label=multi_label, num_heads=2, seed=seed)[0]
        for multi_label, seed in ((False, 1), (False, 1), (False, 2), (True, 1))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])
    assert not np.allclose(runs[0], runs[3])


def test_each_probe_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes without a line look like a program that hangs."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(24, 8)).astype(np.float32), np.eye(2, dtype=np.uint8)[np.arange(24) % 2]
    knn_scores(features, targets, features, chunk=10)
    assert capsys.readouterr().err == "", "a library shows nothing unless it is to"
    knn_scores(features, targets, features, chunk=10, show=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [f"kNN sample {count}/24" for count in (10, 20, 24)]
    linear_scores(features, targets, features, multi_label=False, show=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines[:8]] == [f"linear probe fit {count}/8" for count in range(1, 9)]


@pytest.mark.parametrize("features", ["noise", "constant", "zero"])
@pytest.mark.parametrize("order", ["cycled", "by class"])
def test_what_knows_nothing_scores_no_more_than_chance(features: str, order: str) -> None:
    """Six classes of equal size, whichever numbers they have; top-5 counts classes with a vote only."""
    rng, classes = np.random.default_rng(0), 6
    labels, wanted = np.arange(60) % classes, np.arange(600) % classes
    if order == "by class":
        labels, wanted = np.sort(labels), np.sort(wanted)
    make = {"noise": rng.standard_normal, "constant": np.ones, "zero": np.zeros}[features]
    train, test, targets = make((60, 16)), make((600, 16)), np.eye(classes, dtype=np.uint8)[labels]
    by_method = {f"knn {k}": scores for k, scores in knn_scores(train, targets, test).items()}
    by_method["linear"] = linear_scores(train, targets, test, multi_label=False)[0]
    for method, scores in by_method.items():
        for k in (1, 5):
            hits = credit_at(scores, wanted, k=k)
            assert hits.mean() < k / classes + 0.06, (method, k)
        if method == "knn 1":  # one vote: there is no second place
            assert (credit_at(scores, wanted, k=5) == credit_at(scores, wanted, k=1)).all()
        targets_of_test = np.eye(classes, dtype=np.int64)[wanted]
        assert mean_average_precision(scores, targets_of_test) < 1 / classes + 0.06, method
