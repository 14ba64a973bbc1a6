"""Scores are judged by the samples' labels: accuracy, mean average precision, confusion, a table by class.

scores (N, C), labels ─► figures

    credit = credit_at(scores, labels, k=5)        # (N,) float64, each sample on its own: top-5 is credit.mean()
    counts += confusion(scores, labels)            # (C, C) int64: whole numbers add up exactly
    precisions = average_precisions(scores, targets)           # (C,) float64, needs all samples at once

A hit depends on its sample alone, counts are whole numbers, and average precision does not depend on the order of the
samples: any grouping into batches or ranks gives the same numbers, bit for bit. Leave out samples without scores
(failed reads) or without a label; a score that is no number is refused. numpy only. N samples, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def summary(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Compute the figures of a validation.

    Args:
        scores: (N, C): mean probabilities over a sample's views.
        labels: (N,) class numbers; or (N, C) of 0 and 1, any number per sample.

    Returns:
        `top1` and `top5` (with fewer than five classes, all with a score above 0 count) and `loss`, the mean of -log of
        a label's score; for (N, C) labels `map` and `loss`, binary cross-entropy averaged over classes and samples. NaN
        without samples.

    Raises:
        ValueError: As in `credit_at`.
    """
    tiny = 1e-12  # probabilities in float32 below this count as 0
    if not len(labels):
        return dict.fromkeys(("map", "loss") if labels.ndim == 2 else ("top1", "top5", "loss"), float("nan"))
    if labels.ndim == 2:
        right = np.where(labels == 1, scores, 1 - scores).astype(np.float64)
        return {
            "map": mean_average_precision(scores, labels),
            "loss": float(-np.log(right.clip(tiny)).mean()),
        }
    of_labels = np.take_along_axis(scores, labels[:, None], axis=1).astype(np.float64)
    return {
        "top1": float(credit_at(scores, labels, k=1).mean()),
        "top5": float(credit_at(scores, labels, k=5).mean()),
        "loss": float(-np.log(of_labels.clip(tiny)).mean()),
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of a score over runs and its standard deviation, None for one run; NaN if a run has none."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def hits_at(scores: NDArray[Any], labels: NDArray[Any], *, k: int) -> NDArray[np.bool_]:
    """Return (N,) whether each sample's class is among its k highest scores, however equal scores are ordered.

    The arguments and errors are `credit_at`'s, whose mean is the accuracy.
    """
    hits: NDArray[np.bool_] = credit_at(scores, labels, k=k) == 1
    return hits


def credit_at(scores: NDArray[Any], labels: NDArray[Any], *, k: int) -> NDArray[np.float64]:
    """Return whether each sample's class is among its k highest scores: 1 or 0, and between them for equal scores.

    Of t classes with one score, of which p of the k places are left for, each has p / t of a hit: what breaking the tie
    by lot gives on average. So a constant score is worth what chance is, whichever numbers the classes have. Where no
    score of a sample is negative, they are votes or probabilities, and a class with 0 is no hit.

    Args:
        scores: (N, C): logits, probabilities or their sums over views; shares of votes.
        labels: (N,) class numbers.
        k: 1 for plain accuracy.

    Returns:
        (N,) from 0 to 1.

    Raises:
        ValueError: Scores are no numbers, or labels do not fit them.
    """
    scores, labels = _checked(scores, labels)
    of_labels = np.take_along_axis(scores, labels[:, None], axis=1)
    better, equal = (scores > of_labels).sum(axis=1), (scores == of_labels).sum(axis=1)
    credit: NDArray[np.float64] = ((k - better) / np.maximum(equal, 1)).clip(0, 1)
    credit[(of_labels[:, 0] == 0) & (scores >= 0).all(axis=1)] = 0
    return credit


def confusion(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Count the samples by (true class, predicted class); of equal scores the first class is the predicted one.

    Args:
        scores: (N, C).
        labels: (N,) class numbers.

    Returns:
        (C, C): rows are true classes, columns predicted ones. Matrices of parts of a dataset add up to the whole's.

    Raises:
        ValueError: As in `credit_at`.
    """
    classes = scores.shape[1]
    matrix = np.zeros((classes, classes), dtype=np.int64)
    true, predicted, counts = confused(scores, labels)
    matrix[true, predicted] = counts
    return matrix


def confused(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
    """Count the samples by (true class, predicted class) for the pairs that occur, of any number of classes.

    Returns:
        True classes, predicted classes and counts, each (P,), in the order of the pairs.

    Raises:
        ValueError: As in `credit_at`.
    """
    scores, labels = _checked(scores, labels)
    classes = scores.shape[1]
    pairs, counts = np.unique(labels * classes + scores.argmax(axis=1), return_counts=True)
    return pairs // classes, pairs % classes, counts


def class_table(
    scores: NDArray[Any], labels: NDArray[Any], *, names: Sequence[str] | None = None, k: int = 5
) -> dict[str, list[Any]]:
    """Compute the figures of each class: columns of equal length, as pyarrow.table takes them.

    Args:
        scores: (N, C).
        labels: (N,) class numbers.
        names: Names of the C classes; None leaves them as numbers.
        k: Number of highest scores for the column `top{k}`.

    Returns:
        `class`, `name`, `samples`, `predicted` (number of samples it was highest for), `top1` and `top{k}` (shares of
        the class's samples; None without samples), `precision` (share of `predicted` that was right; None if never
        predicted), `taken_for` (the class that its samples are most often mistaken for; None without mistakes).

    Raises:
        ValueError: As in `credit_at`, or there are not C names.
    """
    true, chosen, counts = confused(scores, labels)
    classes = scores.shape[1]
    names = [str(i) for i in range(classes)] if names is None else list(names)
    if len(names) != classes:
        raise ValueError(f"{len(names)} names for {classes} classes: give one name per class")
    samples, predicted = np.bincount(labels, minlength=classes), np.bincount(chosen, counts, minlength=classes)
    right = np.bincount(true[true == chosen], counts[true == chosen], minlength=classes)
    first, hits = (np.bincount(labels, credit_at(scores, labels, k=n), minlength=classes) for n in (1, k))
    taken_for: list[str | None] = [None] * classes
    wrong = np.flatnonzero(true != chosen)
    for i in wrong[np.argsort(-counts[wrong], kind="stable")]:  # of equal counts the smaller class, as with argmax
        if taken_for[true[i]] is None:
            taken_for[true[i]] = names[chosen[i]]
    return {
        "class": list(range(classes)),
        "name": names,
        "samples": samples.tolist(),
        "predicted": predicted.astype(np.int64).tolist(),
        "top1": _shares(first, samples),
        f"top{k}": _shares(hits, samples),
        "precision": _shares(right, predicted),
        "taken_for": taken_for,
    }


def average_precisions(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the average precision of each class: the mean precision at its positives, samples sorted by score.

    It is the sum over distinct scores, falling, of (recall gained) x (precision there), as scikit-learn's
    average_precision_score: equal scores count as one step, so that their order does not matter.

    Args:
        scores: (N, C).
        targets: (N, C) of 0 and 1; or (N,) class numbers.

    Returns:
        (C,), NaN for a class without a positive. `mean_average_precision` leaves those out.

    Raises:
        ValueError: As in `credit_at`, or targets are other than 0 and 1.
    """
    if targets.ndim == 1:
        scores, targets = _checked(scores, targets)
        targets = targets[:, None] == np.arange(scores.shape[1])
    scores = _finite(scores)
    if targets.shape != scores.shape or not ((targets == 0) | (targets == 1)).all():
        raise ValueError(f"targets {targets.shape} must be 0 or 1 for each of the scores {scores.shape}")
    columns = zip(scores.T, targets.T.astype(bool), strict=True)
    return np.array([_average_precision(column, positive) for column, positive in columns], dtype=np.float64)


def mean_average_precision(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    """Compute mAP, the mean of `average_precisions` over the classes with a positive; NaN if there are none."""
    precisions = average_precisions(scores, targets)
    present = precisions[~np.isnan(precisions)]
    return float(present.mean()) if len(present) else float("nan")


def _average_precision(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    scores, positives = scores[order], np.cumsum(positive[order])
    last = np.append(scores[1:] != scores[:-1], True)  # the end of each run of equal scores
    positives, taken = positives[last], np.flatnonzero(last) + 1
    return float((np.diff(positives, prepend=0) * (positives / taken)).sum() / positives[-1])


def _shares(parts: NDArray[Any], wholes: NDArray[Any]) -> list[float | None]:
    return [float(part) / int(whole) if whole else None for part, whole in zip(parts, wholes, strict=True)]


def _checked(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    scores = _finite(scores)
    if labels.shape != scores.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels {labels.shape} of {labels.dtype} must be class numbers, one for each of {len(scores)} samples"
        )
    wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
    if len(wrong):
        raise ValueError(
            f"labels {wrong[:8].tolist()} lie outside 0 to {scores.shape[1] - 1}: leave samples without a label out"
        )
    return scores, labels.astype(np.int64)


def _finite(scores: NDArray[Any]) -> NDArray[Any]:
    if scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} must be (samples, classes)")
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} samples have scores that are no numbers (first: row {wrong[0]}): leave failed reads out"
        )
    return scores
