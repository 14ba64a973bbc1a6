"""Video files ─► what their headers announce, over several processes: what the plan has to know to cut them.

    look = partial(probe, roots, settings)
    for facts in over_processes(look, [(0, "a.mp4"), (0, "b.mp4")], workers=8, unit="file"): ...

A file that cannot be opened gives its MediaError instead. What comes back, and in which order, does not depend on the
number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from mae3d.video.errors import MediaError
from mae3d.video.reader import VideoFacts
from preprocess.plan.plan import Settings
from preprocess.sources.roots import Root
from preprocess.workers.decoder import decoder
from preprocess.workers.executors import local_workers, run_tasks
from preprocess.workers.progress import Progress

_WORTH_A_PROCESS = 4  # tasks; starting a process takes longer than fewer

Probed = VideoFacts | MediaError
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def over_processes(
    look: Callable[[Item], Answer], items: Sequence[Item], *, workers: int, unit: str, at_once: int = 16
) -> Iterator[Answer]:
    """`map(look, items)`, over processes if there is enough to do, with a progress line.

    Args:
        look: a function that can be sent to other processes.
        items: what it takes.
        workers: how many processes there may be.
        unit: what an item is, for the progress line.
        at_once: items that a process is sent at a time.

    Raises:
        OSError: a store cannot be reached, or processes die again and again.
    """
    workers = min(workers, len(items) // (at_once * _WORTH_A_PROCESS))
    if not workers:
        yield from map(look, items)
        return
    ended: dict[int, list[Answer]] = {}
    begins = range(0, len(items), at_once)
    task = lambda begin: partial(_look_at, look, begin, items[begin : begin + at_once])  # noqa: E731
    following = iter(begins)
    awaited = next(following)
    with Progress(len(items), unit) as advance, local_workers(workers) as pool:
        for begin, answers in run_tasks(begins, task, pool, name=lambda begin: f"{unit} {begin + 1} and those after"):
            advance(len(answers))
            ended[begin] = answers
            while awaited in ended:
                yield from ended.pop(awaited)
                awaited = next(following, len(items))


def _look_at(look: Callable[[Item], Answer], begin: int, items: Sequence[Item]) -> tuple[int, list[Answer]]:
    return begin, [look(item) for item in items]


def probe(roots: Sequence[Root], settings: Settings, path: tuple[int, str]) -> Probed:
    """What one file announces, its length borne out by its packets; `path` is (root, path below it)."""
    root, name = path
    try:
        with roots[root].local([name]) as (file,):
            return decoder().probe(file, settings=settings, measure=True)
    except MediaError as error:
        return error
