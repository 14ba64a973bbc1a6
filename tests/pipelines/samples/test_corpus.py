"""Several datasets under one numbering of rows, shards and splits."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.reading.source import STATUS_SUBSTITUTED
from pipelines.samples.corpus import Corpus, corpus_of, open_corpus
from pipelines.sampling.requests import usable_rows
from pipelines.stream import evaluation_clips
from preprocess.dataset.index import DatasetError, check_shards
from tests.support.damage import flip_a_bit, overwrite
from tests.support.datasets import index_only

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


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:-512])


def grow(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes() + bytes(512))


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """A copy of the dataset: 14 samples in shards of 4, 4, 4 and 2."""
    return Path(shutil.copytree(shards, tmp_path / "copied"))


def loader_of(config: DataConfig) -> Loader:
    return Loader(corpus_of(config), config, num_frames=2, size=16, seed=3, global_batch=2)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(cut, r"\d+ bytes, dataset\.json says \d+"), (grow, r"\d+ bytes, dataset\.json says"), (Path.unlink, "missing")],
)
def test_fault_20_a_bad_shard_is_refused_by_name_and_left_out_on_request(
    copied: Path, damage: Callable[[Path], None], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(copied / "shard-00001.tar")
    refusal = (
        rf"1 of 4 shards, 4 of 14 samples.*build again.*--data\.exclude_bad_shards true:\n  .*/shard-00001\.tar: {told}"
    )
    with pytest.raises(DatasetError, match=refusal):
        open_corpus([copied])
    config = DataConfig(shards=str(copied), exclude_bad_shards=True, sampling_rate=1, repeat_aug=1, decode_threads=1)
    loader = loader_of(config)
    assert loader.num_samples == 10
    batches = list(islice(loader, loader.steps_per_epoch))
    loader.close()
    assert sorted(row for batch in batches for row in batch.rows[:, 0].tolist()) == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]
    assert loader.counts()["substituted"] == 0
    assert caplog.text.count("shard-00001.tar (4 samples): ") == caplog.text.count("left out: ") == 1


def test_fault_20_samples_of_a_bad_shard_do_not_stand_in_for_others(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They would be found damaged in their turn, and logged."""
    for row in range(8, 12):
        overwrite(open_corpus([copied]), row, flip_a_bit)
    (copied / "shard-00001.tar").unlink()
    config = DataConfig(shards=str(copied), exclude_bad_shards=True, sampling_rate=1, repeat_aug=1, decode_threads=1)
    corpus = corpus_of(config)
    loader = Loader(corpus, config, num_frames=2, size=16, seed=3, global_batch=2)
    caplog.clear()
    statuses = [batch.status for batch in islice(loader, 3 * loader.steps_per_epoch)]
    loader.close()
    assert sum(int((status == STATUS_SUBSTITUTED).sum()) for status in statuses) == 12
    evaluated = evaluation_clips(corpus, config, rows=np.arange(8, 12), num_frames=2, size=16)
    assert (next(evaluated).status == STATUS_SUBSTITUTED).all()
    evaluated.close()
    assert "shard-00002.tar" in caplog.text
    assert "shard-00001.tar" not in caplog.text


def test_fault_20_all_bad_shards_are_counted_and_the_first_ten_named() -> None:
    names = [f"shard-{i:05d}.tar" for i in range(15)]
    meta = {"shards": [[name, 1024, "", 3] for name in names]}
    sizes = dict.fromkeys(names[:2], 1024) | {names[2]: 1, names[3]: None}
    with pytest.raises(DatasetError, match="12 of 15 shards, 36 of 45 samples") as refused:
        check_shards("out", meta, sizes, exclude_bad=False)
    _, *lines = str(refused.value).splitlines()
    assert lines[:2] == ["  out/shard-00002.tar: 1 bytes, dataset.json says 1024", "  out/shard-00004.tar: missing"]
    assert (len(lines), lines[-1]) == (11, "  and 2 more")
    assert list(check_shards("out", meta, sizes, exclude_bad=True)) == [2, *range(4, 15)]
    with pytest.raises(DatasetError, match=r"15 of 15 shards.* run the build again:"):
        check_shards("out", meta, {}, exclude_bad=True)


def test_fault_20_bad_shards_of_one_of_several_datasets() -> None:
    both = Corpus([replace(A, bad_shards={2: "missing"}), replace(B, bad_shards={0: "missing"})])
    assert both.readable_rows.tolist() == [0, 1, 2, 9, 10, 11, 12, 13]
    long_enough = [row for row in both.readable_rows.tolist() if both.num_frames[row] >= 25]
    drop = DataConfig(short="drop", sampling="segments", num_segments=25, frames_per_segment=1)
    assert 0 < len(long_enough) < len(both.readable_rows)
    assert usable_rows(both, drop, num_frames=25).tolist() == long_enough
    assert both.left_out == ["a/shard-00002.tar (4 samples): missing", "b/shard-00000.tar (2 samples): missing"]


def test_what_mends_damage_can_be_run() -> None:
    assert "run `mae3d preprocess verify a --full` and `mae3d preprocess verify b --full`" in Corpus([A, B]).repair
    remote = Corpus([replace(A, url="s3://x/a")]).repair
    assert "copy the shards at s3://x/a there again" in remote
    assert "verify s3" not in remote
