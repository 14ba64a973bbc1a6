"""Tasks run on threads of this process or on a Dask cluster: task numbers ─► results, as they end.

    with local_workers(4) as workers:
        for result in run_tasks([0, 1, 2], lambda number: partial(make_shard, number, ...), workers):
            ...

Threads suffice on one machine: codecs run in the decoder child that each thread owns (`preprocess.workers.decoder`),
and hashing, compression and file access release the interpreter's lock. A codec that crashes costs its sample, not a
worker.
"""

import functools
import logging
import pickle
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from typing import TYPE_CHECKING, Any, TypeVar

from mae3d.io.progress import Progress, followed
from mae3d.io.versions import code_version, version_of
from preprocess.dataset.schema import shard_name
from preprocess.workers.decoder import Decoder, decoder

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_CONNECT_S = 30
_LOOK_S = 30.0  # after which a cluster is looked at that has finished nothing
# What the bytes of a shard depend on.
_LIBRARIES = ("av", "numpy", "pillow", "pyarrow", "simplejpeg")
# Text, because a worker that cannot load its task dies of it, without a word to the client, and the next one after it;
# and because functions by value have the bytecode of one version of Python.
_RUN_TASK = "__import__('pickle').loads(task)()"
_LACKS = "__import__('importlib.util').util.find_spec(name) is None"
_WORTH_A_WORKER = 4  # batches per worker; fewer are done sooner than another worker has started its decoder

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """An executor, the number of tasks that it should hold, and the error that it raises for a dead worker.

    `lacking` names the workers without a module; `look` is called now and then while nothing ends.
    """

    executor: Executor
    at_once: Callable[[], int]
    where: str
    died: tuple[type[BaseException], ...] = ()
    lacking: Callable[[str], str] = lambda module: ""
    look: Callable[[], None] = lambda: None


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
        ValueError: a worker lacks this package, or has another version.
    """
    waiting = iter(numbers)
    running: dict[Future[Result], int] = {}
    try:
        while True:
            while len(running) < workers.at_once() and (number := next(waiting, None)) is not None:
                running[workers.executor.submit(task(number))] = number
            if not running:
                return
            ended = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done
            if not ended:
                workers.look()
            for future in ended:
                number = running.pop(future)
                try:
                    result = future.result()
                except workers.died as error:
                    raise ChildProcessError(
                        f"{name(number)}: its workers died again and again, perhaps for want of memory; give them more"
                    ) from error
                except CancelledError as error:
                    raise ChildProcessError(f"{workers.where} has gone") from error
                except (ImportError, AttributeError) as error:
                    if not workers.died:  # of this process
                        raise
                    names = workers.lacking((getattr(error, "name", None) or "preprocess").partition(".")[0])
                    raise ValueError(
                        f"{workers.where}: {names or 'a worker'} lacks a module, or has another version: {error}; "
                        "install this version of mae3d there, and start the worker again"
                    ) from error
                yield result
    finally:
        for future in running:
            future.cancel()


def map_over_workers(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    unit: str,
    doing: str = "",
    at_once: int = 16,
) -> Iterator[Result]:
    """Yield `function(item)` per item, in the order of the items, from several threads if there is enough to do.

    Args:
        function: takes one item; it runs in several threads at a time.
        items: the items.
        workers: the largest number of threads.
        unit: the name of an item, for the progress line.
        doing: the name of the work, for that line.
        at_once: items that a thread is given at a time.

    Raises:
        OSError: a store cannot be reached.
    """
    workers = min(workers, len(items) // (at_once * _WORTH_A_WORKER))
    if not workers:
        yield from map(function, followed(items, unit, doing=doing))
        return
    ended: dict[int, list[Result]] = {}
    begins = range(0, len(items), at_once)
    task = lambda begin: partial(_map_batch, function, begin, items[begin : begin + at_once])  # noqa: E731
    following = iter(begins)
    awaited = next(following)
    with Progress(len(items), unit, doing=doing) as advance, local_workers(workers) as pool:
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
        OSError: nothing answers there, or no longer.
    """
    try:
        from distributed import Client, KilledWorker
        from distributed.comm import CommClosedError
    except ImportError as error:
        raise ValueError('--scheduler needs Dask: pip install "mae3d[dask]"') from error
    given = {"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}
    try:
        client = Client(**given, timeout=_CONNECT_S, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"no Dask scheduler answers at {scheduler} ({error})") from error
    where = f"the cluster {scheduler}"
    with client:

        def lacking(module: str) -> str:
            lacks = client.run(eval, _LACKS, {"name": module}, on_error="ignore")
            return ", ".join(address for address, is_lacking in lacks.items() if is_lacking)

        def look() -> None:
            if not client.ncores():
                log.warning("%s has no worker: waiting for one (`dask worker %s`)", where, scheduler)

        # Dask itself runs a task again if its worker has died, several times, before it raises KilledWorker.
        at_once = lambda: 2 * max(1, len(client.ncores()))  # noqa: E731
        try:
            yield Workers(_OnCluster(client), at_once, where, (KilledWorker,), lacking, look)
        except BaseException as error:
            for name in ("distributed", "distributed.client"):  # a page of traceback about its attempts to reconnect
                logging.getLogger(name).setLevel(logging.CRITICAL)
            if isinstance(error, CommClosedError):
                raise ChildProcessError(f"{where} has gone") from error
            raise


class _OnCluster(Executor):
    """An executor on the workers of a Dask cluster, each of which must have this version of the code."""

    def __init__(self, client: "Client"):
        self._executor = client.get_executor(pure=False)
        self._versions = versions()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        task = pickle.dumps(partial(run_here, self._versions, pickle.dumps(partial(fn, *args, **kwargs))))
        future: Future[Any] = self._executor.submit(eval, _RUN_TASK, {"task": task})
        return future


def run_here(expected: Mapping[str, str], task: bytes) -> Any:
    """Run a pickled task on a worker.

    Raises:
        ValueError: the versions here are not those of the process that submits the task.
    """
    if differing := [
        f"{name} {here} instead of {expected.get(name)}"
        for name, here in versions().items()
        if here != expected.get(name)
    ]:
        raise ValueError(
            f"the worker on {socket.gethostname()} has {', '.join(differing)}, which may write other bytes; "
            "install the same there, and start the worker again"
        )
    return pickle.loads(task)()


@functools.cache
def versions() -> dict[str, str]:
    """Return what the bytes of a shard depend on, by name; read once, as the code itself is."""
    libraries = {name: version_of(name) for name in _LIBRARIES}
    return {"code": code_version(), "Python": platform.python_version(), **libraries}


class _Inline(Executor):
    """An executor that runs each task at once, in the calling thread, with its decoder."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
