"""An output has one writer at a time: a lock names its owner, and is taken over when its owner has died.

    with hold(FolderLockStore(out), LOCK_NAME, job="build") as lock:
        ...
        lock.check()
        lock.end_soon()                                  # who starts now waits for the end instead of being refused

In a folder, NFS included, creating the lock is one atomic step, and so is taking it over: among several takers one
wins. Behind a URL, S3's and Google's stores have such a step (a conditional write); in others a writer puts its lock,
waits, and looks whether it is still its own.
An owner gives a sign of life every half minute; on its own machine it is looked up by its process id instead.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mae3d.io.lock_store import LOCK_NAME, STALE_S, HeldLock, LockStore, Owner

log = logging.getLogger(__name__)

BEAT_S = 30.0
ENDING_S = 15 * 60.0  # that a start waits for an owner that is stopping: a last checkpoint, and its copy
_POLL_S = 2.0
_LEAVE_S = 10.0  # that the end of a job waits for a sign of life on its way


class Locked(ValueError):
    """An error that names the other process that is writing, and since when.

    Attributes:
        held: the other's lock.
    """

    def __init__(self, message: str, held: HeldLock):
        super().__init__(message)
        self.held = held


class Lock:
    """A lock that this process holds."""

    def __init__(self, store: LockStore, name: str, owner: Owner) -> None:
        self._store, self._name, self._owner = store, name, owner
        self._lost: HeldLock | None = None
        self._is_over = self._is_ending = self._warned = False
        self._wake = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise Locked if another process has taken the lock over because this one was silent for too long."""
        if self._lost:
            raise Locked(
                f"{self._store}: taken over by {self._lost.owner_text()}; this run ends, the other goes on", self._lost
            )

    def end_soon(self) -> None:
        """Let others know that the lock will be given back before long; a handler of signals may call it."""
        if self._is_ending:  # a handler must not wait for the call that it interrupts
            return
        self._is_ending = True
        self._wake.set()

    def release(self) -> None:
        """Give the lock back."""
        self._is_over = True
        self._wake.set()
        self._heart.join(_LEAVE_S)
        try:
            held = self._store.read(self._name)
            if held is not None and held.owner.token == self._owner.token:
                self._store.remove(self._name)
        except OSError as error:  # it stays, and is the lock of a dead process from now on
            log.warning("%s/%s: the lock could not be removed (%s)", self._store, self._name, error)

    def _beat(self) -> None:
        while True:
            self._wake.wait(BEAT_S)
            self._wake.clear()
            if self._is_over:
                return
            try:
                held = self._store.read(self._name)
                if held is not None and held.owner.token != self._owner.token:
                    self._lost = held
                    return
                if self._is_ending and not self._owner.ending:
                    self._owner = replace(self._owner, ending=True)
                    self._store.replace(self._name, self._owner)
                else:
                    self._store.heartbeat(self._name, self._owner)
            except OSError as error:
                if not self._warned:
                    log.warning("%s/%s: no sign of life could be given (%s)", self._store, self._name, error)
                self._warned = True


class Succession:
    """The patience of one start with the owners of a lock that it meets.

    It waits for one that is stopping, and for one on another machine, of which it cannot know yet whether it lives:
    until that one's next sign of life, or until it has been silent for so long that it counts as dead.
    """

    def __init__(self) -> None:
        self._seen: HeldLock | None = None
        self._since = time.monotonic()

    def wait(self, held: HeldLock) -> str:
        """Return why to wait for the owner and try again, in words; "" if it lives and goes on."""
        before, self._seen = self._seen, held
        if before is None or (before.owner.token, before.owner.ending) != (held.owner.token, held.owner.ending):
            before, self._since = None, time.monotonic()
        if held.owner.ending:
            waited = time.monotonic() - self._since
            return f"it is stopping: waiting for that, up to {ENDING_S / 60:.0f} min" if waited < ENDING_S else ""
        if held.here or (before is not None and held.silent_s < before.silent_s):
            return ""
        return (
            f"its last sign of life is {held.silent_s:.0f} s old: waiting for the next one, or until it counts as dead "
            f"at {STALE_S:.0f} s"
        )


def take(store: LockStore, name: str, *, job: str, excludes: bool = False) -> Lock:
    """Return a lock that is held until its `release`; the arguments are those of `hold`."""
    owner = Owner.here(job)
    _acquire(store, name, owner)
    try:
        if excludes:
            _exclude(store, name, owner, others=[other for other in store.names() if _is_part(other)])
        elif _is_part(name):
            _exclude(store, name, owner, others=[LOCK_NAME])
    except BaseException:
        store.remove(name)
        raise
    for left in store.names():  # of takers that were killed in between
        if left.startswith(f"{name}~") and not left.startswith(f"{name}~{owner.token}"):
            store.remove(left)
    return Lock(store, name, owner)


@contextmanager
def hold(store: LockStore, name: str, *, job: str, excludes: bool = False, wait: bool = False) -> Iterator[Lock]:
    """Yield a lock that is held for as long as the block lasts.

    Args:
        store: the store of the lock.
        name: `LOCK_NAME` for all of a folder, `LOCK_NAME.…` for a part of it: the two exclude each other. `LOCK_NAME-…`
            is on its own: for something in the folder that its other writers do not touch.
        job: the name of this job, for the message that others get.
        excludes: whether no part of the folder may be held, for `LOCK_NAME`.
        wait: whether to wait until it is free.

    Raises:
        Locked: another process holds it.
        OSError: it cannot be written.
    """
    said = False
    while True:
        try:
            lock = take(store, name, job=job, excludes=excludes)
            break
        except Locked as error:
            if not wait:
                raise
            if not said:
                log.info("%s; waiting for it", error)
            said = True
            time.sleep(_POLL_S)
    try:
        yield lock
    finally:
        lock.release()


def _is_part(name: str) -> bool:
    return name.startswith(f"{LOCK_NAME}.")


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
    return Locked(f"{store}: in use by {held.owner_text()}; {remedy}", held)
