"""One writer at a time: a lock that says whose it is, and that is taken over when its owner has died.

    with hold(FolderBoard(out), LOCK_NAME, job="build") as lock:
        ...
        lock.check()

In a folder, NFS included, creating the lock is one atomic step, and so is taking it over: among several takers one
wins. A URL has no such step in general: there a writer puts its lock, waits, and looks whether it is still its own.
An owner gives a sign of life every half minute; on its own machine it is looked up by its process id instead.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from preprocess.dataset.schema import DatasetError
from preprocess.jobs.lock_store import LOCK_NAME, STALE_S, Board, Found, Owner

log = logging.getLogger(__name__)

BEAT_S = 30.0
_POLL_S = 2.0


class Locked(DatasetError):
    """Somebody else is writing there; names who, where and since when."""


class Lock:
    """A lock that this process holds."""

    def __init__(self, board: Board, name: str, owner: Owner) -> None:
        self._board, self._name, self._owner = board, name, owner
        self._lost: Found | None = None
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raises Locked if another has taken it over: this process was silent for too long."""
        if self._lost:
            raise Locked(f"{self._board}: taken over by {self._lost.told()}; this run ends, the other goes on")

    def release(self) -> None:
        """Gives it back."""
        self._end.set()
        self._heart.join()
        found = self._board.read(self._name)
        if found is not None and found.owner.token == self._owner.token:
            self._board.remove(self._name)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            try:
                found = self._board.read(self._name)
                if found is not None and found.owner.token != self._owner.token:
                    self._lost = found
                    return
                self._board.beat(self._name, self._owner)
            except OSError as error:
                log.warning("%s/%s: no sign of life could be given (%s)", self._board, self._name, error)


@contextmanager
def hold(board: Board, name: str, *, job: str, excludes: bool = False, wait: bool = False) -> Iterator[Lock]:
    """Holds a lock for as long as the block lasts.

    Args:
        board: where.
        name: `LOCK_NAME` for all of a dataset, `LOCK_NAME` and more for a part of it; the two exclude each other.
        job: what this is, for the message that others get.
        excludes: whether no other lock may be held there, not only not that of all.
        wait: whether to wait until it is free.

    Raises:
        Locked: another process holds it.
        OSError: it cannot be written.
    """
    owner = Owner.here(job)
    said = False
    while True:
        try:
            _acquire(board, name, owner)
            try:
                _exclude(board, name, owner, others=board.names() if excludes else [LOCK_NAME])
            except BaseException:
                board.remove(name)
                raise
            break
        except Locked as error:
            if not wait:
                raise
            if not said:
                log.info("%s; waiting for it", error)
            said = True
            time.sleep(_POLL_S)
    for left in board.names():  # of takers that were killed in between
        if left.startswith(f"{name}~") and not left.startswith(f"{name}~{owner.token}"):
            board.remove(left)
    lock = Lock(board, name, owner)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(board: Board, name: str, owner: Owner) -> None:
    """Makes or takes over a lock; raises Locked if its owner lives.

    Only the holder of the lock `<name>~<token of the dead owner>` may replace a dead owner's lock, and only after it
    has seen that it is still there: whoever comes late finds another token and begins anew.
    """
    while not board.create(name, owner):
        found = board.read(name)
        if found is None:
            continue
        if found.alive:
            raise _locked(board, name, found)
        guard = f"{name}~{found.owner.token}"
        _acquire(board, guard, owner)
        try:
            again = board.read(name)
            if again is not None and again.owner.token == found.owner.token:
                board.replace(name, owner)
                log.info("%s: the lock of a dead process is taken over (%s)", board, found.told())
                return
        finally:
            board.remove(guard)


def _exclude(board: Board, name: str, owner: Owner, *, others: Iterable[str]) -> None:
    """Raises Locked if another lock is held; removes those of the dead that the holder of all has no use for."""
    for other in others:
        if other == name or "~" in other or (found := board.read(other)) is None:
            continue
        if found.alive:
            raise _locked(board, other, found)
        if name == LOCK_NAME:
            _acquire(board, other, owner)
            board.remove(other)


def _locked(board: Board, name: str, found: Found) -> Locked:
    remedy = "wait for its end, or end it"
    if not found.here:
        remedy += (
            f". Its last sign of life is {found.silent_s:.0f} s old; after {STALE_S:.0f} s it counts as dead and the "
            f"same command takes over (at once if you remove {board}/{name})"
        )
    return Locked(f"{board}: in use by {found.told()}; {remedy}")
