"""launch/inference/probing.py: what cannot fit is refused at the start, and no score ends the last step."""

import errno
import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from launch.inference import probing
from launch.inference.probing import FeatureTables, bytes_needed, compare, require_room
from mae3d.analysis import logistic, probes
from mae3d.io import resources

SIZES = [
    {"train": 100, "test": 1000, "classes": 1000, "width": 8},  # scores weigh most
    {"train": 2000, "test": 200, "classes": 4, "width": 256},  # features do
]


def written(folder: Path, *, train: int, test: int, classes: int, width: int) -> FeatureTables:
    """Write tables of random vectors whose labels go through the classes; return them."""
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(count * width, np.float32)), width)
        labels = pa.array([[number % classes] for number in range(count)], pa.list_(pa.int32()))
        pq.write_table(pa.table({"labels": labels, "vector": vectors}), folder / f"{name}.parquet", row_group_size=256)
    return FeatureTables(folder, num_classes=classes, multi_label=False, num_heads=1, device=torch.device("cpu"))


@pytest.mark.parametrize("probe", ["knn", "linear"])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_memory_that_is_said_to_be_needed_is_but_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: str, sizes: dict[str, int]
) -> None:
    """A lower bound of the peak, which refuses nothing that could work, and no tenth of it."""
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    monkeypatch.setattr(probes, "C_GRID", (1.0,))
    monkeypatch.setattr(probes, "PAIRS", 2**14)
    tables = written(tmp_path, **sizes)
    compare(tables, [probe])  # libraries are loaded
    tracemalloc.start()
    try:
        compare(tables, [probe])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.25 * peak < bytes_needed(**sizes)[probe] < 1.02 * peak


def test_probes_that_memory_or_the_disk_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"train": 10_000_000, "test": 1_000_000, "classes": 1000, "width": 768}
    monkeypatch.setattr(resources, "available_memory", lambda: 30 * 10**9)
    with pytest.raises(
        ValueError, match=r"10,000,000 \+ 1,000,000 samples of 1,000 classes.*knn.* 30 GB are available"
    ):
        require_room(tmp_path, ["knn"], tokens=1568, **sizes)
    monkeypatch.setattr(resources, "available_memory", lambda: 10**15)
    require_room(tmp_path, ["knn", "linear"], tokens=1568, **sizes)
    with pytest.raises(OSError, match=r"1,568 tokens, 768 wide, of .* GB of disk are needed") as refused:
        require_room(tmp_path, ["attentive"], tokens=1568, **sizes)
    assert refused.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_under_the_tokens_is_an_error_not_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {b"mae3d": b'{"grid": [1, 1, 2], "width": 4}'}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(24, np.float32)), 8)
    rows = pa.table({"labels": pa.array([[0]] * 3, pa.list_(pa.int32())), "vector": vectors})
    pq.write_table(rows.replace_schema_metadata(settings), tmp_path / "test_tokens.parquet")
    tables = FeatureTables(tmp_path, num_classes=1, multi_label=False, num_heads=1, device=torch.device("cpu"))
    assert probing._tokens(tables, "test", tmp_path / "mapped").features.shape == (3, 2, 4)

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        probing._tokens(tables, "test", tmp_path / "again")


def test_a_score_that_is_no_number_is_spread_as_such_and_few_shots_say_what_the_smallest_class_has_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = written(tmp_path, train=7, test=3, classes=3, width=4)  # classes of 3, 2 and 2
    measured: Any = lambda *_: {"top1": math.nan}  # noqa: E731
    monkeypatch.setattr(probing, "_measured", measured)
    rows = compare(tables, ["knn"], few_shot=[1, 3], seeds=2)["few_shot"]
    assert {(row["shots"], row["fewest_per_class"]) for row in rows} == {(1, 1), (3, 2)}
    assert all(math.isnan(row["top1"]) and math.isnan(row["top1_std"]) for row in rows)
