"""Shards behind a URL: the same batches as from a folder, about one fetch of each shard, faults told by URL.

The store is a real S3-protocol server on the loopback (tests/support/s3.py), in a process of its own that logs every
request.
"""

import errno
import itertools
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from mae3d.io.files import sha256_of
from pipelines.config import DataConfig, is_url
from pipelines.loader import Loader
from pipelines.reading import prefetch
from pipelines.reading import shard_reader as reads
from pipelines.reading.shard_reader import DataError
from pipelines.reading.source import STATUS_SUBSTITUTED
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.order import Order
from pipelines.storage.cache import Cache
from pipelines.stream import Batch
from preprocess.dataset.index import DatasetError
from preprocess.dataset.schema import read_shard_table, write_shard_table
from preprocess.dataset.writer import write_dataset
from tests.support.datasets import build_many_shards
from tests.support.s3 import Server

pytestmark = pytest.mark.slow

SHARDS, SAMPLES, BATCH = 120, 8, 8
URL = "s3://many/shards"
CONFIG = DataConfig(
    sampling_rate=1, repeat_aug=1, order="shards", mix_shards=4, read_threads=2, prefetch=1, decode_threads=1
)
GB = 1e9


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 120 shards in a folder."""
    return build_many_shards(tmp_path_factory.mktemp("many"), shards=SHARDS, samples=SAMPLES)


@pytest.fixture(scope="module")
def uploaded(many: Path, s3_session: Server) -> None:
    s3_session.upload(many, URL.removeprefix("s3://"))


@pytest.fixture
def url(uploaded: None, s3: Server) -> str:
    """The same dataset behind a URL."""
    s3.reset()
    return URL


@pytest.fixture(scope="module")
def alone(many: Path) -> list[Batch]:
    """The first epoch from the folder, and a step of the second."""
    loader = make(open_corpus([many]))
    batches = [next(loader) for _ in range(loader.steps_per_epoch + 1)]
    loader.close()
    return batches


def make(corpus: Corpus, config: DataConfig = CONFIG, **place: int) -> Loader:
    return Loader(corpus, config, num_frames=2, size=16, seed=3, global_batch=BATCH, **place)


def tar_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


@contextmanager
def watched(caches: list[Cache]) -> Iterator[list[int]]:
    """Sizes of the fullest folder, looked at all the time."""
    sizes, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for cache in caches:
                with cache._locked():
                    sizes.append(sum(path.stat().st_size for path in cache.folder.glob("*/*")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(("nodes", "local_world"), [(1, 1), (2, 2), pytest.param(4, 1, marks=pytest.mark.soak)])
def test_an_epoch_through_a_tenth_of_the_dataset_fetches_each_shard_about_once_in_exact_order(
    url: str, many: Path, alone: list[Batch], s3: Server, tmp_path: Path, nodes: int, local_world: int
) -> None:
    limit, world = tar_bytes(many) / 10, nodes * local_world
    corpora = [
        open_corpus([url], cache=tmp_path / f"node-{rank // local_world}", cache_gb=limit / GB) for rank in range(world)
    ]
    places = [{"rank": rank, "world": world, "local_world": local_world} for rank in range(world)]
    loaders = [make(corpus, **place) for corpus, place in zip(corpora, places, strict=True)]
    caches = [corpus.cache for corpus in corpora if corpus.cache]
    s3.requests()
    with watched(caches) as sizes:
        for step in range(loaders[0].steps_per_epoch):
            parts = [next(loader) for loader in loaders]
            assert torch.equal(torch.cat([part.rows for part in parts]), alone[step].rows)
            assert torch.equal(torch.cat([part.clips for part in parts]), alone[step].clips)
    for loader in loaders:
        loader.close()
    asked = [request for request in s3.requests() if request.path.endswith(".tar")]
    fetched, fullest = (n / tar_bytes(many) for n in (sum(request.num_bytes for request in asked), max(sizes)))
    print(f"{nodes} nodes x {local_world}: {fetched:.3f} of the dataset fetched, fullest cache {fullest:.3f}")
    assert 0.98 <= fetched <= 1.2  # a shard at the end may have none of the epoch's samples
    assert fullest <= 0.1
    assert {request.status for request in asked} == {206}


def test_a_cache_too_small_for_the_order_is_refused_with_the_size_that_is_enough(url: str, tmp_path: Path) -> None:
    corpus = open_corpus([url], cache=tmp_path, cache_gb=0.0003)
    with pytest.raises(ValueError, match=r"data\.cache_gb=0\.0003 is too small for the order `shards`") as told:
        make(corpus)
    assert "lower data.mix_shards" in str(told.value)
    enough = float(str(told.value).rpartition("--data.cache_gb ")[2].partition(",")[0])
    make(open_corpus([url], cache=tmp_path, cache_gb=enough))
    with pytest.raises(ValueError, match=r"order `global`: a node needs 120 shards .*use --data\.order shards"):
        make(corpus, replace(CONFIG, order="global"))
    with pytest.raises(DatasetError, match=r"s3://many/shards: .*give at least --data\.cache_gb"):
        open_corpus([url], cache=tmp_path, cache_gb=0.00001)


def test_urls_are_read_in_the_order_of_shards_unless_told_otherwise(url: str, many: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, order="auto")
    corpus = open_corpus([url], cache=tmp_path, cache_gb=1)
    assert make(corpus, replace(config, shards=url)).order.name == "shards"
    assert make(open_corpus([many]), replace(config, shards=str(many))).order.name == "global"
    assert open_corpus([f"file://{many}"]).cache is None
    assert [is_url(root) for root in ("s3://b/x", "file:///x", "/x", "x")] == [True, False, False, False]
    assert corpus.fingerprint == open_corpus([many]).fingerprint  # a run may move from one to the other
    assert str(corpus) == url


def test_opening_asks_for_the_description_one_listing_and_an_index_once(url: str, s3: Server, tmp_path: Path) -> None:
    opened: list[Corpus] = []
    threads = [
        threading.Thread(target=lambda: opened.append(open_corpus([url], cache=tmp_path, cache_gb=0.01)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = Counter(request.path.rpartition("/")[2].partition("-")[0] for request in s3.requests())
    assert asked == {"dataset.json": 4, "many": 4, "index": 1, "rows": 1, "frames": 1}
    assert len({corpus.key(3) for corpus in opened}) == 1
    index = next(tmp_path.glob("*/*/index-*"))
    written = index.stat()
    index.write_bytes(index.read_bytes()[::-1])
    with pytest.raises(DatasetError, match=r"index-.*left alone.*data\.cache"):  # somebody's own file by now
        open_corpus([url], cache=tmp_path, cache_gb=0.01)
    os.utime(index, ns=(written.st_atime_ns, written.st_mtime_ns))  # a damaged copy: nobody has written to it
    assert open_corpus([url], cache=tmp_path, cache_gb=0.01).key(3) == opened[0].key(3)


def test_a_trainer_keeps_its_index_while_others_fill_the_cache(url: str, tmp_path: Path) -> None:
    corpus = open_corpus([url], cache=tmp_path, cache_gb=0.0005)
    for shard in range(20):
        os.close(corpus.open_shard(shard))
    assert corpus.name(7) == "clip_00007"  # read from the index file only now
    assert len(list(tmp_path.glob("*/*/*.tar"))) < 20


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("s3://nobucket/x", r"s3://nobucket/x: no dataset\.json there; give the URL .*bucket does not exist"),
        ("s3://many/none", r"s3://many/none: no dataset\.json there; give the URL that was"),
        ("gs://bucket/x", r"gs://bucket/x: .*pip install gcsfs"),
        ("zz://q/x", r"zz://q/x: Protocol not known: zz; give a folder, or a URL such as s3://bucket/folder"),
    ],
)
def test_a_url_that_cannot_be_opened_is_told_with_a_remedy(url: str, tmp_path: Path, root: str, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        open_corpus([root], cache=tmp_path)


def test_missing_credentials_and_stores_are_told(
    url: str, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae3d.io.storage.BACK_OFF_S", (0.0,))
    s3.fail("dataset.json", status=403, times=1)
    with pytest.raises(DatasetError, match=r"s3://many/shards: .*AWS_ACCESS_KEY_ID"):
        open_corpus([url], cache=tmp_path)
    for name, value, told in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", r"Could not connect .*AWS_ENDPOINT_URL"),
        ("AWS_ACCESS_KEY_ID", "", r"Unable to locate credentials; .*AWS_ACCESS_KEY_ID"),
    ):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
        with pytest.raises(DatasetError, match=told):
            open_corpus([url], cache=tmp_path)


def in_memory(folder: Path, name: str) -> tuple[Any, str]:
    """A copy of a dataset in fsspec's memory file system."""
    filesystem = fsspec.filesystem("memory")
    for path in folder.iterdir():
        filesystem.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return filesystem, f"memory://{name}"


def test_fault_20_missing_cut_and_changed_shards_behind_a_url(shards: Path, tmp_path: Path) -> None:
    filesystem, url = in_memory(shards, "damaged")
    whole = filesystem.cat_file("/damaged/shard-00001.tar")
    filesystem.pipe_file("/damaged/shard-00001.tar", whole[:-1])
    with pytest.raises(DatasetError, match=r"memory://damaged/shard-00001\.tar: \d+ bytes, dataset\.json says"):
        open_corpus([url], cache=tmp_path)
    filesystem.rm_file("/damaged/shard-00001.tar")
    with pytest.raises(DatasetError, match=r"memory://damaged/shard-00001\.tar: missing"):
        open_corpus([url], cache=tmp_path)
    corpus = open_corpus([url], cache=tmp_path, exclude_bad_shards=True)
    assert corpus.left_out == [f"{url}/shard-00001.tar (4 samples): missing"]
    loader = Loader(corpus, CONFIG, num_frames=2, size=16, seed=3, global_batch=5)
    rows = [row for batch in itertools.islice(loader, 2) for row in batch.rows[:, 0].tolist()]
    loader.close()
    assert sorted(rows) == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]
    filesystem.pipe_file("/damaged/shard-00001.tar", whole[:-1] + b"x")
    corpus = open_corpus([url], cache=tmp_path)
    loader = Loader(corpus, replace(CONFIG, order="global"), num_frames=2, size=16, seed=3, global_batch=7)
    with pytest.raises(DataError, match=r"memory://damaged/shard-00001\.tar: fetched twice, its sha256 is not"):
        list(itertools.islice(loader, 3))
    loader.close()


def test_fault_20_a_shard_that_vanishes_from_the_store_is_substituted(shards: Path, tmp_path: Path) -> None:
    filesystem, url = in_memory(shards, "vanishing")
    config = replace(CONFIG, order="global", sampling_rate=2)
    loader = Loader(open_corpus([url], cache=tmp_path), config, num_frames=2, size=16, seed=3, global_batch=7)
    filesystem.rm_file("/vanishing/shard-00001.tar")
    batches = [next(loader) for _ in range(2)]
    loader.close()
    status = torch.cat([batch.status[:, 0] for batch in batches]).tolist()
    assert status.count(STATUS_SUBSTITUTED) == 4  # the samples of one shard
    assert not {4, 5, 6, 7} & set(torch.cat([batch.rows[:, 0] for batch in batches]).tolist())


def test_a_grown_dataset_is_seen_at_the_next_opening_only(shards: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(shards, part)
    last = sorted(part.glob("shard-*"))[-3:]
    for path in last:
        path.rename(tmp_path / path.name)
    write_again(part)
    _, url = in_memory(part, "growing")
    before = open_corpus([url], cache=tmp_path / "cache")
    _, url = in_memory(shards, "growing")
    after = open_corpus([url], cache=tmp_path / "cache")
    assert len(before) < len(after) == len(open_corpus([shards]))
    assert before.key(0) == after.key(0)


def test_a_shard_of_a_dataset_that_was_built_again_is_never_the_cached_one(shards: Path, tmp_path: Path) -> None:
    """The same URL, shard names and sizes; other bytes."""
    rebuilt = tmp_path / "rebuilt"
    shutil.copytree(shards, rebuilt)
    tar = rebuilt / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    rows, entry = read_shard_table(tar.with_suffix(".parquet"))
    write_shard_table(tar.with_suffix(".parquet"), rows.to_pylist(), tar_bytes=entry.bytes, tar_sha256=sha256_of(tar))
    write_again(rebuilt)
    for folder in (shards, rebuilt, shards):
        _, url = in_memory(folder, "rebuilt")
        corpus = open_corpus([url], cache=tmp_path / "cache")
        descriptor = corpus.open_shard(0)
        assert os.pread(descriptor, entry.bytes, 0) == (folder / "shard-00000.tar").read_bytes()
        os.close(descriptor)


def write_again(root: Path) -> None:
    """Index files and dataset.json of the shards whose tables are there."""
    for path in [*root.glob("*-????????????????.*"), root / "dataset.json"]:
        path.unlink()
    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={}, label_names=[])


def test_fault_37_a_store_that_fails_or_hangs_for_a_while_costs_time_only(
    url: str, alone: list[Batch], s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "FIRST_WAIT_S", 0.05)
    monkeypatch.setenv("FSSPEC_S3", '{"config_kwargs": {"read_timeout": 1}}')
    fsspec.config.set_conf_env(fsspec.config.conf)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        loader = make(open_corpus([url], cache=tmp_path, cache_gb=0.01))
        s3.fail(".tar", status=503, times=4)
        s3.fail(".tar", status=0, times=1)
        for step in range(3):
            assert torch.equal(next(loader).clips, alone[step].clips)
        loader.close()
    finally:
        fsspec.config.conf.clear()
    statuses = Counter(request.status for request in s3.requests())
    assert statuses[503] == 4
    assert statuses[0] == 1


def test_fault_37_a_store_that_stays_away_stops_the_run_with_the_url(
    url: str, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "FIRST_WAIT_S", 0.02)
    loader = make(open_corpus([url], cache=tmp_path, cache_gb=0.01), replace(CONFIG, retries=2))
    s3.fail(".tar", status=503, times=10_000)
    with pytest.raises(DataError, match=r"s3://many/shards/shard-\d+\.tar, sample \w+: Service Unavailable, 3 tries"):
        next(loader)
    loader.close()
    assert not list(tmp_path.glob("*/*/*.part"))


def test_shards_are_fetched_ahead_of_their_need_and_closing_stops_it(url: str, s3: Server, tmp_path: Path) -> None:
    loader = make(open_corpus([url], cache=tmp_path, cache_gb=0.002))
    next(loader)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*/*/*.tar"))) < 15 and time.monotonic() < deadline:
        time.sleep(0.05)
    ahead = set(tmp_path.glob("*/*/*.tar"))
    assert len(ahead) >= 15
    uses = loader.order.shards_ahead(epoch=0, step=0, start=0, stop=BATCH)
    soon = [use.shard for use in itertools.islice(uses, 15)]
    cache, corpus = loader._corpus.cache, loader._corpus
    assert cache is not None
    assert {cache.path(file) for shard in soon if (file := corpus.remote_file(shard))} <= ahead
    loader.close()
    s3.requests()
    time.sleep(0.3)
    assert s3.requests() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "fetch-ahead"]


def test_a_hanging_store_does_not_hold_up_the_end(shards: Path, tmp_path: Path) -> None:
    _, url = in_memory(shards, "hanging")
    corpus, hang = open_corpus([url], cache=tmp_path), threading.Event()
    stores = corpus._remote[0]
    waiting = [replace(file, read=lambda start, stop: hang.wait(30) and b"") for file in stores.files]
    hanging = Corpus(corpus.datasets, remote={0: replace(stores, files=tuple(waiting))})
    order = Order(corpus.shard, global_batch=4, seed=0)
    fetcher = prefetch.Prefetcher(hanging, order, (0, 4), steps=4, start=(0, 0))
    time.sleep(0.1)
    began = time.monotonic()
    fetcher.close()
    assert time.monotonic() - began < 10
    hang.set()


def test_what_cannot_be_fetched_ahead_is_left_to_the_read(
    url: str, alone: list[Batch], s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, ahead: bool = False, **__: Any) -> bool:
        if ahead:
            raise OSError(errno.EIO, "told to fail")
        return bool(fetch(*_, **__))

    fetch = Cache.fetch
    monkeypatch.setattr(Cache, "fetch", fails)
    loader = make(open_corpus([url], cache=tmp_path, cache_gb=0.01))
    for step in range(4):
        assert torch.equal(next(loader).clips, alone[step].clips)
    loader.close()
