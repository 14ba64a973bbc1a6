"""Video files ─► what their headers announce, over several processes: what the plan has to know to cut them.

    look = partial(probe, roots, settings)
    for facts in over_processes(look, [(0, "a.mp4"), (0, "b.mp4")], workers=8, unit="file"): ...

A file that cannot be opened gives its MediaError instead. What comes back, and in which order, does not depend on the
number of workers.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from preprocess.decoder import decoder
from preprocess.plan import Settings
from preprocess.problems import MediaError
from preprocess.progress import Progress
from preprocess.roots import Root
from preprocess.videos import VideoFacts

_CHUNK = 16  # items that a process is sent at once
_WORTH_A_PROCESS = 64  # items; starting a process takes longer than looking at fewer

Probed = VideoFacts | MediaError
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def over_processes(
    look: Callable[[Item], Answer], items: Sequence[Item], *, workers: int, unit: str
) -> Iterator[Answer]:
    """`map(look, items)`, over processes if there is enough to do, with a progress line.

    Args:
        look: a function that can be sent to other processes.
        items: what it takes.
        workers: how many processes there may be.
        unit: what an item is, for the progress line.

    Raises:
        OSError: a store cannot be reached, or a process died.
    """
    workers = min(workers, len(items) // _WORTH_A_PROCESS)
    if not workers:
        yield from map(look, items)
        return
    with Progress(len(items), unit) as advance:
        if workers < 2:
            for item in items:
                yield look(item)
                advance(1)
            return
        on_interrupt = (signal.SIGINT, signal.SIG_DFL)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal, initargs=on_interrupt)
        try:
            for answer in pool.map(look, items, chunksize=_CHUNK):
                yield answer
                advance(1)
        except BrokenProcessPool as error:
            raise ChildProcessError("a worker died, perhaps for want of memory (try fewer --workers)") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def probe(roots: Sequence[Root], settings: Settings, path: tuple[int, str]) -> Probed:
    """What one file announces, its length borne out by its packets; `path` is (root, path below it)."""
    root, name = path
    try:
        with roots[root].local([name]) as (file,):
            return decoder().probe(file, settings=settings, measure=True)
    except MediaError as error:
        return error
