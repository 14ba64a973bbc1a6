"""Tasks over the threads of this process: order, errors, and ends that must not wait for long tasks."""

import os
import signal
import threading
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from mae3d.video.errors import MediaError
from preprocess.plan.settings import Settings
from preprocess.workers.decoder import decoder
from preprocess.workers.executors import Workers, local_workers, map_over_workers, run_tasks
from tests.support.fake_ffmpeg import with_fake_ffmpeg
from tests.support.kills import start
from tests.support.media import make_video


def _slow_at_first(number: int) -> int:
    time.sleep(0.3 if number < 2 else 0.0)
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    for count in (0, 3, 11):
        results = list(map_over_workers(_slow_at_first, range(count), workers=workers, unit="file", at_once=1))
        assert results == [number * number for number in range(count)]


def test_the_executors_are_those_of_concurrent_futures() -> None:
    for count in (1, 2):
        with local_workers(count) as workers:
            future = workers.executor.submit(divmod, 1, 0)
            assert isinstance(future.exception(), ZeroDivisionError)
            assert workers.executor.submit(divmod, 7, 2).result() == (3, 1)


def test_every_thread_has_a_decoder_of_its_own() -> None:
    both = threading.Barrier(2, timeout=60)

    def mine() -> int:
        both.wait()
        return id(decoder())

    with local_workers(2) as workers:
        seen = list(run_tasks(range(2), lambda number: mine, workers))
    assert len({*seen, id(decoder())}) == 3


def test_a_task_that_the_cluster_gives_up_is_named() -> None:
    class Died(Exception):
        pass

    class Cluster(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            submitted.append(fn)
            future: Future[Any] = Future()
            future.set_exception(Died())
            return future

    submitted: list[Any] = []

    workers = Workers(Cluster(), lambda: 2, "the cluster", (Died,))
    with pytest.raises(ChildProcessError, match=r"shard-00007: .* died .* memory"):
        list(run_tasks([7], lambda number: _slow_at_first, workers))  # type: ignore[arg-type, return-value]
    assert len(submitted) == 1  # Dask has tried it again and again already


def test_an_error_does_not_wait_for_the_other_threads_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fake_ffmpeg(tmp_path, monkeypatch)
    make_video(tmp_path / "hangs_at_once.mp4", 5)
    raised: list[BaseException] = []

    def hang() -> None:
        try:
            decoder().probe(tmp_path / "hangs_at_once.mp4", settings=Settings(timeout_s=600))
        except (OSError, MediaError) as error:
            raised.append(error)

    def fail_while_one_hangs() -> None:
        with local_workers(2) as workers:
            workers.executor.submit(hang)
            while not new_children():
                time.sleep(0.01)
            time.sleep(1.0)
            workers.executor.submit(divmod, 1, 0).result()

    before = psutil.Process().children()

    def new_children() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        fail_while_one_hangs()
    assert time.monotonic() - began < 60
    assert [str(error) for error in raised] == ["the decoder was stopped"]  # no MediaError, which costs a sample
    assert new_children() == []


def test_an_interrupted_build_ends_at_once_and_leaves_neither_lock_nor_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos whose packets take 0.2 s each keep the build at work until any machine has interrupted it."""
    with_fake_ffmpeg(tmp_path, monkeypatch)
    for name in ("slow_a_after_0.mp4", "slow_b_after_0.mp4"):
        make_video(tmp_path / "videos" / name, 100)
    out = tmp_path / "out"
    run = start(
        "build",
        "--videos",
        str(tmp_path / "videos"),
        "--whole",
        "--shard-size",
        "1",
        "--out",
        str(out),
        "--workers",
        "2",
    )
    below: list[psutil.Process] = []
    while not (below and list(out.glob(".tmp-*-shard-*.tar"))) and run.poll() is None:
        below = psutil.Process(run.pid).children(recursive=True)
        time.sleep(0.02)  # or the looking takes the time that the build needs
    os.kill(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "run the same command again" in output
    assert not list(out.glob(".lock*"))
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
