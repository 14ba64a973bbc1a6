"""Curves of any length become few points that keep every peak; a growing file is read once."""

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mae3d.tracking.curves import BUCKETS, Curve, Curves, Follower
from tests.support.runs import as_json, make_run, row_of


@pytest.mark.parametrize("count", [1, 2, 299, 300, 301, 601, 5000, 40_001])
def test_least_and_greatest_stay_and_the_points_are_few(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    values[count // 3], values[count // 2] = 50.0, -50.0
    curve = Curve()
    for step, value in enumerate(values.tolist(), 1):
        curve.add(step, value)
    points = curve.points()
    assert len(points) <= 2 * BUCKETS + 1
    assert points[-1] == (count, values[-1])
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert max(points, key=lambda p: p[1]) == (int(values.argmax()) + 1, values.max())
    assert min(points, key=lambda p: p[1]) == (int(values.argmin()) + 1, values.min())
    assert all(values[step - 1] == value for step, value in points), "points are of the curve, not between"
    if count <= BUCKETS:
        assert points == list(enumerate(values.tolist(), 1))
        assert curve.means() == []
    else:
        means = curve.means()
        assert len(means) <= BUCKETS
        assert means[-1][0] == count
        bounds = [0, *(step for step, _ in means)]
        assert [mean for _, mean in means] == pytest.approx([values[a:b].mean() for a, b in pairwise(bounds)])


def test_memory_does_not_grow_with_the_length() -> None:
    curve = Curve()
    tracemalloc.start()
    for step in range(10_000):
        curve.add(step, float(step % 97))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_hours_come_from_the_speed_and_never_go_back() -> None:
    curves = Curves(clips_per_step=16)
    for step in (10, 20, 30, 20, 30):  # back at a checkpoint
        curves.add(row_of(step, clips_per_s=160.0))
    hours = [value for _, value in curves.named["hours"].points()]
    assert hours == sorted(hours)
    assert hours[2] == pytest.approx(30 * 16 / 160 / 3600)


def test_counts_that_rise_become_events_and_what_is_no_number_is_left_out() -> None:
    curves = Curves(clips_per_step=1)
    curves.add(row_of(10, skipped_steps=0, loss=float("nan"), name="x", flag=True, huge=10**400))
    curves.add(row_of(20, skipped_steps=3, rollbacks=1))
    curves.add(row_of(30, skipped_steps=3, rollbacks=1))
    assert [(step, text.split()[0]) for step, text in curves.events] == [(20, "3"), (20, "1")]
    assert [step for step, _ in curves.named["loss"].points()] == [20, 30]
    assert not {"name", "flag", "huge", "skipped_steps", "step"} & curves.named.keys()


def test_each_line_is_read_once_a_half_line_later_and_a_cut_file_anew(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", steps=30) / "metrics.jsonl"
    follower = Follower(path.parent)
    assert [row["step"] for row in follower.rows()] == [10, 20, 30]
    half = json.dumps(row_of(40))
    with path.open("a") as file:
        file.write(half[:20])
    assert list(follower.rows()) == []
    with path.open("a") as file:
        file.write(half[20:] + "\n" + as_json([row_of(50)]))
    assert not follower.is_new_course()
    assert [row["step"] for row in follower.rows()] == [40, 50]
    path.write_text(as_json([row_of(step, loss=3.0) for step in range(10, 200, 10)]))  # longer, and another course
    assert follower.is_new_course()
    assert [row["step"] for row in follower.rows()][:2] == [10, 20]
    path.unlink()
    assert follower.is_new_course()
    assert list(follower.rows()) == []
