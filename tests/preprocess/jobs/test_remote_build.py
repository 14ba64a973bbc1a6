"""From a store and to a store: a real S3-protocol server (tests/support/s3.py), workers that are killed."""

import hashlib
import os
import re
import signal
import time
from fnmatch import fnmatch
from pathlib import Path

import boto3
import fsspec
import pytest

from mae3d.io import lock_store
from mae3d.io.lock_store import LOCK_NAME, UrlLockStore
from mae3d.io.storage import Storage
from pipelines.samples.corpus import open_corpus
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from tests.support.builds import command, make_archive, tree
from tests.support.kills import kill_decoders, start
from tests.support.media import make_video
from tests.support.s3 import Server

ROOT = Path(__file__).resolve().parents[3]


def bucket(s3: Server, name: str) -> None:
    """Make a new, empty bucket."""
    client = boto3.client(
        "s3", endpoint_url=s3.endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=name)
    client.close()


def objects(url: str) -> dict[str, str]:
    """sha256 of every object."""
    storage = Storage(url)
    return {name: hashlib.sha256(storage.read(name)).hexdigest() for name in storage.sizes()}


@pytest.mark.slow
def test_fault_16_from_s3_to_s3_with_a_decoder_and_then_the_run_killed_the_objects_are_those_of_a_local_build(
    s3: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("videos", "shards"):
        bucket(s3, name)
    for clip in range(12):
        path = make_video(tmp_path / "archive" / f"v{clip:02d}.mp4", 12)
        Storage("s3://videos/archive").put(path, path.name)
    options = ["--shard-size", "2", "--scratch", str(tmp_path / "scratch")]
    assert main(["build", "--videos", str(tmp_path / "archive"), "--out", str(tmp_path / "whole"), *options]) == 0
    (tmp_path / "scratch").mkdir()
    build = ["build", "--videos", "s3://videos/archive", "--out", "s3://shards/new", *options]
    run = start(*build, "--workers", "2")

    def shards_there() -> set[str]:
        return {name for name in Storage("s3://shards/new").sizes() if fnmatch(name, "shard-*.parquet")}

    assert kill_decoders(run, tmp_path / "scratch", "mae3d-out-*/*/*shard-*.tar")
    while len(shards_there()) < 2 and run.poll() is None:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    said, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, said
    there = shards_there()
    assert 2 <= len(there) < 6
    assert "dataset.json" not in Storage("s3://shards/new").sizes()
    s3.reset()
    assert main([*build, "--workers", "1"]) == 0
    put = [request.path.rpartition("/")[2] for request in s3.requests("PUT") if LOCK_NAME not in request.path]
    assert put[-1] == "dataset.json"
    assert there.isdisjoint(put)  # finished shards are not made again
    assert sum(name.endswith(".tar") for name in put) == 6 - len(there)
    assert objects("s3://shards/new") == tree(tmp_path / "whole")
    corpus = open_corpus(["s3://shards/new"], cache=tmp_path / "cache", cache_gb=0.1)
    assert corpus.fingerprint == open_corpus([tmp_path / "whole"]).fingerprint
    (mine,) = (tmp_path / "scratch").glob("mae3d-out-*")  # those of the killed are swept
    assert list(mine.iterdir()) == []


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a URL in the memory of this process."""
    monkeypatch.setattr(lock_store, "SETTLE_S", 0.01)
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/shards"


def test_slices_appending_and_overwriting_behind_a_url_are_as_in_a_folder(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = make_archive(tmp_path / "frames", size=(48, 32))
    more = make_archive(tmp_path / "more", first=24, clips=7, size=(48, 32))
    assert main(command(archive, tmp_path / "whole")) == 0
    for i in (0, 1):
        assert main(command(archive, url, "--slice", f"{i}/2")) == 0
    Storage(url).remove("shard-00003.idx")
    assert main(["merge", url, "--slices", "2"]) == 2
    assert "1 of 5 shards are not there: shard-00003 (slice 1/2)" in capsys.readouterr().err
    assert main(command(archive, url, "--slice", "1/2")) == 0
    assert main(["merge", url]) == 0
    assert objects(url) == tree(tmp_path / "whole")
    assert main(command(archive, url, "--quality", "80")) == 2
    assert re.search("quality = 90 .*80 ", capsys.readouterr().err)
    for out in (url, str(tmp_path / "whole")):
        assert main(command(more, out, "--append")) == 0
        assert "appended: 7 samples" in capsys.readouterr().out
        assert main(command(more, out, "--append")) == 0
        assert "nothing new" in capsys.readouterr().out
    assert objects(url) == tree(tmp_path / "whole")
    assert main(command(more, url, "--overwrite")) == 0
    assert main(command(more, tmp_path / "other")) == 0
    assert objects(url) == tree(tmp_path / "other")
    assert len(open_dataset(tmp_path / "other")) == 7


def test_fault_18_a_second_run_at_one_url_is_told_whose_it_is(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = make_archive(tmp_path / "frames", clips=2, size=(48, 32))
    UrlLockStore(Storage(url)).create(LOCK_NAME, lock_store.Owner.here("build"))
    assert main(command(archive, url)) == 2
    assert f"{url}: in use by build on {os.uname().nodename}, pid {os.getpid()}" in capsys.readouterr().err


def test_a_place_with_other_things_is_left_alone(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = make_archive(tmp_path / "frames", clips=2, size=(48, 32))
    Storage(url).write("theses/mine.tex", b"mine")
    for more in ([], ["--overwrite"]):
        assert main(command(archive, url, *more)) == 2
        assert "holds other things (theses/mine.tex)" in capsys.readouterr().err
    assert list(objects(url)) == ["theses/mine.tex"]
