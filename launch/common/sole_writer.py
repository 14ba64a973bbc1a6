"""A folder that a command writes, and the URL that it is mirrored to ─► this start is their only writer, on all ranks.

with sole_writer(Path("out/run"), world, job="training", remote=config.run.remote) as ownership:
    ownership.check()            # raises if another machine has taken it over, because this one seemed dead
    ownership.end_soon()         # who starts now waits for the end

Rank 0 holds the locks (mae3d/io/lock.py), before anything is written, and all ranks hear of it or raise its error.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mae3d.io.lock import Lock, Locked, Succession, take
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, LockStore, UrlLockStore

if TYPE_CHECKING:
    from mae3d.distributed import World

logger = logging.getLogger(__name__)

POLL_S = 1.0


@dataclass(frozen=True)
class Ownership:
    """The locks of what this start alone writes; ranks but the first hold none."""

    locks: list[Lock] = field(default_factory=list)

    def check(self) -> None:
        """Raise Locked if another process has taken a lock over."""
        for lock in self.locks:
            lock.check()

    def end_soon(self) -> None:
        """Let those who start now wait for the end."""
        for lock in self.locks:
            lock.end_soon()


@contextmanager
def sole_writer(
    folder: Path, world: "World | None" = None, *, job: str, what: str = "", remote: str = ""
) -> Iterator[Ownership]:
    """Yield to the only writer of a folder; all ranks call it.

    The folder is made for its lock, and removed again if nothing else has come into it. A start waits for a writer that
    is stopping, and for one on another machine until that lives or counts as dead.

    Args:
        folder: it need not exist.
        world: all ranks; None for a command that has one process.
        job: its name, for the message that others get.
        what: of the folder is written, a file's name or the like; "" for all of it.
        remote: a URL that the folder is copied to; "" for none. If it cannot be reached, the command goes on without.

    Raises:
        ValueError: another process writes there (Locked), or there is no such kind of URL.
        OSError: the folder cannot be written.
    """
    ownership, made = Ownership(), []
    is_first = world is None or world.is_first
    name = f"{LOCK_NAME}-{what}" if what else LOCK_NAME
    try:
        problem: Exception | None = None
        if is_first:
            try:
                made = _make(folder)
            except OSError as error:
                problem = OSError(error.errno, error.strerror, str(error.filename))
        _raise_together(problem, world)
        stores: list[LockStore] = [FolderLockStore(folder)]
        if remote:
            from mae3d.io.storage import Storage

            stores.append(UrlLockStore(Storage(remote)))
        for store in stores:
            _join(ownership, store, name, world, job=job, is_first=is_first)
        yield ownership
    finally:
        for lock in reversed(ownership.locks):
            lock.release()
        for path in made:
            with suppress(OSError):  # it holds something by now
                path.rmdir()


def _join(
    ownership: Ownership, store: LockStore, name: str, world: "World | None", *, job: str, is_first: bool
) -> None:
    """Take a lock on rank 0, after a wait if need be, during which all ranks meet every second."""
    succession, said = Succession(), ("", False)
    while True:
        waits = False
        problem: Exception | None = None
        if is_first:
            try:
                ownership.locks.append(take(store, name, job=job))
            except Locked as error:
                reason = succession.wait(error.held)
                waits, problem = bool(reason), None if reason else ValueError(str(error))
                owner = error.held.owner
                if reason and (owner.token, owner.ending) != said:
                    said = owner.token, owner.ending
                    print(f"{store}: in use by {error.held.owner_text()}; {reason}", flush=True)
            except ValueError as error:
                problem = ValueError(str(error))
            except OSError as error:
                if isinstance(store, UrlLockStore):
                    logger.warning("%s: no lock can be kept there (%s); the run goes on without", store, error.strerror)
                else:
                    problem = OSError(error.errno, error.strerror, str(error.filename))
        _raise_together(problem, world)
        if not (world.share(waits) if world else waits):
            return
        if is_first:
            time.sleep(POLL_S)


def _make(folder: Path) -> list[Path]:
    """Make a folder; return what was missing of it and above it, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _raise_together(problem: Exception | None, world: "World | None") -> None:
    """Raise rank 0's error on all ranks."""
    if problem := world.share(problem) if world else problem:
        raise problem
