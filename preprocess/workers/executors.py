"""Tasks ─► results, over processes of this machine or a Dask cluster; a worker that dies costs its task's time.

    with local_workers(4) as workers:
        for result in run_tasks([0, 1, 2], lambda number: partial(make_shard, number, ...), workers):
            ...

All of them are `concurrent.futures` executors, so that there is one loop.
"""

import logging
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from queue import SimpleQueue
from typing import Any, TypeVar

from preprocess.dataset.schema import shard_name

log = logging.getLogger(__name__)

_TRIES = 3  # of a task whose worker dies
_CONNECT_S = 30

Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """An executor, how many tasks it should have at once, and what it raises when a worker has died."""

    executor: Executor
    at_once: Callable[[], int]
    died: tuple[type[BaseException], ...]
    tries: int
    where: str


def run_tasks(
    numbers: Iterable[int],
    task: Callable[[int], Callable[[], Result]],
    workers: Workers,
    *,
    name: Callable[[int], str] = shard_name,
) -> Iterator[Result]:
    """Runs a task for every number; yields results in the order in which they end.

    Args:
        numbers: of the tasks.
        task: makes the task of a number, when it is its turn: a plan may be large.
        workers: where.
        name: of a task, for messages.

    Raises:
        ChildProcessError: the workers of one task died again and again.
        OSError: the output cannot be written, or the cluster cannot be reached.
    """
    tries: Counter[int] = Counter()
    waiting, again = iter(numbers), deque[int]()
    running: dict[Future[Result], int] = {}
    try:
        while True:
            while len(running) < workers.at_once():
                number = again.popleft() if again else next(waiting, None)
                if number is None:
                    break
                running[workers.executor.submit(task(number))] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                try:
                    result = future.result()
                except workers.died as error:
                    tries[number] += 1
                    if tries[number] >= workers.tries:
                        raise ChildProcessError(
                            f"{name(number)}: its worker died {_TRIES} times, perhaps for want of memory (try "
                            f"fewer --workers)"
                        ) from error
                    log.warning("the worker of %s died; it is done again", name(number))
                    again.append(number)
                except CancelledError as error:
                    raise ChildProcessError(f"{workers.where} has gone") from error
                except ImportError as error:
                    raise ValueError(
                        f"{workers.where}: a worker lacks a module ({error}); install mae3d there"
                    ) from error
                else:
                    yield result
    finally:
        for future in running:
            future.cancel()


def local_workers(count: int) -> AbstractContextManager[Workers]:
    """`count` processes of this machine; for 1 this process itself."""
    return _processes(count) if count > 1 else _this_process()


@contextmanager
def _this_process() -> Iterator[Workers]:
    yield Workers(_Inline(), lambda: 1, (), 1, "this process")


@contextmanager
def _processes(count: int) -> Iterator[Workers]:
    executor = _Processes(count)
    try:
        yield Workers(executor, lambda: count, (BrokenProcessPool,), _TRIES, "this machine")
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def dask_workers(scheduler: str) -> Iterator[Workers]:
    """The workers of a Dask cluster; each must be able to import this package and see sources and output.

    Args:
        scheduler: its address (tcp://host:8786), or its scheduler file.

    Raises:
        ValueError: Dask is not installed.
        OSError: nothing answers there.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ValueError('--scheduler needs Dask: pip install "mae3d[dask]"') from error
    where = {"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}
    try:
        client = Client(**where, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"no Dask scheduler answers at {scheduler} ({error})") from error
    with client:
        executor = client.get_executor(pure=False)
        # Dask itself runs a task again whose worker has died, several times, before it raises KilledWorker.
        yield Workers(
            executor, lambda: 2 * max(1, len(client.ncores())), (KilledWorker,), 1, f"the cluster {scheduler}"
        )


class _Inline(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Processes(Executor):
    """Pools of one process each: when it dies, that is told of its own task only, and the others go on."""

    def __init__(self, count: int) -> None:
        self._pools: set[ProcessPoolExecutor] = set()
        self._free: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()  # None: a pool that is to be made
        for _ in range(count):
            self._free.put(None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        pool = self._free.get()
        while True:
            if pool is None:
                pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin)
                self._pools.add(pool)
            try:
                future = pool.submit(fn, *args, **kwargs)
                break
            except BrokenProcessPool:  # its process has died, perhaps with nothing to do
                self._pools.discard(pool)
                pool = None
        future.add_done_callback(partial(self._give_back, pool))
        return future

    def _give_back(self, pool: ProcessPoolExecutor, future: Future[Any]) -> None:
        self._free.put(pool)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def _begin() -> None:
    """In a worker: dies with its parent, and silently on Ctrl-C; what it leaves is swept by the next run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None, "a worker is another process's child"

    def watch() -> None:
        wait_for([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
