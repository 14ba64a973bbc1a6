"""The order's shards, before they are needed ─► the node's cache; a cache too small for the order is refused.

check_cache(corpus, order, world=8, local_world=4, steps=4)
prefetcher = Prefetcher(corpus, order, nodes_positions(order, rank=5, world=8, local_world=4), steps=4, start=(0, 0))
prefetcher.advance(epoch=0, step=17)      # at every step
prefetcher.close()
"""

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

from pipelines.samples.corpus import Corpus
from pipelines.sampling.order import Order, ShardUse
from pipelines.storage.cache import DamagedFileError, RemoteFile, gigabytes

logger = logging.getLogger(__name__)

THREADS = 2  # downloads at a time, a process
CLOSE_SECONDS = 2.0  # that a fetch which hangs holds up the end
RANKS_APART = 2  # steps by which the ranks of a node may be apart: their collectives hold them together


def nodes_positions(order: Order, *, rank: int, world: int, local_world: int) -> tuple[int, int]:
    """Return the positions within a step, half-open, that all ranks on a rank's node take."""
    first = rank // local_world * local_world
    share = order.global_batch // world
    return first * share, min(first + local_world, world) * share


def steps_read_at_once(*, prefetch: int, accumulation: int) -> int:
    """Return the number of steps whose shards a node's ranks read at one moment: prefetch and the ranks' distance."""
    return 1 + -(-prefetch // accumulation) + RANKS_APART


def check_cache(corpus: Corpus, order: Order, *, world: int, local_world: int, steps: int) -> None:
    """Refuse a cache in which the order would fetch shards again and again; the same verdict on every rank.

    Args:
        corpus: with datasets behind URLs, or without.
        order: of the samples.
        world: processes.
        local_world: processes of a node.
        steps: that are read at one moment (`steps_read_at_once`).

    Raises:
        ValueError: the cache is too small; the message names the size that is needed.
    """
    if corpus.cache is None:
        return
    nodes = [
        nodes_positions(order, rank=rank, world=world, local_world=local_world) for rank in range(0, world, local_world)
    ]
    count = max(order.shards_at_once(start=start, stop=stop, steps=steps) for start, stop in nodes)
    files = [corpus.remote_file(int(shard)) for shard in np.unique(order.shard)]
    largest = sorted((file.num_bytes for file in files if file), reverse=True)[:count]
    needed = sum(largest) + corpus.index_bytes
    if needed > corpus.cache.limit_bytes:
        remedy = ", or lower data.mix_shards" if order.name == "shards" else ", or use --data.order shards"
        raise ValueError(
            f"data.cache_gb={corpus.cache.limit_bytes / 1e9:g} is too small for the order `{order.name}`: a node needs "
            f"{len(largest)} shards at once, with the index {needed / 1e9:.3g} GB; give at least "
            f"--data.cache_gb {gigabytes(needed)}{remedy}"
        )


@dataclass(eq=False)
class _Need:
    file: RemoteFile
    last: int  # step after which it is not needed, counted through the epochs
    is_tried: bool = False


class Prefetcher:
    """Threads that fetch the shards of a node's next steps, in order of first need, as far as the cache has room.

    Every rank of a node plans for the whole node, so that all agree on what is needed first and what may go; a shard
    is fetched by one of them. A failure here is logged once and left to the read, which tries again.
    """

    def __init__(self, corpus: Corpus, order: Order, positions: tuple[int, int], *, steps: int, start: tuple[int, int]):
        """Start fetching.

        Args:
            corpus: with a cache.
            order: of the samples.
            positions: within a step, of the node (`nodes_positions`).
            steps: that may be read at one moment (`steps_read_at_once`): a shard is kept that long.
            start: the first step, as (epoch, step of the epoch).
        """
        assert corpus.cache is not None
        self._corpus, self._cache, self._keep = corpus, corpus.cache, steps - 1
        self._steps_per_epoch = order.steps_per_epoch
        self._uses = order.shards_ahead(epoch=start[0], step=start[1], start=positions[0], stop=positions[1])
        self._next_use: ShardUse | None = None
        self._step = self._count(start)
        self._room = self._cache.limit_bytes - corpus.index_bytes
        self._needs: dict[str, _Need] = {}  # by URL, in order of first need
        self._changed, self._extending, self._stopped = threading.Condition(), threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, name="fetch-ahead", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def advance(self, *, epoch: int, step: int) -> None:
        """Report that this step's reads begin: files needed only well before it may now be evicted."""
        with self._changed:
            self._step = self._count((epoch, step))
            for url in [url for url, need in self._needs.items() if need.last + self._keep < self._step]:
                del self._needs[url]
            self._publish()

    def close(self) -> None:
        """Stop fetching; a request that hangs is left to its thread, which ends with it."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        self._cache.plan(())

    def _run(self) -> None:
        while (need := self._choose()) is not None:
            try:
                is_there = self._cache.fetch(need.file, ahead=True, is_stopped=self._stopped.is_set)
            except (OSError, DamagedFileError) as error:
                logger.warning("%s: not fetched ahead: %s", need.file.url, error)
                is_there = True
            if not is_there:
                with self._changed:
                    need.is_tried = False
                    self._changed.wait(1)

    def _choose(self) -> _Need | None:
        """Return the next file to fetch, as soon as there is one; None at the end."""
        while not self._stopped.is_set():
            self._extend()
            with self._changed:
                need = next((need for need in self._needs.values() if not need.is_tried), None)
                if need is not None:
                    need.is_tried = True
                    return need
                self._changed.wait(1)
        return None

    def _extend(self) -> None:
        """Add needs as far as the cache has room for all of them at once, and up to the next epoch's first steps.

        No further, for the run may end before: each node would have filled its cache for nothing.
        """
        with self._extending:  # not `_changed`: to shuffle an epoch of many samples takes a while
            while not self._stopped.is_set():
                if self._next_use is None:
                    self._next_use = next(self._uses)
                use = self._next_use
                file = self._corpus.remote_file(use.shard)
                with self._changed:
                    if file is not None and not self._add(file, use):
                        return
                self._next_use = None

    def _add(self, file: RemoteFile, use: ShardUse) -> bool:
        epochs_ahead = use.first[0] - max(self._step - self._keep, 0) // self._steps_per_epoch
        if epochs_ahead > 1 or (epochs_ahead == 1 and use.first[1] > self._keep):
            return False
        known = self._needs.get(file.url)
        if known is not None:
            known.last = self._count(use.last)
            return True
        if sum(need.file.num_bytes for need in self._needs.values()) + file.num_bytes > self._room:
            return False
        if self._count(use.last) + self._keep >= self._step:
            self._needs[file.url] = _Need(file, self._count(use.last))
            self._publish()
        return True

    def _publish(self) -> None:
        self._cache.plan([need.file for need in self._needs.values()])
        self._changed.notify_all()

    def _count(self, step: tuple[int, int]) -> int:
        return step[0] * self._steps_per_epoch + step[1]
