"""An output has one writer at a time: a lock names its owner, and is taken over when its owner has died.

    with hold(FolderLockStore(out), LOCK_NAME, job="build") as lock:
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
from preprocess.jobs.lock_store import LOCK_NAME, STALE_S, HeldLock, LockStore, Owner

log = logging.getLogger(__name__)

BEAT_S = 30.0
_POLL_S = 2.0


class Locked(DatasetError):
    """An error that names the other process that is writing, and since when."""


class Lock:
    """A lock that this process holds."""

    def __init__(self, store: LockStore, name: str, owner: Owner) -> None:
        self._store, self._name, self._owner = store, name, owner
        self._lost: HeldLock | None = None
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise Locked if another process has taken the lock over because this one was silent for too long."""
        if self._lost:
            raise Locked(f"{self._store}: taken over by {self._lost.owner_text()}; this run ends, the other goes on")

    def release(self) -> None:
        """Give the lock back."""
        self._end.set()
        self._heart.join()
        held = self._store.read(self._name)
        if held is not None and held.owner.token == self._owner.token:
            self._store.remove(self._name)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            try:
                held = self._store.read(self._name)
                if held is not None and held.owner.token != self._owner.token:
                    self._lost = held
                    return
                self._store.heartbeat(self._name, self._owner)
            except OSError as error:
                log.warning("%s/%s: no sign of life could be given (%s)", self._store, self._name, error)


@contextmanager
def hold(store: LockStore, name: str, *, job: str, excludes: bool = False, wait: bool = False) -> Iterator[Lock]:
    """Yield a lock that is held for as long as the block lasts.

    Args:
        store: the store of the lock.
        name: `LOCK_NAME` for all of a dataset, `LOCK_NAME` and more for a part of it; the two exclude each other.
        job: the name of this job, for the message that others get.
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
            _acquire(store, name, owner)
            try:
                _exclude(store, name, owner, others=store.names() if excludes else [LOCK_NAME])
            except BaseException:
                store.remove(name)
                raise
            break
        except Locked as error:
            if not wait:
                raise
            if not said:
                log.info("%s; waiting for it", error)
            said = True
            time.sleep(_POLL_S)
    for left in store.names():  # of takers that were killed in between
        if left.startswith(f"{name}~") and not left.startswith(f"{name}~{owner.token}"):
            store.remove(left)
    lock = Lock(store, name, owner)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(store: LockStore, name: str, owner: Owner) -> None:
    """Make or take over a lock; raise Locked if its owner lives.

    Only the holder of the lock `<name>~<token of the dead owner>` may replace a dead owner's lock, and only after it
    has seen that it is still there: a process that comes late sees another token and begins anew.
    """
    while not store.create(name, owner):
        held = store.read(name)
        if held is None:
            continue
        if held.alive:
            raise _locked(store, name, held)
        guard = f"{name}~{held.owner.token}"
        _acquire(store, guard, owner)
        try:
            again = store.read(name)
            if again is not None and again.owner.token == held.owner.token:
                store.replace(name, owner)
                log.info("%s: the lock of a dead process is taken over (%s)", store, held.owner_text())
                return
        finally:
            store.remove(guard)


def _exclude(store: LockStore, name: str, owner: Owner, *, others: Iterable[str]) -> None:
    """Raise Locked if another lock is held; remove locks of the dead that the holder of all has no use for."""
    for other in others:
        if other == name or "~" in other or (held := store.read(other)) is None:
            continue
        if held.alive:
            raise _locked(store, other, held)
        if name == LOCK_NAME:
            _acquire(store, other, owner)
            store.remove(other)


def _locked(store: LockStore, name: str, held: HeldLock) -> Locked:
    remedy = "wait for its end, or end it"
    if not held.here:
        remedy += (
            f". Its last sign of life is {held.silent_s:.0f} s old; after {STALE_S:.0f} s it counts as dead and the "
            f"same command takes over (at once if you remove {store}/{name})"
        )
    return Locked(f"{store}: in use by {held.owner_text()}; {remedy}")
