"""Threads that read: one while it keeps up, all of them where reads are slow."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.reading import read_threads
from pipelines.reading.read_threads import ReadThreads

COUNT, LIMIT_S = 4, 60.0


@pytest.fixture
def make() -> Iterator[Callable[[], ReadThreads]]:
    made: list[ReadThreads] = []

    def one() -> ReadThreads:
        made.append(ReadThreads(COUNT))
        return made[-1]

    yield one
    for threads in made:
        assert threads.close()


def test_one_thread_does_all_quick_jobs_of_a_burst(
    make: Callable[[], ReadThreads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_threads, "JOIN_S", LIMIT_S)
    threads = make()

    def job(number: int) -> tuple[int, int]:
        time.sleep(0.001)  # others could run
        return number, threading.get_ident()

    for _ in range(3):
        results = [future.result(LIMIT_S) for future in [threads.submit(job, number) for number in range(20)]]
        assert [number for number, _ in results] == list(range(20))
        assert len({thread for _, thread in results}) == 1


def test_all_threads_join_in_where_jobs_wait_and_again_after_a_rest(make: Callable[[], ReadThreads]) -> None:
    threads = make()
    for _ in range(3):
        together = threading.Barrier(COUNT)  # none leaves before all have come
        futures = [threads.submit(together.wait, LIMIT_S) for _ in range(COUNT)]
        assert sorted(future.result(LIMIT_S) for future in futures) == list(range(COUNT))


def test_jobs_behind_one_that_hangs_are_done_by_others(make: Callable[[], ReadThreads]) -> None:
    threads, release = make(), threading.Event()
    hanging = threads.submit(release.wait, LIMIT_S)
    assert [threads.submit(abs, -number).result(LIMIT_S) for number in range(20)] == list(range(20))
    assert not hanging.done()
    release.set()
    assert hanging.result(LIMIT_S)


def test_an_error_comes_out_of_its_future_and_no_thread_is_lost(make: Callable[[], ReadThreads]) -> None:
    threads = make()
    for _ in range(2 * COUNT):
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda number: 1 // number, 0).result(LIMIT_S)
    assert threads.submit(abs, -1).result(LIMIT_S) == 1
