"""The same job on a Dask cluster: a real scheduler, real workers, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from preprocess.__main__ import main
from tests.support.builds import command, make_archive, tree

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'mae3d[dask]'")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the scheduler file of a cluster of two workers, each a process."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(*arguments: str) -> None:
            run = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
            environment = os.environ | {"DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h"}
            process = subprocess.Popen(
                run, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        for _ in range(2):
            worker = ["dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
            start(*worker, "--local-directory", str(folder))
        yield str(file)


def kill_the_first_that_writes(out: Path, told: list[int]) -> None:
    """Kills the worker whose temporary tar appears first."""
    end = time.monotonic() + 60
    while not told and time.monotonic() < end:
        for path in out.glob(".tmp-*-shard-*.tar"):  # .tmp-<host>-<pid>-shard-00001.tar
            told.append(int(path.name.split("-shard-")[0].rpartition("-")[2]))
            os.kill(told[0], signal.SIGKILL)
            return
        time.sleep(0.0005)


def test_fault_16_a_dask_worker_that_is_killed_costs_its_shard_only(cluster: str, tmp_path: Path) -> None:
    archive, out, killed = make_archive(tmp_path / "frames", size=(48, 32)), tmp_path / "out", list[int]()
    assert main(command(archive, tmp_path / "whole")) == 0
    killer = threading.Thread(target=kill_the_first_that_writes, args=(out, killed))
    killer.start()
    try:
        assert main(command(archive, out, "--scheduler", cluster)) == 0
    finally:
        killer.join()
    assert len(killed) == 1
    assert tree(out) == tree(tmp_path / "whole")


def test_a_scheduler_that_is_not_there_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.workers.executors._CONNECT_S", 1)
    archive = make_archive(tmp_path / "frames", clips=2, size=(48, 32))
    assert main(command(archive, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")) == 3
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
