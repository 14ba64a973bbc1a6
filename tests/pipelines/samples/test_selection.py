"""Which samples take part: each setting by itself, all in order, and whose luck depends on whom."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import SelectConfig
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.samples.labels import Labels
from pipelines.samples.selection import describe_flagged, describe_selection, select_rows
from preprocess.dataset.curation import CURATION_NAME, CURATION_SCHEMA, FLAGS, METADATA, state_of
from preprocess.dataset.index import DatasetError, open_dataset
from tests.support.datasets import SAMPLES, build_shards


@pytest.fixture(scope="module")
def corpus(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same samples twice: of split "" and of split val."""
    val = build_shards(tmp_path_factory.mktemp("val"), "--split", "val")
    return open_corpus([shards, val])


def many(count: int, *labels: list[int]) -> Any:
    """A corpus of so many samples as far as a selection looks at it; the labels are repeated."""
    of_all = [labels[i % len(labels)] for i in range(count)]
    values = np.array([label for of_one in of_all for label in of_one], dtype=np.int32)
    keys = pa.chunked_array([[f"{i:06d}" for i in range(count)]], pa.string())
    return SimpleNamespace(
        keys=keys, labels=Labels(np.cumsum([0, *map(len, of_all)]), values), num_classes=int(values.max()) + 1
    )


def select(corpus: Any, rows: np.ndarray | None = None, **settings: Any) -> list[int]:
    everything = np.arange(len(corpus.keys))
    return select_rows(corpus, SelectConfig(**settings), rows=everything if rows is None else rows).tolist()


def test_nothing_set_takes_everything_and_reads_nothing() -> None:
    assert select_rows(None, SelectConfig(seed=9), rows=np.array([2, 5])).tolist() == [2, 5]  # type: ignore[arg-type]


def test_a_split_of_several_datasets(corpus: Corpus) -> None:
    assert select(corpus, split="val") == list(range(14, 28))
    assert select(corpus, np.array([3, 15, 20]), split="val") == [15, 20]
    with pytest.raises(DatasetError, match=r'data\.select\.split=test: .* has the splits "" \(none\), val'):
        select(corpus, split="test")


def test_names_and_keys_from_a_file(corpus: Corpus, tmp_path: Path) -> None:
    one = Corpus(corpus.datasets[:1])
    path = tmp_path / "names.txt"
    path.write_text(f"{SAMPLES[4][0]}\n\n  {one.key(2)}\r\n{SAMPLES[4][0]}\n")
    named = next(row for row in range(14) if one.name(row) == SAMPLES[4][0])
    assert select(one, names=str(path)) == sorted({named, 2})
    with pytest.raises(DatasetError, match=rf"1 of 2 names \(keys belong to one dataset\) are not in .*: {one.key(2)}"):
        select(corpus, names=str(path))
    path.write_text(SAMPLES[4][0])
    assert select(corpus, names=str(path)) == [named, named + 14]
    path.write_text("\n".join(["nobody", one.name(0), *(f"n{i}" for i in range(9))]))
    with pytest.raises(DatasetError, match=r"10 of 11 names or keys are not in .*: nobody, n0, n1, n2, n3, …"):
        select(one, names=str(path))
    with pytest.raises(DatasetError, match=r"missing\.txt: cannot be read"):
        select(one, names=str(tmp_path / "missing.txt"))


def test_a_fraction_is_near_its_share_and_nobody_depends_on_the_others() -> None:
    corpus = many(20_000, [0])
    half = select(corpus, fraction=0.5, seed=1)
    assert abs(len(half) - 10_000) < 300  # 4 standard deviations
    assert set(select(corpus, fraction=0.2, seed=1)) < set(half)
    other = set(select(corpus, fraction=0.5, seed=2))
    assert abs(len(other & set(half)) - 5_000) < 300
    fewer = np.arange(0, 20_000, 3)
    assert select(corpus, fewer, fraction=0.5, seed=1) == [row for row in half if row % 3 == 0]
    assert select(many(25_000, [0]), fraction=0.5, seed=1)[: len(half)] == half  # the dataset has grown


def test_a_few_of_each_class() -> None:
    corpus = many(1000, [0], [1], [2, 1], [])
    for per_class in (1, 5, 20):
        rows = select(corpus, per_class=per_class, seed=3)
        labels = [label for row in rows for label in corpus.labels.of(row)]
        counts = np.bincount(labels, minlength=3)
        assert counts.max() <= per_class
        assert counts[:2].tolist() == [per_class, per_class]
        assert rows == sorted(rows)
        assert all(corpus.labels.of(row) for row in rows)
    single = many(1000, [0], [1])
    assert set(select(single, per_class=2, seed=3)) < set(select(single, per_class=9, seed=3))
    assert select(single, per_class=2, seed=3) != select(single, per_class=2, seed=4)
    assert len(select(single, per_class=9999)) == 1000


def test_what_left_nothing_is_told_in_order(corpus: Corpus) -> None:
    with pytest.raises(DatasetError, match=r"28 usable samples, data\.select\.split=val leaves 14, data\.select\.frac"):
        select(corpus, split="val", fraction=1e-9)
    unlabelled = Corpus(corpus.datasets, labels=Labels(np.zeros(29, dtype=np.int64), np.array([], dtype=np.int32)))
    with pytest.raises(DatasetError, match=r"no sample is left: .*data\.select\.per_class=1 leaves 0"):
        select(unlabelled, per_class=1)


def test_the_selection_in_words() -> None:
    assert describe_selection(SelectConfig(seed=4)) == ""
    assert describe_selection(SelectConfig(split="val")) == "split=val"
    few = SelectConfig(split="val", per_class=3)
    assert describe_selection(replace(few, seed=7)) == "split=val, per_class=3 (seed 7)"


def write_flags(root: Path, *, state: str = "", **flags: list[int]) -> None:
    """A file of flags as `curate` writes it, with these samples flagged."""
    dataset = open_dataset(root)
    columns = {name: [None] * len(dataset) for name in CURATION_SCHEMA.names}
    columns |= {name: [i in flags.get(name, []) for i in range(len(dataset))] for name in FLAGS}  # type: ignore[dict-item]
    described = {METADATA: json.dumps({"state": state or state_of(dataset)})}
    pq.write_table(pa.table(columns, CURATION_SCHEMA.with_metadata(described)), root / CURATION_NAME)


def test_flagged_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    one, two = build_shards(tmp_path / "one"), build_shards(tmp_path / "two", "--split", "val")
    both = open_corpus([one, two])
    with pytest.raises(DatasetError, match=r"select\.without=still: .*one/shards/curation\.parquet: missing.*curate"):
        select(both, without=("still",))
    write_flags(one, still=[2, 3], black=[3, 5])
    write_flags(two, still=[13])
    settings = SelectConfig(without=("still", "black"))
    assert select(both, without=settings.without) == [i for i in range(28) if i not in (2, 3, 5, 27)]
    assert select(both, without=("black",), split="val") == list(range(14, 28))
    assert describe_flagged(both, settings) == "4 of 28 samples are left out by their flags: still 3, black 2"
    assert describe_selection(settings) == "without=still black"
    assert describe_flagged(both, SelectConfig()) == ""
    with pytest.raises(DatasetError, match=r"blak.*black"):
        select(both, without=("blak",))
    write_flags(one, state="another")
    with pytest.raises(DatasetError, match="another state"):
        select(both, without=("still",))
    write_flags(one, still=list(range(14)))
    with pytest.raises(DatasetError, match=r"no sample is left.*without=still leaves 0"):
        select(Corpus(both.datasets[:1]), without=("still",))


def test_flags_of_a_dataset_behind_a_url_are_read_there(tmp_path: Path) -> None:
    import fsspec

    local, url = build_shards(tmp_path / "local"), "memory://flagged/shards"
    store = fsspec.filesystem("memory")
    for path in local.iterdir():
        store.pipe_file(f"/flagged/shards/{path.name}", path.read_bytes())
    corpus = open_corpus([url], cache=tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"memory://flagged/shards/curation\.parquet: missing.*copy"):
        select(corpus, without=("still",))
    write_flags(local, still=[4])
    store.pipe_file(f"/flagged/shards/{CURATION_NAME}", (local / CURATION_NAME).read_bytes())
    assert select(corpus, without=("still",)) == [i for i in range(14) if i != 4]
