"""On a real object store, sources, shards and runs are what they are on the local disk, whatever the store does."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mae3d.checkpoints.mirror import complete, restore
from mae3d.io.storage import Storage
from mae3d.tracking.run_dir import read_metrics
from pipelines.samples.corpus import open_corpus
from preprocess.__main__ import main
from preprocess.dataset.index import DatasetError
from tests.cluster.conftest import Seen, need
from tests.cluster.object_store import ObjectStore, environment
from tests.cluster.proxy import Lag, Proxy, delayed, flipped, half, lost, refused, shorter
from tests.launch.test_launchers import exact
from tests.launch.test_two_hosts import end
from tests.launch.test_two_hosts import start as start_on_hosts
from tests.support.builds import command, make_archive, tree
from tests.support.datasets import build_many_shards
from tests.support.jobs import Job, wait_until
from tests.support.kills import start
from tests.support.media import make_video
from tests.support.two_hosts import NAMES as HOSTS
from tests.support.two_hosts import Host

OUTAGE_S = 30
# What people call their files, and what real servers and libraries have stumbled over.
NAMES = [
    "a b",
    "plus+plus",
    "hash#tag",
    "per%20cent%",
    "q?m",
    "am&p;",
    "star*",
    "br[1]",
    "quote'\"",
    "~=:@,",
    "ä ö",
    "漢字",
]
PREFIX = "my videos+%#/ü [1]"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    need("weed")
    with ObjectStore(tmp_path_factory.mktemp("store")) as store:
        store.client.create_bucket(Bucket="box")
        yield store


def reached(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and all that it starts reach a store in this way only."""
    import fsspec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # clients keep the environment in which they were made


@pytest.fixture
def store(running: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Return the store, in which no test meets what another one has put there: prefixes differ."""
    reached(running.environment, monkeypatch)
    return running


@pytest.fixture
def proxy(running: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield a proxy that this process and all that it starts have for the store."""
    with Proxy(running.endpoint) as proxy:
        reached(proxy.environment, monkeypatch)
        yield proxy


def hashes(store: ObjectStore, prefix: str) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in store.objects("box", f"{prefix}/").items()}


def upload(store: ObjectStore, folder: Path, prefix: str) -> None:
    client = store.client
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket="box", Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
    client.close()


def ended(process: Any, *, code: int = 0) -> str:
    """Return the output of a command that ends with this exit code."""
    output, _ = process.communicate(timeout=240)
    assert process.poll() == code, output
    return str(output)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos with names of all kinds."""
    folder = tmp_path_factory.mktemp("archive") / "videos"
    for number, name in enumerate(NAMES):
        make_video(folder / f"class {number % 2}" / f"{name}.mp4", 12 + number)
    return folder


@pytest.fixture(scope="module")
def local_build(videos: Path) -> Path:
    """Return the build of `videos` on the local disk."""
    out = videos.parent / "shards"
    assert main(["build", "--videos", str(videos), "--out", str(out), "--shard-size", "2"]) == 0
    return out


def build_of(source: str, out: str, scratch: Path, *more: str) -> list[str]:
    scratch.mkdir(exist_ok=True)
    return ["build", "--videos", source, "--out", out, "--shard-size", "2", "--scratch", str(scratch), *more]


def test_a_build_from_and_to_the_store_killed_on_the_way_is_the_one_of_the_local_disk(
    store: ObjectStore, videos: Path, local_build: Path, tmp_path: Path, seen: Seen
) -> None:
    prefix = f"{PREFIX}/videos"
    upload(store, videos, prefix)
    store.client.put_object(Bucket="box", Key=f"{prefix}/", Body=b"")  # as consoles make a folder
    build = build_of(f"s3://box/{prefix}/", f"s3://box/{PREFIX}/shards/", tmp_path / "scratch", "--workers", "2")
    run = start(*build)
    there: dict[str, str] = {}

    def is_midway() -> bool:
        there.update(hashes(store, f"{PREFIX}/shards"))
        return sum(name.endswith(".parquet") for name in there) >= 3 or run.poll() is not None

    wait_until(is_midway)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    finished = sum(name.startswith("shard-") and name.endswith(".parquet") for name in there)
    assert "dataset.json" not in there
    output = ended(start(*build))
    assert f"{len(NAMES) // 2} shards are there already" in output
    expected = tree(local_build)
    assert hashes(store, f"{PREFIX}/shards") == expected
    assert main(["verify", f"s3://box/{PREFIX}/shards"]) == 0
    seen(f"killed with {finished} of {len(NAMES) // 2} shards; {len(expected)} objects equal the files of the disk")


def test_slices_built_at_the_same_time_then_merged_and_appended_to_are_those_of_the_local_disk(
    store: ObjectStore, tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = make_archive(tmp_path / "frames", size=(48, 32))
    more = make_archive(tmp_path / "more", first=24, clips=7, size=(48, 32))
    whole, url = tmp_path / "whole", "s3://box/slices/shards"
    assert main(command(frames, whole)) == 0
    slices = [start(*command(frames, url, "--slice", f"{i}/2")) for i in (0, 1)]
    for run in slices:
        ended(run)
    assert main(["merge", url, "--slices", "2"]) == 0
    assert hashes(store, "slices/shards") == tree(whole)
    for out in (url, str(whole)):
        assert main(command(more, out, "--append")) == 0
        assert main(["split", out, "--by", "name"]) == 0
    assert hashes(store, "slices/shards") == tree(whole)
    assert main(["verify", url]) == 0
    store.client.delete_object(Bucket="box", Key="slices/shards/shard-00001.tar")
    capsys.readouterr()
    assert main(["verify", url]) == 2
    assert f"{url}/shard-00001.tar: missing" in capsys.readouterr().out
    seen(f"{len(tree(whole))} objects equal the files of the disk after merge, append and split")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 60 shards, of which a training of 14 steps takes about half."""
    return build_many_shards(tmp_path_factory.mktemp("many"), shards=60, samples=2)


ORDER = ("--data.order", "shards", "--data.mix_shards", "4")


@pytest.fixture(scope="module")
def alone(many: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the training of two ranks from the local disk."""
    run = tmp_path_factory.mktemp("alone") / "run"
    ended(Job(recipe, many, run, *ORDER, processes=2).process)
    return run


def cached(folder: Path, many: Path) -> list[str]:
    """Return the options of a cache that holds less than a third of the shards."""
    meta = json.loads((many / "dataset.json").read_text())
    index = sum(entry["bytes"] for entry in meta["files"].values())
    limit = index + 18 * max(entry[1] for entry in meta["shards"])
    assert limit - index < sum(entry[1] for entry in meta["shards"]) / 3
    return [*ORDER, "--data.cache", str(folder), "--data.cache_gb", f"{limit / 1e9:.7f}"]


def tars(proxy: Proxy) -> list[str]:
    """Return the shards that were asked for, each request once."""
    names = [request.path.rpartition("/")[2] for request in proxy.requests if request.method == "GET"]
    return [name for name in names if name.endswith(".tar")]


def test_a_training_through_a_cache_smaller_than_the_data_has_the_losses_of_the_local_disk(
    proxy: Proxy, running: ObjectStore, many: Path, recipe: Path, alone: Path, tmp_path: Path, seen: Seen
) -> None:
    upload(running, many, "many one")
    run, cache = tmp_path / "run", tmp_path / "cache"
    job = Job(recipe, "s3://box/many one", run, *cached(cache, many), processes=2)  # type: ignore[arg-type]
    ended(job.process)
    assert exact(run) == exact(alone)
    listings = [request for request in proxy.requests if request.method == "GET" and request.path.strip("/") == "box"]
    kept = len(list(cache.glob("*/*/*.tar")))
    assert kept <= 18 < len(set(tars(proxy)))
    asked = f"{len(tars(proxy))} requests for {len(set(tars(proxy)))} shards"
    seen(
        f"{len(exact(run))} of {len(exact(alone))} steps bit-equal; {asked}, {kept} of them in the cache at the end; "
        f"{len(listings)} listings"
    )


def test_two_hosts_train_from_a_store_on_one_of_them_by_virtual_host_names(
    hosts: list[Host],
    many: Path,
    recipe: Path,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: Seen,
) -> None:
    need("weed")
    with (tmp_path / "hosts-of-both").open("a") as table:
        table.write(f"{hosts[0].address} store.test box.store.test\n")
    options = {"address": hosts[0].address, "prefix": hosts[0].prefix, "options": ["-s3.domainName=store.test"]}
    with ObjectStore(tmp_path / "store", **options) as store:  # type: ignore[arg-type]
        config = tmp_path / "aws"
        config.write_text("[default]\ns3 =\n    addressing_style = virtual\n")
        reached(environment(f"http://store.test:{store.port}") | {"AWS_CONFIG_FILE": str(config)}, monkeypatch)
        copy = (
            "import sys; from pathlib import Path; from mae3d.io.storage import Storage; import s3fs; "
            "s3fs.S3FileSystem().mkdir('box'); "
            "[Storage('s3://box/many').put(p, p.name) for p in sorted(Path(sys.argv[1]).iterdir())]"
        )
        done = subprocess.run(
            [*hosts[1].prefix, sys.executable, "-c", copy, str(many)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        there = [
            replace(host, prefix=(*host.prefix, "env", f"XDG_CACHE_HOME={tmp_path / host.name}")) for host in hosts
        ]
        run = tmp_path / "run"
        limits = [option for option in cached(tmp_path, many) if option not in ("--data.cache", str(tmp_path))]
        assert end(start_on_hosts(there, recipe, "s3://box/many", run, *limits)) == [0, 0]  # type: ignore[arg-type]
    assert exact(run) == exact(alone)
    kept = {name: len(list((tmp_path / name).glob("*/*/*.tar"))) for name in HOSTS}
    assert all(kept.values())
    seen(f"{len(exact(run))} steps bit-equal to one host's; shards in the caches at the end: {kept}")


def restored_run(run: Path) -> dict[str, str]:
    """Return what of a run is mirrored, by name, and its hash."""
    names = [path for path in run.rglob("*") if path.is_file() and path.parent.name not in ("heartbeats", "eval")]
    kept = [path for path in names if path.name not in (".lock", "spikes.jsonl")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def test_a_run_that_is_killed_and_deleted_goes_on_from_its_mirror_with_the_same_losses(
    store: ObjectStore, recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    run, url = tmp_path / "run", "s3://box/runs/my run [1]+#%"
    job = Job(recipe, shards, run, "--run.remote", url, processes=2)
    wait_until(lambda: "step-00000004" in complete(url) or job.process.poll() is not None)
    job.process.kill()
    job.end()
    killed_at = max(row["step"] for row in read_metrics(run))
    shutil.rmtree(run)
    output = ended(Job(recipe, shards, run, "--run.remote", url, processes=2).process)
    assert f"from {url}" in output
    assert exact(run) == exact(uncut)
    assert hashes(store, "runs/my run [1]+#%") == restored_run(run)
    steps = re.search(r"restored (step-\d+)", output)
    assert steps is not None
    seen(f"killed at step {killed_at}, {steps[0]}; {len(exact(run))} losses bit-equal; the mirror equals RUN")


@pytest.mark.parametrize("ignores", [False, True], ids=["if it heeds If-None-Match", "if it ignores If-None-Match"])
def test_of_two_starts_with_one_mirror_at_the_same_moment_one_trains(
    proxy: Proxy,
    running: ObjectStore,
    recipe: Path,
    shards: Path,
    uncut: Path,
    tmp_path: Path,
    ignores: bool,
    seen: Seen,
) -> None:
    client = running.client
    if ignores:
        proxy.overwrite = lambda path, body: client.put_object(Bucket="box", Key=path.removeprefix("/box/"), Body=body)
    url, runs = f"s3://box/locks/{ignores}", [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    for run in runs:
        run.parent.mkdir()
    jobs = [Job(recipe, shards, run, "--run.remote", url, processes=2) for run in runs]
    codes, outputs = zip(*(job.end() for job in jobs), strict=True)
    assert sorted(codes) == [0, 2], outputs
    assert f"{url}: in use by training on" in outputs[codes.index(2)]
    assert exact(runs[codes.index(0)]) == exact(uncut)
    assert ("in spite of If-None-Match" in outputs[codes.index(0)]) == ignores
    seen("one trains to its end, the other is refused by name")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_store_is_away_for_thirty_seconds_while_a_build_and_two_trainings_need_it(
    store: ObjectStore,
    videos: Path,
    local_build: Path,
    many: Path,
    recipe: Path,
    alone: Path,
    tmp_path: Path,
    how: signal.Signals,
    seen: Seen,
) -> None:
    folder = f"away {how.name}"
    upload(store, videos, f"{folder}/videos")
    upload(store, many, f"{folder}/many")
    reading, mirrored, url = tmp_path / "reading", tmp_path / "mirrored", f"s3://box/{folder}/run"
    cache = cached(tmp_path / "cache", many)
    jobs = [
        Job(recipe, f"s3://box/{folder}/many", reading, *cache, processes=2),  # type: ignore[arg-type]
        Job(recipe, many, mirrored, *ORDER, "--run.remote", url, processes=2),
    ]
    for job in jobs:  # all three are to be on their way at the same moment
        job.wait_for_step(1)
        job.process.send_signal(signal.SIGSTOP)
    out = f"s3://box/{folder}/shards"
    build = start(*build_of(f"s3://box/{folder}/videos", out, tmp_path / "scratch", "--workers", "1"))
    wait_until(lambda: "shard-00000.parquet" in hashes(store, f"{folder}/shards") or build.poll() is not None)
    assert build.poll() is None
    if how == signal.SIGKILL:
        store.kill()
    else:
        store.signal(signal.SIGSTOP)
    away = time.monotonic()
    for job in jobs:
        job.process.send_signal(signal.SIGCONT)
    time.sleep(OUTAGE_S)  # what the scenario is about
    if how == signal.SIGKILL:
        store.start()
    else:
        store.signal(signal.SIGCONT)
    ended(build)
    outputs = [ended(job.process) for job in jobs]
    seconds = time.monotonic() - away
    if how == signal.SIGKILL:
        store.wait()
    assert hashes(store, f"{folder}/shards") == tree(local_build)
    assert exact(reading) == exact(alone)
    assert exact(mirrored) == exact(alone)
    rows = read_metrics(reading)
    assert not any(row["substituted"] for row in rows)
    assert read_metrics(mirrored)[-1]["failed_mirrors"] == 0, outputs[1]
    assert hashes(store, f"{folder}/run") == restored_run(mirrored)
    seen(
        f"objects equal the files of the disk, {len(exact(reading))} losses of both bit-equal, nothing substituted, "
        f"the mirror equals RUN; read_retries {rows[-1]['read_retries']}; all ended {seconds:.0f} s after it went"
    )


SLOW_DOWN = refused(503, "SlowDown", "Please reduce your request rate.")
LATER = refused(503, "SlowDown", "Please reduce your request rate.", Retry_After="2")
BROKEN = refused(500, "InternalError", "We encountered an internal error. Please try again.")
SILENT = delayed(20)  # longer than a client waits


def test_a_build_is_that_of_the_local_disk_though_answers_are_slow_cut_wrong_or_lost(
    proxy: Proxy, running: ObjectStore, videos: Path, local_build: Path, tmp_path: Path, seen: Seen
) -> None:
    upload(running, videos, "faulty/videos")
    for name, fault in zip(NAMES, (delayed(3), LATER, BROKEN, half, lost, SILENT, flipped, shorter), strict=False):
        proxy.inject(fault, f"/{name}.mp4", method="GET", times=1)
    proxy.inject(SLOW_DOWN, f"/{NAMES[8]}.mp4", method="GET", times=12)
    proxy.inject(lost, "faulty/shards/.lock", method="PUT", times=1)  # the try after it is refused: it is there
    for shard, fault in enumerate((LATER, BROKEN, lost, delayed(3), SLOW_DOWN)):
        proxy.inject(fault, f"shard-0000{shard}.tar", method="PUT", times=1)
        proxy.inject(fault, f"shard-0000{shard}.parquet", method="PUT", times=1)
    for fault in (BROKEN, half, lost):
        proxy.inject(fault, "list-type=2", method="GET", times=1)
    proxy.inject(BROKEN, "plan.parquet", method="HEAD", times=3)
    build = build_of("s3://box/faulty/videos", "s3://box/faulty/shards", tmp_path / "scratch", "--workers", "2")
    injected = proxy.left
    ended(start(*build))
    assert proxy.remaining() == []
    assert hashes(running, "faulty/shards") == tree(local_build)
    seen(f"{injected} answers tampered with; {len(tree(local_build))} objects equal the files of the disk")


def test_a_training_has_the_losses_of_the_local_disk_though_answers_are_slow_cut_wrong_or_lost(
    proxy: Proxy, running: ObjectStore, many: Path, recipe: Path, alone: Path, tmp_path: Path, seen: Seen
) -> None:
    upload(running, many, "faulty/many")
    for fault in (BROKEN, half, lost, flipped, shorter):
        proxy.inject(fault, "/index-", method="GET", times=1)
    for fault in (delayed(2), SLOW_DOWN, LATER, BROKEN, half, lost, flipped, shorter, SILENT):
        proxy.inject(fault, ".tar", method="GET", times=2)
    injected, run = proxy.left, tmp_path / "run"
    options = cached(tmp_path / "cache", many)
    ended(Job(recipe, "s3://box/faulty/many", run, *options, processes=2).process)  # type: ignore[arg-type]
    assert proxy.remaining() == []
    assert exact(run) == exact(alone)
    assert not any(row["substituted"] for row in read_metrics(run))
    seen(f"{injected} answers tampered with; {len(exact(run))} losses bit-equal, nothing substituted")


def test_a_mirror_and_what_is_restored_from_it_are_whole_though_answers_are_slow_cut_wrong_or_lost(
    proxy: Proxy, running: ObjectStore, recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    run, url = tmp_path / "run", "s3://box/faulty/run"
    for fault in (SLOW_DOWN, LATER, BROKEN, lost, delayed(2)):
        for name in ("rank-", "manifest.json", "metrics.jsonl", "config.yaml", "latest"):
            proxy.inject(fault, name, method="PUT", times=1)
    injected = proxy.left
    ended(Job(recipe, shards, run, "--run.remote", url, processes=2).process)
    assert proxy.remaining() == []
    assert read_metrics(run)[-1]["failed_mirrors"] == 0
    assert exact(run) == exact(uncut)
    before = restored_run(run)
    assert hashes(running, "faulty/run") == before
    shutil.rmtree(run)
    for fault in (delayed(2), SLOW_DOWN, LATER, BROKEN, half, lost, flipped, shorter):
        proxy.inject(fault, "step-00000014/", method="GET", times=1)
    injected += proxy.left
    assert restore(run, url) == f"restored step-00000014 from {url}"
    assert proxy.remaining() == []
    after = restored_run(run)
    assert after.items() <= before.items()
    seen(f"{injected} answers tampered with; the mirror equals RUN, {len(after)} restored files equal its")


REFUSALS = [
    (refused(403, "AccessDenied", "Access Denied."), "Access Denied."),
    (refused(400, "ExpiredToken", "The provided token has expired."), "The provided token has expired."),
    (refused(403, "RequestTimeTooSkewed", "The difference between the times is too large."), "is too large."),
    (refused(404, "NoSuchBucket", "The specified bucket does not exist."), "bucket does not exist."),
    (
        refused(301, "PermanentRedirect", "It is in another region.", x_amz_bucket_region="eu-west-1"),
        "in another region.",
    ),
]


@pytest.mark.parametrize(("fault", "said"), REFUSALS, ids=["forbidden", "expired", "clock", "no bucket", "redirected"])
def test_what_another_try_would_not_change_is_said_at_once(
    proxy: Proxy, videos: Path, recipe: Path, shards: Path, tmp_path: Path, fault: Any, said: str, seen: Seen,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    proxy.inject(fault, times=1000)
    begun, counts = time.monotonic(), []

    def asked() -> None:
        counts.append(len(proxy.requests))
        proxy.requests.clear()

    assert main(build_of(str(videos), "s3://box/refused/shards", tmp_path / "scratch")) == 3
    error = capsys.readouterr().err
    assert said in error
    assert "s3://box/refused/shards" in error
    asked()
    with pytest.raises(DatasetError, match=f"s3://box/refused/many.*{re.escape(said)}"):
        open_corpus(["s3://box/refused/many"], cache=tmp_path / "cache", cache_gb=1)
    asked()
    with pytest.raises(OSError, match=re.escape(said)) as told:
        restore(tmp_path / "run", "s3://box/refused/run")
    assert told.value.filename.startswith("s3://box/refused/run")
    asked()
    seconds = time.monotonic() - begun
    code, output = Job(recipe, shards, tmp_path / "run", "--run.remote", "s3://box/refused/run").end()
    assert code == 3, output
    assert said in output
    assert max(counts) <= 6
    seen(f"{said!r} after {seconds:.1f} s and {counts} requests of build, training and restore")


def test_a_bucket_that_is_not_there_and_a_wrong_secret_are_said_at_once(
    store: ObjectStore, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def told(source: str, out: str) -> str:
        assert main(build_of(source, out, tmp_path / "scratch")) in (2, 3)
        return capsys.readouterr().err.strip().splitlines()[-1]

    lines = [told(str(videos), "s3://no-such-bucket/shards"), told("s3://no-such-bucket/videos", str(tmp_path / "out"))]
    assert all("no-such-bucket" in line for line in lines), lines
    with pytest.raises(OSError, match="bucket does not exist"):
        restore(tmp_path / "run", "s3://no-such-bucket/run")
    reached(environment(store.endpoint, secret="wrong"), monkeypatch)
    lines.append(told(str(videos), "s3://box/wrong/shards"))
    assert "AWS_SECRET_ACCESS_KEY" in lines[-1]
    seen("; ".join(lines))


def test_the_credentials_of_a_build_end_on_its_way_and_it_goes_on_with_new_ones(
    proxy: Proxy, running: ObjectStore, videos: Path, local_build: Path, tmp_path: Path, seen: Seen
) -> None:
    upload(running, videos, "expired/videos")
    expired = refused(400, "ExpiredToken", "The provided token has expired.")
    proxy.inject(expired, "shard-00002.tar", method="PUT", times=1000)
    build = build_of("s3://box/expired/videos", "s3://box/expired/shards", tmp_path / "scratch", "--workers", "1")
    output = ended(start(*build), code=3)
    assert "The provided token has expired" in output
    tries = sum("shard-00002.tar" in request.path for request in proxy.requests)
    assert tries == 1
    there = [name for name in hashes(running, "expired/shards") if name.endswith(".parquet")]
    proxy.reset()
    ended(start(*build))
    assert hashes(running, "expired/shards") == tree(local_build)
    seen(f"ended after {tries} try with {len(there)} tables there; then objects equal the files of the disk")


def test_listings_that_lag_and_missing_objects_that_are_remembered_cost_nothing_but_time(
    proxy: Proxy, running: ObjectStore, videos: Path, local_build: Path, many: Path, recipe: Path, shards: Path,
    uncut: Path, tmp_path: Path, seen: Seen,
) -> None:  # fmt: skip
    """Nothing that is younger than ten minutes is listed: all that follows happens before the listings catch up."""
    proxy.lag = Lag(600)
    upload(running, videos, "lag/videos")
    out = "s3://box/lag/shards"
    slices = [
        start(*build_of("s3://box/lag/videos", out, tmp_path / f"scratch-{i}", "--slice", f"{i}/2")) for i in (0, 1)
    ]
    for run in slices:
        ended(run)
    assert Storage(out).sizes() == {}
    assert main(["merge", out, "--slices", "2"]) == 0
    assert hashes(running, "lag/shards") == tree(local_build)
    assert main(["verify", out]) == 0
    corpus = open_corpus([out], cache=tmp_path / "cache", cache_gb=1)
    assert corpus.fingerprint == open_corpus([local_build]).fingerprint
    url, run = "s3://box/lag/run", tmp_path / "run"
    job = Job(recipe, shards, run, "--run.remote", url, processes=2)
    wait_until(lambda: Storage(url).exists("checkpoints/latest") or job.process.poll() is not None)
    job.process.kill()
    job.end()
    shutil.rmtree(run)
    assert complete(url) == []
    output = ended(Job(recipe, shards, run, "--run.remote", url, processes=2).process)
    assert "restored step-" in output
    assert exact(run) == exact(uncut)
    proxy.lag = Lag(6, remember_missing=True)
    begun = time.monotonic()
    ended(start(*build_of(str(videos), "s3://box/lag/again", tmp_path / "scratch", "--workers", "2")))
    seconds = time.monotonic() - begun
    assert hashes(running, "lag/again") == tree(local_build)
    seen(
        "slices, merge, verify, training data and restored run as on the disk with listings of none of it; "
        f"with 404 remembered for 6 s a build takes {seconds:.0f} s"
    )


LARGE = 130 << 20  # s3fs writes up to 100 MiB at once, larger files in parts of 50 MiB


def test_a_large_file_in_parts_is_whole_after_faults_and_a_kill_leaves_parts_but_no_object(
    proxy: Proxy, running: ObjectStore, tmp_path: Path, seen: Seen
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGE))
    client = running.client
    put = "import sys; from pathlib import Path; from mae3d.io.storage import Storage; "
    put += "Storage('s3://box/large').put(Path(sys.argv[1]), 'one')"
    proxy.inject(delayed(600), "partNumber=2", method="PUT", times=1)
    process = subprocess.Popen([sys.executable, "-c", put, str(large)])
    wait_until(lambda: any(request.method == "PUT" for request in proxy.requests) or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = client.list_multipart_uploads(Bucket="box").get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["large/one"]
    assert not Storage("s3://box/large").exists("one")
    proxy.reset()
    for fault in (SLOW_DOWN, BROKEN, lost):
        proxy.inject(fault, "partNumber=", method="PUT", times=1)
    subprocess.run([sys.executable, "-c", put, str(large)], check=True, timeout=240)
    assert proxy.remaining() == []
    proxy.inject(half, "large/one", method="GET", times=2)
    Storage("s3://box/large").get("one", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert len(client.list_multipart_uploads(Bucket="box").get("Uploads", [])) == 1
    for upload in left:
        client.abort_multipart_upload(Bucket="box", Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_object(Bucket="box", Key="large/one")
    seen(f"{LARGE >> 20} MiB equal after 5 faults; the kill left one upload in parts, which no command goes on with")


def test_a_certificate_of_ones_own_is_trusted_if_it_is_given_and_refused_if_not(
    videos: Path, local_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    need("weed", "openssl")
    pem = tmp_path / "pem"
    names = ["-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(pem)]
    certificate = subprocess.run([*made, *names], check=True, capture_output=True).stdout
    with pem.open("ab") as file:
        file.write(certificate)
    with ObjectStore(tmp_path / "store", certificate=pem) as store:
        store.client.create_bucket(Bucket="box")
        build = build_of(str(videos), "s3://box/tls/shards", tmp_path / "scratch")
        reached(store.environment, monkeypatch)
        begun = time.monotonic()
        assert main(build) == 3
        error = capsys.readouterr().err.strip().splitlines()[-1]
        seconds = time.monotonic() - begun
        assert "AWS_CA_BUNDLE" in error
        reached(store.environment | {"AWS_CA_BUNDLE": str(pem)}, monkeypatch)
        assert main(build) == 0
        assert hashes(store, "tls/shards") == tree(local_build)
    seen(f"with AWS_CA_BUNDLE objects equal the files of the disk; without, after {seconds:.1f} s: {error}")
