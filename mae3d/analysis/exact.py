"""Spread work over the cores in pieces of one thread each, so that the number of threads changes no bit of a result.

    vectors = each_clip(lambda clip: embed(encoder, clip), clips)      # (B, T, H, W, C) ─► (B, D)
    with one_thread() as spread:
        losses = spread(loss_of, batches)                              # as [loss_of(batch) for batch in batches]

Matrix libraries split a product by their number of threads, and with it the order of a sum. MKL and OpenBLAS promise
equal bits for some processors and shapes only: an encoder's small layers, a head of few classes and similarities all
differ between one thread and two. A piece is the same sequence of instructions on any thread, and pieces are put
together in their order.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


def each_clip(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """Return a function's results for a batch: clip by clip on a CPU, in one call on a GPU.

    On a CPU the result for a clip depends neither on the threads nor on the rest of its batch. Autocast and inference
    mode hold for one thread: the function sets them itself.

    Args:
        function: called with (b, ...) of each batch, returns (b, ...).
        batches: (B, ...) each, all on one device.

    Returns:
        (B, ...).
    """
    if batches[0].device.type != "cpu":
        return function(*batches)
    clips = list(zip(*(batch.split(1) for batch in batches), strict=True))
    return torch.cat(_spread(lambda clip: function(*clip), clips, torch.get_num_threads()))


@contextmanager
def one_thread() -> Iterator[Spread]:
    """Keep torch and the BLAS of numpy and scikit-learn to one thread within the block.

    Yields:
        `spread(function, items)`: the list of results in the items' order, computed on as many threads as torch had
        before the block, each item on one of them.
    """
    import sklearn.linear_model  # noqa: F401  loads scipy's BLAS, which is then found
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)  # also of the copy of MKL that is part of torch
        try:
            yield lambda function, items: _spread(function, items, threads)
        finally:
            torch.set_num_threads(threads)


def _spread(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    if threads == 1:
        return [function(item) for item in items]
    return list(_pool(os.getpid(), threads).map(function, items))


@cache  # threads that end leave MKL's buffers behind; a forked child inherits the pool but not its threads
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"exact-{pid}", initializer=_limit_to_one_thread)


def _limit_to_one_thread() -> None:
    """Give the calling thread's operations no other threads."""
    torch.get_num_threads()  # initialises the thread, which would otherwise be done later and undo the limit
    torch.set_num_threads(1)
