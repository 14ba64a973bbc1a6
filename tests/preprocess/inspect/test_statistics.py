from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.dataset.index import open_dataset
from preprocess.dataset.schema import REJECTED_SCHEMA
from preprocess.inspect.statistics import histogram, look_over, most_frequent
from tests.support.media import make_dataset


@pytest.mark.parametrize("seed", range(4))
def test_every_value_is_in_one_bar(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for values in (
        rng.integers(1, 9, 500),
        rng.normal(10, 3, 700),
        rng.lognormal(0, 3, 2000),
        np.full(7, 2.5),
        np.array([3]),
        np.array([0, 10]),
    ):
        chart = histogram(values)
        assert sum(count for _, count in chart.bars) == len(values), (chart, values.min(), values.max())
        assert len(chart.bars) <= 40
    assert histogram(np.empty(0)).bars == []


def test_bars_of_a_histogram_say_what_they_hold() -> None:
    assert histogram(np.array([3, 3, 4, 6])).bars == [("3", 2), ("4", 1), ("5", 0), ("6", 1)]
    assert histogram(np.array([2.5, 2.5])).bars == [("2.5", 2)]
    values = np.concatenate([np.linspace(0, 10, 1000), [5000.0, 9000.0]])
    bars = histogram(values).bars
    assert bars[-1][0].endswith(" or more")
    assert bars[-1][1] >= 2
    assert dict(histogram(np.repeat([10.0, 20.0, 30.0], 100)).bars)["20 to 22"] == 100


def test_the_most_frequent_come_first_and_the_rest_together() -> None:
    values = np.repeat(np.arange(30), np.arange(30) + 1)
    chart = most_frequent(values, str, most=3)
    assert chart.bars == [("29", 30), ("28", 29), ("27", 28)]
    assert chart.rest == ("27 others", 378)
    ordered = most_frequent(values, str, most=3, in_order=True)
    assert [name for name, _ in ordered.bars] == ["27", "28", "29"]


def test_a_dataset_is_counted(tmp_path: Path) -> None:
    labels = ["cut", "tie", "cut tie", "", "cut"]
    shards = make_dataset(tmp_path, samples=5, frames=[2, 2, 4, 5, 5], labels=labels, source_fps=2.0)
    dataset = open_dataset(shards)
    charts = look_over(dataset).charts
    assert dict(charts["Labels"].bars) == {"cut": 3, "tie": 2}
    assert charts["Labels a sample"].bars == [("0", 1), ("1", 3), ("2", 1)]
    assert charts["Frames a sample"].bars == [("2", 2), ("3", 0), ("4", 1), ("5", 2)]
    assert charts["Frames a second"].bars == [("2", 5)]
    assert charts["Size, pixels"].bars == [("64 x 48", 5)]
    assert sum(count for _, count in charts["Bytes a frame"].bars) == 18
    assert sum(count for _, count in charts["Duration, seconds"].bars) == 5
    assert charts["Split"].bars == [("none", 5)]


def test_rejects_are_counted_by_reason_with_the_first_few(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=9, frames=2)
    reasons = look_over(open_dataset(shards))
    assert reasons.rejected == reasons.remarks == []
    where = {"key": "", "file": "list", "line": 1, "frame": -1, "message": ""}
    all_of_them = [("a", 0), *[("b", 0)] * 8, ("damaged", 3)]
    rows = [
        where | {"name": f"n{number}", "num_frames": num_frames, "reason": reason}
        for number, (reason, num_frames) in enumerate(all_of_them)
    ]
    pq.write_table(pa.Table.from_pylist(rows, REJECTED_SCHEMA), shards / "rejected.parquet")
    reasons = look_over(open_dataset(shards))
    assert [(one.reason, one.count, len(one.first)) for one in reasons.rejected] == [("b", 8, 5), ("a", 1, 1)]
    assert [row["name"] for row in reasons.rejected[0].first] == ["n1", "n2", "n3", "n4", "n5"]
    assert [(one.reason, one.count) for one in reasons.remarks] == [("damaged", 1)]
