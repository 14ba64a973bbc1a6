"""`preprocess build --scheduler` on a Dask cluster of two hosts, scheduler and workers by their commands."""

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import Seen
from tests.support.builds import SMALL, command, make_archive, tree
from tests.support.jobs import ROOT, wait_until
from tests.support.two_hosts import Host

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'mae3d[dask]'")


DASK = [sys.executable, "-m", "dask"]
PORT = "8786"

# The part of a build that hands its shards to the cluster, with tasks that are no work and weigh as shards' do.
MANY = """
import json, sys, psutil
from functools import partial
from distributed import Client
from preprocess.workers.executors import dask_workers, run_tasks

made = ended = ahead = held = 0

def task(number):
    global made, ahead
    made += 1
    ahead = max(ahead, made - ended)
    return partial(len, [str(number)] * 1000)

rss = lambda pid=None: psutil.Process(pid).memory_info().rss / 1e6
client = Client(sys.argv[1], set_as_default=False)
scheduler = int(sys.argv[2])
with dask_workers(sys.argv[1]) as workers:
    for _ in run_tasks(range(10_000), task, workers):
        ended += 1
        if ended == 500:
            before = rss(), rss(scheduler)
        if ended % 500 == 0:
            held = max(held, client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    more = [round(now - then) for now, then in zip((rss(), rss(scheduler)), before)]
client.close()
print(json.dumps({"ended": ended, "made ahead": ahead, "tasks in the scheduler": held,
                  "MB more here": more[0], "MB more in the scheduler": more[1]}))
"""


class Cluster:
    """A scheduler on node-a, and workers as they are started."""

    def __init__(self, hosts: list[Host], folder: Path, stack: ExitStack):
        self.hosts, self.folder, self._stack = hosts, folder, stack
        self.address = f"tcp://{hosts[0].address}:{PORT}"
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> "subprocess.Popen[bytes]":
        """Start `dask scheduler`, and wait until it answers."""
        options = ["--host", self.hosts[0].address, "--port", PORT, "--no-dashboard"]
        process = self._start(self.hosts[0], "scheduler", [*DASK, "scheduler", *options])
        wait_until(lambda: "Scheduler at" in self.log("scheduler"))
        return process

    def start_worker(
        self, host: int = 1, *, python: tuple[str, ...] = (sys.executable,), path: Path = ROOT
    ) -> "subprocess.Popen[bytes]":
        """Start `dask worker` on a host with the code of a path, and wait until the scheduler knows it."""
        known = self.log("scheduler").count("Register worker")
        name = f"worker-{known}"
        options = ["--host", self.hosts[host].address, "--nworkers", "1", "--nthreads", "1", "--no-dashboard"]
        options += ["--local-directory", str(self.folder / name)]
        program = ["env", f"PYTHONPATH={path}", *python, "-m", "dask", "worker"]
        process = self._start(self.hosts[host], name, [*program, self.address, *options])
        wait_until(lambda: self.log("scheduler").count("Register worker") > known)
        return process

    def build(self, frames: Path, out: Path) -> "subprocess.Popen[str]":
        """Start the documented command on node-a."""
        arguments = [sys.executable, "-m", "preprocess", *command(frames, out, "--scheduler", self.address)]
        process = subprocess.Popen(
            [*self.hosts[0].prefix, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._stack.callback(process.kill)
        return process

    def log(self, name: str) -> str:
        """Return what a process of the cluster has written."""
        return (self.folder / f"{name}.log").read_text()

    def _start(self, host: Host, name: str, program: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([*host.prefix, *program], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(end_tree, process)
        return process


def end_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process with all below it: a nanny starts its worker anew."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in below:
            if child.is_running():
                child.kill()
    process.wait()


def end(build: "subprocess.Popen[str]") -> tuple[int, str]:
    output = build.communicate(timeout=240)[0]
    print(output)
    return build.returncode, output


@pytest.fixture
def cluster(hosts: list[Host], tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(hosts, tmp_path, stack)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Return what takes long enough that a build of it can be hit on a fast machine: 24 shards."""
    return make_archive(tmp_path / "frames", clips=120, size=SMALL)


@pytest.fixture
def whole(frames: Path, tmp_path: Path) -> dict[str, str]:
    """Return the tree of a build on this machine alone."""
    from preprocess.__main__ import main

    assert main(command(frames, tmp_path / "whole")) == 0
    return tree(tmp_path / "whole")


def test_fault_16_a_worker_killed_on_the_other_host_costs_its_shard_only(
    cluster: Cluster, frames: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "out"
    workers = [cluster.start_worker(host) for host in (0, 1)]
    build = cluster.build(frames, out)
    wait_until(lambda: bool(list(out.glob("shard-*.parquet"))) or build.poll() is not None)
    end_tree(workers[1])
    code, output = end(build)
    assert code == 0, output
    assert tree(out) == whole
    seen(f"exit 0, all {len(whole)} files byte-identical to those of a local build")


def test_a_worker_without_the_package_is_named_at_once(
    cluster: Cluster, frames: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out, bare = tmp_path / "out", tmp_path / "bare"
    bare.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "mae3d" not in entry.name and entry.suffix != ".pth":
            (bare / entry.name).symlink_to(entry)
    worker = cluster.start_worker(python=(sys.executable, "-S"), path=bare)
    began = time.monotonic()
    code, output = end(cluster.build(frames, out))
    assert code == 2, output
    assert f"{cluster.hosts[1].address}:" in output
    assert "No module named 'preprocess'; install this version of mae3d there" in output
    seconds = time.monotonic() - began
    end_tree(worker)
    cluster.start_worker()
    code, output = end(cluster.build(frames, out))
    assert code == 0, output
    assert tree(out) == whole
    seen(f"exit 2 after {seconds:.0f} s, with the worker's address; with the package the same command goes on")


def test_a_worker_with_another_version_of_the_package_is_refused(
    cluster: Cluster, frames: Path, tmp_path: Path, seen: Seen
) -> None:
    other = tmp_path / "other"
    for package in ("mae3d", "preprocess", "pipelines", "launch"):
        shutil.copytree(ROOT / package, other / package)
    with (other / "preprocess" / "problems.py").open("a") as file:
        file.write("\n# of another commit\n")
    cluster.start_worker(path=other)
    code, output = end(cluster.build(frames, tmp_path / "out"))
    assert code == 2, output
    assert "the worker on node-b has code mae3d" in output
    assert not list((tmp_path / "out").glob("shard-*"))
    seen("exit 2, names node-b and both hashes of the sources")


def test_a_scheduler_that_goes_away_ends_the_build_and_the_same_command_goes_on(
    cluster: Cluster, frames: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "out"
    worker = cluster.start_worker()
    build = cluster.build(frames, out)
    wait_until(lambda: bool(list(out.glob("shard-*.parquet"))) or build.poll() is not None)
    cluster.scheduler.send_signal(signal.SIGKILL)
    began = time.monotonic()
    code, output = end(build)
    assert code != 0, output
    assert "has gone; run the same command again to go on" in output
    assert "Traceback" not in output
    seconds, done = time.monotonic() - began, len(list(out.glob("shard-*.parquet")))
    end_tree(worker)
    cluster.start_scheduler()
    cluster.start_worker()
    code, output = end(cluster.build(frames, out))
    assert code == 0, output
    assert tree(out) == whole
    seen(f"exit 3 within {seconds:.0f} s with {done} of 24 shards; the same command goes on, byte-identical")


def test_ten_thousand_tasks_are_submitted_a_few_at_a_time(cluster: Cluster, seen: Seen) -> None:
    cluster.start_worker(0)
    below = psutil.Process(cluster.scheduler.pid)
    program = [sys.executable, "-c", MANY, cluster.address, str(below.pid)]
    done = subprocess.run([*cluster.hosts[0].prefix, *program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["ended"] == 10_000
    assert facts["made ahead"] <= 2
    assert facts["tasks in the scheduler"] <= 4
    assert facts["MB more here"] < 50
    assert facts["MB more in the scheduler"] < 100
    seen(", ".join(f"{name} {value}" for name, value in facts.items()))
