"""Novelty against a search of all pairs; change points of sequences whose changes are known, in blocks too."""

import numpy as np
import pytest
import torch

from mae3d.analysis import course
from mae3d.analysis.course import change_points, novelties
from mae3d.analysis.features import unit


def scenes(lengths: list[int], *, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """Return (n, 24) vectors: a direction per scene, and noise."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(len(lengths), 24))
    rows = np.repeat(centres, lengths, axis=0)
    return (rows + noise * generator.normal(size=rows.shape)).astype(np.float32)


@pytest.mark.parametrize("apart_s", [0.0, 3.0])
def test_novelty_is_the_distance_to_the_nearest_earlier_window(apart_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "ROWS", 7)
    vectors = scenes([9, 8, 6], noise=0.5)
    start_s = np.arange(23) * 1.0
    end_s = start_s + 2.0
    result = novelties(vectors, start_s, end_s, apart_s=apart_s)
    lengths = np.linalg.norm(vectors, axis=1)
    for i in range(23):
        earlier = [j for j in range(i) if end_s[j] <= start_s[i] - apart_s]
        if not earlier:
            assert np.isnan(result[i])
        else:
            nearest = max(vectors[i] @ vectors[j] / lengths[i] / lengths[j] for j in earlier)
            assert result[i] == pytest.approx(1 - nearest, abs=1e-5)
    assert np.isnan(result).sum() == 2 + apart_s


def test_a_scene_that_is_seen_again_is_not_new() -> None:
    a, b = scenes([10, 10], noise=0.0)[[0, 10]]
    vectors = np.stack([a] * 5 + [b] * 5 + [a] * 5)
    seconds = np.arange(15.0)
    result = novelties(vectors, seconds, seconds + 1)
    assert result[5] > 0.1
    assert result[6:].max() < 1e-6


def test_no_windows_have_no_novelty() -> None:
    assert novelties(np.zeros((0, 4)), np.zeros(0), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("lengths", [[40, 30, 50], [300, 500, 700, 400, 600]])
def test_changes_are_at_the_first_rows_of_new_scenes(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "BLOCK", 512)
    monkeypatch.setattr(course, "MARGIN", 64)
    vectors = scenes(lengths)
    changes = change_points(vectors, penalty=3.0)
    assert [change.row for change in changes] == np.cumsum(lengths)[:-1].tolist()
    first, second = lengths[:2]
    before, after = unit(vectors)[:first].mean(axis=0), unit(vectors)[first : first + second].mean(axis=0)
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert changes[0].strength == pytest.approx(1 - cosine, abs=1e-5)


def test_a_block_decides_nothing_near_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "BLOCK", 512)
    monkeypatch.setattr(course, "MARGIN", 64)
    monkeypatch.setattr("ruptures.KernelCPD.predict", lambda self, pen: [10, 100, 500, len(self.cost.signal)])
    rows = [change.row for change in change_points(scenes([512 + 384]), penalty=1.0)]
    assert rows == [10, 100, 384 + 100, 384 + 500]


def test_noise_alone_has_no_changes_and_a_greater_penalty_finds_fewer() -> None:
    assert change_points(scenes([200]), penalty=3.0) == []
    vectors = scenes([20] * 10, noise=1.0)
    counts = [len(change_points(vectors, penalty=penalty)) for penalty in (0.5, 3.0, 1000.0)]
    assert counts[0] > counts[1] > counts[2] == 0


def test_motion_in_most_of_the_footage_hides_no_cuts() -> None:
    """Of ten scenes seven move: the median of the steps is motion, and nothing would stand out from it."""
    generator = np.random.default_rng(1)
    vectors, moves = scenes([8] * 10), np.repeat([1, 1, 0, 1, 1, 0, 1, 1, 0, 1], 8)
    vectors += 0.7 * moves[:, None] * generator.normal(size=vectors.shape).astype(np.float32)
    rows = {change.row for change in change_points(vectors, penalty=12.0)}
    assert rows >= set(range(8, 80, 8))


def test_a_segment_has_the_least_length() -> None:
    vectors = scenes([30, 2, 30])
    assert [change.row for change in change_points(vectors, penalty=1.0, min_rows=2)] == [30, 32]
    rows = [change.row for change in change_points(vectors, penalty=1.0, min_rows=5)]
    assert np.diff([0, *rows, 62]).min() >= 5
    assert change_points(vectors[:3], penalty=0.001, min_rows=2) == []


def test_threads_change_nothing() -> None:
    vectors, seconds = scenes([400, 300], noise=0.3), np.arange(700.0)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append((novelties(vectors, seconds, seconds + 1).tobytes(), change_points(vectors, penalty=2.0)))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]
