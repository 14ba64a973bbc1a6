"""launch/report/comparison.py: a sentence claims a difference only if its interval does; few videos are named."""

from typing import Any

import pytest

from launch.report.comparison import comparison_page, verdicts


def interval(mean: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def results(gap: dict[str, Any], *, videos: int = 40, shared: int = 0) -> dict[str, Any]:
    facts = {"source": "<runs>/a", "frames": 8, "size": 64, "sampling_rate": 2, "target_fps": 30.0, "device": "cpu"}
    score = {"linear": interval(0.5, 0.4, 0.6)}
    return {
        "models": [
            {"name": "own", "image": False, "parameters": 650_000, "clips_per_s": 12.3, **facts, "measures": score},
            {"name": "image", "image": True, "parameters": 5_500_000, "clips_per_s": 3.1, **facts, "measures": score},
            {"name": "chance", "source": "no features", "measures": score},
        ],
        "differences": [
            {"model": "own", "against": "untrained", "measures": {"linear": interval(0.01, -0.02, 0.03)}},
            {"model": "own", "against": "image", "measures": {"linear": gap}},
        ],
        "classes": 4,
        "train": {"samples": 100, "left_out": 2},
        "test": {"samples": 80, "left_out": 1, "videos": videos, "of_train_videos": shared},
        "settings": {"layer": -1, "pool": "mean", "num_clips": 1, "seeds": 3, "seed": 0, "draws": 2000},
    }


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (interval(0.12, 0.07, 0.17), "own beats image by 12 points [7.0, 17.0]"),
        (interval(-0.043, -0.08, -0.01), "image beats own by 4.3 points [1.0, 8.0]"),
        (interval(0.02, -0.01, 0.05), "No difference between own and image is shown"),
        (interval(0.02, 0.0, 0.05), "No difference between own and image is shown"),
        (interval(0.3, None, None), "one test video gives no interval"),
    ],
)
def test_a_difference_is_claimed_only_if_its_interval_leaves_out_0(gap: dict[str, Any], said: str) -> None:
    first, second = verdicts(results(gap))
    assert said in first  # the image model comes before the untrained one
    assert "untrained" in second


def test_few_videos_and_videos_of_the_train_set_are_cautioned_against() -> None:
    *_, few, shared = verdicts(results(interval(0.1, 0.05, 0.2), videos=7, shared=30))
    assert "80 test samples come from 7 source videos" in few
    assert "30 test samples are of videos of the train set" in shared


def test_the_page_escapes_names_and_counts_what_is_left_out() -> None:
    page = comparison_page(results(interval(0.1, 0.05, 0.2)))
    assert "&lt;runs&gt;/a" in page
    assert "<runs>" not in page
    assert "3 samples that not every model could read" in page
    assert "0.65 M" in page
