"""mae3d.analysis.logistic: scikit-learn's optimum, in few steps whatever the covariance, a block at a time."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression

from mae3d.analysis import logistic
from mae3d.analysis.exact import one_thread
from mae3d.analysis.logistic import Fit, Samples, fit_path

CLASSES, WIDTH, COUNT = 5, 12, 240
Set = tuple[NDArray[np.float32], NDArray[np.uint8]]


def clusters(*, multi_label: bool, count: int = COUNT) -> Set:
    """Draw overlapping classes whose features depend on each other and are far from 0."""
    rng = np.random.default_rng(0)
    targets = (rng.random((count, CLASSES)) < 0.3).astype(np.uint8)
    if not multi_label:
        targets = np.eye(CLASSES, dtype=np.uint8)[rng.choice(CLASSES, count, p=[0.5, 0.2, 0.1, 0.1, 0.1])]
    axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * 10.0 ** -np.linspace(0, 3, WIDTH)[:, None]
    hidden = rng.standard_normal((count, WIDTH)) + targets @ rng.standard_normal((CLASSES, WIDTH))
    return (hidden @ axes + 10 * rng.standard_normal(WIDTH)).astype(np.float32), targets


def fitted(data: Set, strengths: tuple[float, ...], *, multi_label: bool, start: Fit | None = None) -> list[Fit]:
    features, targets = data
    with one_thread() as spread:
        samples = Samples(features, targets, np.arange(len(targets)), multi_label=multi_label, spread=spread)
        return list(fit_path(samples, strengths, start=start))


def objective(weights: NDArray, biases: NDArray, x: NDArray, targets: NDArray, *, c: float, multi_label: bool) -> float:
    logits = x @ weights + biases
    likely = -np.log(expit(np.where(targets, logits, -logits))) if multi_label else -log_softmax(logits, 1) * targets
    return float(likely.sum(axis=1).mean() + (weights**2).sum() / (2 * c * len(x)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_optimum_is_scikit_learns(multi_label: bool) -> None:
    features, targets = data = clusters(multi_label=multi_label)
    for fit in fitted(data, (1e-3, 1.0, 100.0), multi_label=multi_label):
        x = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
        columns = targets.T if multi_label else [targets.argmax(axis=1)]
        models = [LogisticRegression(C=fit.strength, tol=1e-7, max_iter=9999).fit(x, column) for column in columns]
        weights, biases = (np.concatenate([getattr(m, name) for m in models]) for name in ("coef_", "intercept_"))
        judge: Any = {"x": x, "targets": targets, "c": fit.strength, "multi_label": multi_label}
        ours = objective(fit.weights.double().numpy(), fit.biases.double().numpy(), **judge)
        assert ours == pytest.approx(objective(weights.T, biases, **judge), abs=1e-5)
        theirs = np.stack([m.predict_proba(x)[:, 1] for m in models], 1) if multi_label else models[0].predict_proba(x)
        np.testing.assert_allclose(fit.scores(features), theirs, atol=0.01)
        assert fit.converged


def test_features_that_depend_on_each_other_cost_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path over all strengths, through features whose covariance spans six powers of ten, begun cold and warm."""
    losses, loss = [0], Samples.loss

    def counted(samples: Samples, weights: torch.Tensor, biases: torch.Tensor) -> Any:
        losses[-1] += 1
        return loss(samples, weights, biases)

    monkeypatch.setattr(Samples, "loss", counted)
    data = clusters(multi_label=False)
    last = fitted(data, tuple(10.0**power for power in range(-4, 3)), multi_label=False)[-1]
    losses.append(0)
    fitted(data, (100.0,), multi_label=False, start=last)
    assert losses[0] < 200  # 493 in the features' own coordinates
    assert losses[1] < 5


@pytest.mark.parametrize("multi_label", [False, True])
def test_features_are_read_in_blocks(multi_label: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(np.ndarray):
        def __getitem__(self, rows: Any) -> Any:
            assert len(rows) <= 32
            return np.asarray(self)[rows]

    features, targets = clusters(multi_label=multi_label)
    whole = fitted((features, targets), (1.0,), multi_label=multi_label)[0].scores(features)
    monkeypatch.setattr(logistic, "BLOCK", 32)
    monkeypatch.setattr(logistic, "BLOCKS_AT_ONCE", 3)
    by_block = fitted((features.view(Rows), targets), (1.0,), multi_label=multi_label)[0].scores(features.view(Rows))
    np.testing.assert_allclose(by_block, whole, atol=1e-3)


def test_features_without_a_spread_and_more_features_than_samples_are_fitted() -> None:
    features, targets = clusters(multi_label=False, count=9)
    features[:, 3] = 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (fit,) = fitted((features, targets), (100.0,), multi_label=False)
    scores = fit.scores(features)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert (scores[:, targets.sum(axis=0) == 0] == 0).all()
    assert (scores.argmax(axis=1) == targets.argmax(axis=1)).all()
