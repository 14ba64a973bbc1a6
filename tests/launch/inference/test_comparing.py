"""launch/inference/comparing.py: models are judged on the samples that all of them have, each row by its own vector."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.common.eval_set import EvalSet
from launch.inference.comparing import Compared, common_samples, hits_of

LABELS = np.arange(60) % 3


def corpus(*, fingerprint: str, several: bool = False) -> Any:
    """A corpus of sixty samples of three classes, four of each video."""
    return SimpleNamespace(
        num_classes=3,
        has_multiple_labels=several,
        fingerprint=fingerprint,
        labels_of=lambda row: [int(LABELS[row])],
        name=lambda row: f"video {row // 4}",
    )


def model(
    folder: Path, *, rows: Sequence[int], unread: Sequence[int] = (), test: Any = None, backwards: float = 0.0
) -> Compared:
    """A model that has the rows, whose vectors show the class; clips backwards are moved by so much."""
    folder.mkdir()
    of_test = test or corpus(fingerprint="b")
    sets = [
        cast(EvalSet, SimpleNamespace(corpus=side, rows=np.array(rows))) for side in (corpus(fingerprint="a"), of_test)
    ]
    compared = Compared(folder.name, folder, *sets)
    for side in ("train", "test"):
        for is_back in (False, True):
            vectors = [[*np.eye(3)[LABELS[row]], backwards * is_back] for row in rows]
            values = [None if row in unread else vector for row, vector in zip(rows, vectors, strict=True)]
            table = pa.table({"vector": pa.array(values, pa.list_(pa.float32(), 4))})
            pq.write_table(table, compared.table(side, backwards=is_back))
    return compared


@pytest.mark.slow
def test_models_with_other_samples_are_judged_on_those_of_all(tmp_path: Path) -> None:
    first = model(tmp_path / "a", rows=range(60), unread=(5, 6), backwards=1.0)
    second = model(tmp_path / "b", rows=range(4, 60))
    common = common_samples([first, second], time_order=True)
    expected = [row for row in range(4, 60) if row not in (5, 6)]
    assert {side: rows.tolist() for side, rows in common.rows.items()} == {"train": expected, "test": expected}
    assert common.left_out == {"train": 6, "test": 6}
    assert common.groups[:2] == ["video 1", "video 1"]
    assert common.targets["test"].argmax(axis=1).tolist() == LABELS[expected].tolist()
    measured = []
    for of in (first, second):
        hits = hits_of(of, common, few_shot=[1], seeds=2, seed=0, time_order=True)
        measured.append({name: float(of_samples.mean()) for name, of_samples in hits.items()})
    assert measured[0] == {"linear": 1, "knn": 1, "few_shot_1": 1, "time_order": 1}
    assert measured[1] == {"linear": 1, "knn": 1, "few_shot_1": 1, "time_order": 0.5}


def test_test_samples_of_train_videos_are_counted_if_the_dataset_is_one(tmp_path: Path) -> None:
    for name, fingerprint, counted in (("same", "a", 8), ("other", "b", 0)):
        of = model(tmp_path / name, rows=range(8), test=corpus(fingerprint=fingerprint))
        assert common_samples([of], time_order=False).of_train_videos == counted


def test_samples_with_several_labels_and_none_in_common_are_refused(tmp_path: Path) -> None:
    several = model(tmp_path / "several", rows=range(6), test=corpus(fingerprint="b", several=True))
    with pytest.raises(ValueError, match=r"several labels.*mae3d probe"):
        common_samples([several], time_order=False)
    apart = [model(tmp_path / name, rows=rows) for name, rows in (("low", range(5)), ("high", range(5, 9)))]
    with pytest.raises(ValueError, match="no train sample"):
        common_samples(apart, time_order=False)
