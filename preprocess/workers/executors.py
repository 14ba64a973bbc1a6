"""Tasks run on threads of this process or on a Dask cluster: task numbers ─► results, as they end.

    with local_workers(4) as workers:
        for result in run_tasks([0, 1, 2], lambda number: partial(make_shard, number, ...), workers):
            ...

Threads suffice on one machine: codecs run in the decoder child that each thread owns (`preprocess.workers.decoder`),
and hashing, compression and file access release the interpreter's lock. A codec that crashes costs its sample, not a
worker.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from preprocess.dataset.schema import shard_name
from preprocess.workers.decoder import Decoder, decoder
from preprocess.workers.progress import Progress

_CONNECT_S = 30
_WORTH_A_WORKER = 4  # batches per worker; fewer are done sooner than another worker has started its decoder

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """An executor, the number of tasks that it should hold, and the error that it raises for a dead worker."""

    executor: Executor
    at_once: Callable[[], int]
    where: str
    died: tuple[type[BaseException], ...] = ()


def run_tasks(
    numbers: Iterable[int],
    task: Callable[[int], Callable[[], Result]],
    workers: Workers,
    *,
    name: Callable[[int], str] = shard_name,
) -> Iterator[Result]:
    """Run one task per number; yield the results in the order in which they end.

    Args:
        numbers: the numbers of the tasks.
        task: makes the task of a number when its turn has come, because a plan may be large.
        workers: the workers that run the tasks.
        name: returns the name of a task for messages.

    Raises:
        ChildProcessError: the cluster has given a task up because its workers died, or has gone itself.
        OSError: the output cannot be written, or the cluster cannot be reached.
    """
    waiting = iter(numbers)
    running: dict[Future[Result], int] = {}
    try:
        while True:
            while len(running) < workers.at_once() and (number := next(waiting, None)) is not None:
                running[workers.executor.submit(task(number))] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                try:
                    result = future.result()
                except workers.died as error:
                    raise ChildProcessError(
                        f"{name(number)}: its workers died again and again, perhaps for want of memory; give them more"
                    ) from error
                except CancelledError as error:
                    raise ChildProcessError(f"{workers.where} has gone") from error
                except ImportError as error:
                    raise ValueError(
                        f"{workers.where}: a worker lacks a module ({error}); install mae3d there"
                    ) from error
                yield result
    finally:
        for future in running:
            future.cancel()


def map_over_workers(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, unit: str, at_once: int = 16
) -> Iterator[Result]:
    """Yield `function(item)` per item, in the order of the items, from several threads if there is enough to do.

    Args:
        function: takes one item; it runs in several threads at a time.
        items: the items.
        workers: the largest number of threads.
        unit: the name of an item, for the progress line.
        at_once: items that a thread is given at a time.

    Raises:
        OSError: a store cannot be reached.
    """
    workers = min(workers, len(items) // (at_once * _WORTH_A_WORKER))
    if not workers:
        yield from map(function, items)
        return
    ended: dict[int, list[Result]] = {}
    begins = range(0, len(items), at_once)
    task = lambda begin: partial(_map_batch, function, begin, items[begin : begin + at_once])  # noqa: E731
    following = iter(begins)
    awaited = next(following)
    with Progress(len(items), unit) as advance, local_workers(workers) as pool:
        for begin, results in run_tasks(begins, task, pool, name=lambda begin: f"{unit} {begin + 1} and those after"):
            advance(len(results))
            ended[begin] = results
            while awaited in ended:
                yield from ended.pop(awaited)
                awaited = next(following, len(items))


def _map_batch(function: Callable[[Item], Result], begin: int, items: Sequence[Item]) -> tuple[int, list[Result]]:
    return begin, [function(item) for item in items]


@contextmanager
def local_workers(count: int) -> Iterator[Workers]:
    """Yield `count` threads of this process, each with a decoder of its own; the calling thread itself if `count` is 1.

    If the block raises, shards in the making are given up, because they may take hours.
    """
    if count == 1:
        yield Workers(_Inline(), lambda: 1, "this process")
        return
    decoders: list[Decoder] = []
    executor = ThreadPoolExecutor(count, "worker", initializer=lambda: decoders.append(decoder()))
    try:
        yield Workers(executor, lambda: count, "this process")
    except BaseException:
        for one in decoders:
            one.stop()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for one in decoders:  # a child dies with its thread, and stays a zombie until somebody waits for it
            one.close()


@contextmanager
def dask_workers(scheduler: str) -> Iterator[Workers]:
    """Yield the workers of a Dask cluster; each must be able to import this package and see sources and output.

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
        # Dask itself runs a task again if its worker has died, several times, before it raises KilledWorker.
        yield Workers(executor, lambda: 2 * max(1, len(client.ncores())), f"the cluster {scheduler}", (KilledWorker,))


class _Inline(Executor):
    """An executor that runs each task at once, in the calling thread, with its decoder."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
