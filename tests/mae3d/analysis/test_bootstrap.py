"""mae3d.analysis.bootstrap: intervals hold their means, are paired, and count a group as one."""

from typing import Any

import numpy as np
import pytest

from mae3d.analysis.bootstrap import intervals

HITS = (np.random.default_rng(0).random(400) < 0.7).astype(float)
ALONE = [str(i) for i in range(400)]


def limits(values: dict[str, Any], groups: list[str]) -> dict[str, tuple[float, float, float]]:
    """Mean, low and high of each, which all have."""
    found = intervals(values, groups=groups)
    return {
        name: (mean, low, high) for name, (mean, low, high) in found.items() if low is not None and high is not None
    }


def test_an_interval_holds_the_mean_and_has_the_width_of_theory() -> None:
    mean, low, high = limits({"hits": HITS}, ALONE)["hits"]
    assert mean == HITS.mean()
    assert low < mean < high
    deviation = np.sqrt(mean * (1 - mean) / 400)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_groups_widen_an_interval_by_their_likeness() -> None:
    alike = np.repeat(HITS[:40], 10)  # ten pieces of each of forty videos, all right or all wrong
    videos = [str(i // 10) for i in range(400)]
    (_, low, high), (_, wide_low, wide_high) = (limits({"hits": alike}, groups)["hits"] for groups in (ALONE, videos))
    assert wide_high - wide_low == pytest.approx(np.sqrt(10) * (high - low), rel=0.2)


def test_a_difference_is_paired() -> None:
    better = np.maximum(HITS, np.arange(400) % 20 == 0)  # the same, and right on five percent more
    found = limits({"a": better, "b": HITS, "gap": better - HITS, "same": HITS - HITS}, ALONE)
    assert found["same"] == (0, 0, 0)
    assert found["gap"][1] > 0  # though the two intervals overlap
    assert found["a"][1] < found["b"][2]


def test_draws_depend_on_the_seed_alone_and_one_group_has_no_interval() -> None:
    first, again, other = (intervals({"h": HITS}, groups=ALONE, seed=seed, draws=200)["h"] for seed in (0, 0, 1))
    assert first == again != other
    assert intervals({"h": HITS}, groups=["a"] * 400)["h"] == (HITS.mean(), None, None)
    with pytest.raises(ValueError, match="400 values of 3 samples"):
        intervals({"h": HITS}, groups=["a"] * 3)
