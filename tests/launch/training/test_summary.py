"""The first lines of a run have what its settings and its shards do not agree on."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launch.training.summary import _course, _mismatches
from pipelines.config import DataConfig


@dataclass(frozen=True)
class Stored:
    width: Any
    height: Any
    fps: Any


ROWS = np.array([0, 2])
FITTING = Stored(np.array([320, 64, 256]), np.array([224, 64, 256]), np.array([7.5, 1.0, np.nan]))


def told(stored: Stored, **settings: Any) -> dict[str, str]:
    corpus: Any = stored
    return _mismatches(DataConfig(**settings), corpus, ROWS, size=224)


def test_a_dataset_that_fits_is_not_mentioned() -> None:
    """Nor is a sample that takes no part, nor one without a time base."""
    assert told(FITTING) == {}


def test_smaller_pictures_than_the_models_are_told_with_both_sizes() -> None:
    lines = told(replace(FITTING, height=np.array([128, 64, 256])))
    assert lines.keys() == {"pixels"}
    assert "1 of 2 samples are smaller than 224 x 224, down to 128 x" in lines["pixels"]


@pytest.mark.parametrize(("sampling", "count"), [("strided", 1), ("segments", 0)])
def test_fewer_frames_a_second_than_the_clips_are_told_with_both_rates(sampling: Any, count: int) -> None:
    lines = told(replace(FITTING, fps=np.array([5.0, 1.0, np.nan])), sampling=sampling)
    assert len(lines) == count
    assert count == 0 or all(text in lines["frames"] for text in ("1 of 2", "(7.5 =", "down to 5: frames are repeated"))


@pytest.mark.parametrize(
    ("rate", "course"),
    [
        ({"lr": 1e-4, "min_lr": 1e-4, "warmup_steps": 0}, "no warm-up, then constant"),
        ({"lr": 1e-4, "min_lr": 0.0, "warmup_steps": 5000}, "warm-up of 5,000 steps, then a cosine to 0"),
    ],
)
def test_the_course_of_the_rate_is_told(rate: dict[str, float], course: str) -> None:
    """Flags of a trainer that has no schedule get the schedule of our defaults."""
    schedule: Any = SimpleNamespace(rate=rate)
    assert _course(schedule) == course
