"""Several datasets under one numbering of rows, shards and splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus import Corpus, open_corpus
from preprocess.index import DatasetError
from tests.datasets import index_only

A, B = index_only([3, 0, 4], seed=1, root="a"), index_only([2, 5], seed=2, root="b")


def test_rows_and_shards_are_counted_through_all_datasets() -> None:
    both = Corpus([A, B])
    assert len(both) == 14
    for column in ("num_frames", "fps", "width", "height"):
        expected = np.concatenate([getattr(A, column), getattr(B, column)])
        assert np.array_equal(getattr(both, column), expected, equal_nan=True)
    assert both.shard.tolist() == [0] * 3 + [2] * 4 + [3] * 2 + [4] * 5
    assert [str(both.shard_path(shard)) for shard in (2, 3)] == ["a/shard-00002.tar", "b/shard-00000.tar"]
    assert [both.locate(row)[1] for row in (0, 6, 7, 13)] == [0, 6, 0, 6]
    assert [both.locate(row)[0] for row in (6, 7)] == [A, B]
    assert (both.name(8), both.key(8)) == (B.name(1), B.key(1))
    assert both.names.to_pylist() == [both.name(row) for row in range(14)]
    assert both.keys.to_pylist() == [both.key(row) for row in range(14)]


def test_one_dataset_is_its_mapped_columns() -> None:
    assert Corpus([A]).num_frames is A.num_frames


def test_splits_are_united_by_name() -> None:
    other = replace(B, split_names=["val", "test"])
    both = Corpus([A, other])
    assert both.split_names == ["train", "val", "test"]
    names = [both.split_names[i] for i in both.split]
    assert names == [A.split_names[i] for i in A.splits] + [other.split_names[i] for i in other.splits]


def test_the_first_sample_with_a_key_is_found(shards: Path) -> None:
    both = open_corpus([shards, shards])
    assert both.find(both.key(20)) == 6
    with pytest.raises(DatasetError, match="no sample has the key 'nobody'"):
        both.find("nobody")


def test_every_dataset_must_open(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: no such folder"):
        open_corpus([shards, tmp_path / "nowhere"])
