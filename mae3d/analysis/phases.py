"""Classes along a video are compared with its true phases, frame by frame and segment by segment, and smoothed.

scores (n, C), one row per moment ─► classes (n,) ─► figures

    predicted = hmm_smoothed(scores, stay=0.99).argmax(axis=1)
    frame_accuracy(predicted, true), edit_score(predicted, true), f1_at(predicted, true, overlap=0.5)

A moment whose true class is -1 is unlabelled: it counts nowhere, and the moments beside it do not become neighbours of
one another. n moments in order of time, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]  # (n,)
Scores = NDArray[np.floating]  # (n, C), probabilities

UNLABELLED = -1
OVERLAPS = (0.1, 0.25, 0.5)
TINY = 1e-12  # probabilities below this count as it


class Segment(NamedTuple):
    """A longest run of moments of one class, half-open."""

    label: int
    start: int
    stop: int


class Matches(NamedTuple):
    """Counts of predicted and true segments, or boundaries; those of several videos add up."""

    hits: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        """The share of the predicted ones that hit, 1 if there are none."""
        return self.hits / self.predicted if self.predicted else 1.0

    @property
    def recall(self) -> float:
        """The share of the true ones that are hit, 1 if there are none."""
        return self.hits / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, 1 if there is nothing to match."""
        both = self.predicted + self.true
        return 2 * self.hits / both if both else 1.0


def total(matches: Iterable[Matches]) -> Matches:
    """Return the sums of the counts of several videos."""
    return Matches(*np.sum(list(matches), axis=0).tolist())


def segments_of(classes: Classes) -> list[Segment]:
    """Return the segments of a sequence of classes, without the unlabelled ones."""
    if not len(classes):
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1])
    stops = np.concatenate([starts[1:], [len(classes)]])
    runs = zip(classes[starts].tolist(), starts.tolist(), stops.tolist(), strict=True)
    return [Segment(*run) for run in runs if run[0] != UNLABELLED]


def frame_accuracy(predicted: Classes, true: Classes) -> float:
    """Return the share of the labelled moments whose class is predicted (MoF); NaN if none is labelled."""
    labelled = true != UNLABELLED
    return float((predicted == true)[labelled].mean()) if labelled.any() else float("nan")


def edit_score(predicted: Classes, true: Classes) -> float:
    """Return the segmental edit score, 0 to 1 (Lea et al., arXiv 1611.05267, section 4.2).

    It is 1 - d / m: the Levenshtein distance d of the two sequences of segments' classes, however long each lasts, over
    the length m of the longer sequence.
    """
    a, b = ([segment.label for segment in segments_of(_hide(classes, true))] for classes in (predicted, true))
    if not a and not b:
        return 1.0
    row = list(range(len(b) + 1))
    for i, label in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (label != other))
    return 1 - row[-1] / max(len(a), len(b))


def matches_at(predicted: Classes, true: Classes, overlap: float) -> Matches:
    """Return the matched segments at an overlap, of which F1@k is made (Lea et al., arXiv 1611.05267, section 4.2).

    In order of time, a predicted segment hits the true segment of its class with which its intersection over union is
    greatest, if that is at least `overlap`. A true segment counts as hit once: further ones on it are false positives.
    """
    guesses, truths = segments_of(_hide(predicted, true)), segments_of(true)
    taken: set[int] = set()
    for guess in guesses:
        overlaps = [_overlap(guess, truth) if truth.label == guess.label else 0.0 for truth in truths]
        best = int(np.argmax(overlaps)) if overlaps else 0
        if overlaps and overlaps[best] >= overlap:
            taken.add(best)
    return Matches(len(taken), len(guesses), len(truths))


def f1_at(predicted: Classes, true: Classes, overlap: float) -> float:
    """Return the segmental F1 of one video at an overlap; F1@{10,25,50} are at 0.1, 0.25 and 0.5."""
    return matches_at(predicted, true, overlap).f1


def boundary_matches(changes: Sequence[float], true: Sequence[float], *, tolerance: float) -> Matches:
    """Return how many change points lie within a tolerance of a true boundary; each boundary is hit by one at most.

    Pairs are made from the nearest on: with few close boundaries that is the largest number of pairs.

    Args:
        changes: Seconds of the change points.
        true: Seconds of the boundaries.
        tolerance: Seconds.
    """
    distances = sorted(
        (abs(a - b), i, j) for i, a in enumerate(changes) for j, b in enumerate(true) if abs(a - b) <= tolerance
    )
    used: set[int] = set()
    hit: set[int] = set()
    for _, i, j in distances:
        if i not in used and j not in hit:
            used.add(i)
            hit.add(j)
    return Matches(len(hit), len(changes), len(true))


def median_smoothed(scores: Scores, rows: int) -> Scores:
    """Return (n, C) float64: each class's median over a centred window of `rows` moments, and rows that sum to 1.

    Args:
        scores: (n, C) probabilities; ends are repeated outwards.
        rows: Length of the window, 1 or more; an even one is made one longer.
    """
    from scipy.ndimage import median_filter

    medians = median_filter(scores.astype(np.float64), size=(rows + 1 - rows % 2, 1), mode="nearest")
    return medians / np.maximum(medians.sum(axis=1, keepdims=True), TINY)


def hmm_smoothed(scores: Scores, stay: float) -> Scores:
    """Return (n, C) float64, 1 for the class of the most probable path (Viterbi) and 0 for others.

    A class stays with probability `stay` from one moment to the next, and changes to each other one alike; all begin
    alike. Scores are taken as likelihoods: of a classifier trained on balanced classes that is Bayes' rule.

    Args:
        scores: (n, C) probabilities.
        stay: Probability of no change, above 0 and below 1.
    """
    moments, classes = scores.shape
    path = np.zeros((moments, classes))
    if classes == 1 or not moments:
        return np.ones_like(path)
    log_stay, log_move = np.log(stay), np.log((1 - stay) / (classes - 1))
    likelihood = np.log(np.maximum(scores.astype(np.float64), TINY))
    best, came_from = likelihood[0].copy(), np.zeros((moments, classes), np.int32)
    for i in range(1, moments):
        source = int(best.argmax())  # the best class to come from, unless a class stays
        stays = best + log_stay >= best[source] + log_move
        came_from[i] = np.where(stays, np.arange(classes), source)
        best = np.where(stays, best + log_stay, best[source] + log_move) + likelihood[i]
        best -= best.max()  # hours of logarithms would lose digits
    label = int(best.argmax())
    for i in range(moments - 1, -1, -1):
        path[i, label] = 1
        label = int(came_from[i, label])
    return path


def agreement(predicted: Sequence[Classes], true: Sequence[Classes]) -> dict[str, float]:
    """Return the figures of several videos: accuracy over all moments, the mean edit score, F1 of all segments.

    Args:
        predicted: (n,) of each video.
        true: (n,) of each video; one without a labelled moment is left out.
    """
    pairs = [(a, b) for a, b in zip(predicted, true, strict=True) if (b != UNLABELLED).any()]
    if not pairs:
        return {}
    figures = {
        "accuracy": frame_accuracy(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])),
        "edit": float(np.mean([edit_score(a, b) for a, b in pairs])),
    }
    for overlap in OVERLAPS:
        figures[f"f1_{round(100 * overlap)}"] = total(matches_at(a, b, overlap) for a, b in pairs).f1
    return figures


def best_setting(figures: Mapping[float, Sequence[float]], *, without: int) -> float:
    """Return the setting with the greatest mean figure over all videos but one, the smallest of equal ones.

    Args:
        figures: Setting -> one figure per video.
        without: Number of the video that has no say: the setting is meant for it.
    """
    means = {
        setting: np.mean([value for video, value in enumerate(values) if video != without])
        for setting, values in sorted(figures.items())
    }
    return max(means, key=lambda setting: means[setting])


def _hide(classes: Classes, true: Classes) -> Classes:
    """Return classes with -1 for the moments that have no true class."""
    return np.where(true == UNLABELLED, UNLABELLED, classes)


def _overlap(a: Segment, b: Segment) -> float:
    """Return the intersection over union of two segments."""
    shared = max(0, min(a.stop, b.stop) - max(a.start, b.start))
    return shared / (max(a.stop, b.stop) - min(a.start, b.start) if shared else 1)
