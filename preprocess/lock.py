"""One writer at a time: a lock that says whose it is, and that is taken over when its owner has died.

    with hold(FolderBoard(out), ".lock", job="build"):         # or UrlBoard(Storage("s3://bucket/shards"))
        ...

In a folder, NFS included, creating the lock is one atomic step, and so is taking it over: among several takers one
wins. A URL has no such step in general: there a writer puts its lock, waits, and looks whether it is still its own.
An owner shows every half minute that it lives. On its own machine it is asked for by its process id instead.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Protocol

from preprocess.files import TEMPORARY_PREFIX
from preprocess.storage import Storage
from preprocess.tables import DatasetError

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"  # all locks of a dataset begin so
BEAT_S = 30.0
STALE_S = 300.0  # of silence, after which an owner on another machine counts as dead
SETTLE_S = 1.0  # how long a lock behind a URL is to stand before it is believed
_POLL_S = 2.0


class Locked(DatasetError):
    """Somebody else is writing there; names who, where and since when."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    job: str
    host: str
    pid: int
    since: str
    started: str = ""  # when the process began: its id may be another's later
    machine: str = ""  # within which process ids can be looked up
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls, job: str) -> "Owner":
        """This process."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(job, socket.gethostname(), os.getpid(), since, _started(os.getpid()), _machine())


@dataclass(frozen=True)
class Found:
    """A lock that is there, and how long ago its owner gave a sign of life."""

    owner: Owner
    silent_s: float

    @property
    def alive(self) -> bool:
        """Whether the owner is still at work, as far as can be known from here."""
        if self.owner.machine and self.owner.machine == _machine():
            return _started(self.owner.pid) == self.owner.started
        return self.silent_s < STALE_S

    def told(self) -> str:
        """The owner in words."""
        owner = self.owner
        return f"{owner.job} on {owner.host}, pid {owner.pid}, since {owner.since}"


class Board(Protocol):
    """Where locks are kept."""

    def names(self) -> list[str]:
        """Of all locks there."""

    def read(self, name: str) -> Found | None:
        """The lock, or None."""

    def create(self, name: str, owner: Owner) -> bool:
        """Makes the lock unless there is one; whether it did."""

    def replace(self, name: str, owner: Owner) -> None:
        """Makes the lock this owner's."""

    def beat(self, name: str, owner: Owner) -> None:
        """Gives a sign of life."""

    def remove(self, name: str) -> None:
        """Removes the lock if it is there."""


@dataclass(frozen=True)
class FolderBoard:
    """Locks as files in a folder; their time of modification is the sign of life."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        return [path.name for path in self.folder.glob(f"{LOCK_NAME}*")]

    def read(self, name: str) -> Found | None:
        path = self.folder / name
        try:
            text, modified = path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return None
        owner = _parsed(text)
        silent = 0.0 if owner.machine == _machine() else self._now() - modified
        return Found(owner, silent)

    def create(self, name: str, owner: Owner) -> bool:
        aside = self._written(name, owner)
        try:
            os.link(aside, self.folder / name)
        except FileExistsError:
            return aside.stat().st_nlink > 1  # NFS: the first answer was lost, this is that of the second try
        except PermissionError:  # a file system without links: its owner may be read before it is written
            with contextlib.suppress(FileExistsError), (self.folder / name).open("x") as file:
                file.write(aside.read_text())
                return True
            return False
        except FileNotFoundError:  # swept by one who has got the lock
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def replace(self, name: str, owner: Owner) -> None:
        self._written(name, owner).replace(self.folder / name)

    def beat(self, name: str, owner: Owner) -> None:
        os.utime(self.folder / name)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _written(self, name: str, owner: Owner) -> Path:
        aside = self.folder / f"{TEMPORARY_PREFIX}{owner.token}{name}"
        aside.write_text(json.dumps(asdict(owner)))
        return aside

    def _now(self) -> float:
        """The time of the machine that keeps the files, which may differ from this one's."""
        aside = self.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-clock"
        try:
            aside.touch()
            return aside.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class UrlBoard:
    """Locks as objects below a URL, written again as the sign of life.

    Two writers that begin within the same second may both believe that they have it until the next sign of life.
    """

    storage: Storage

    def __str__(self) -> str:
        return self.storage.url

    def names(self) -> list[str]:
        return [name for name in self.storage.sizes() if name.startswith(LOCK_NAME)]

    def read(self, name: str) -> Found | None:
        try:
            text = self.storage.read(name).decode(errors="replace")
        except FileNotFoundError:
            return None
        try:
            beat = float(json.loads(text)["beat"])
        except (ValueError, TypeError, KeyError):
            beat = 0.0
        return Found(_parsed(text), time.time() - beat)

    def create(self, name: str, owner: Owner) -> bool:
        if self.read(name) is not None:
            return False
        self.replace(name, owner)
        found = self.read(name)
        return found is not None and found.owner.token == owner.token

    def replace(self, name: str, owner: Owner) -> None:
        self.beat(name, owner)
        time.sleep(SETTLE_S)

    def beat(self, name: str, owner: Owner) -> None:
        self.storage.write(name, json.dumps({**asdict(owner), "beat": time.time()}).encode())

    def remove(self, name: str) -> None:
        self.storage.remove(name)


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
    if found.owner.machine != _machine():
        remedy += (
            f". Its last sign of life is {found.silent_s:.0f} s old; after {STALE_S:.0f} s it counts as dead and the "
            f"same command takes over (at once if you remove {board}/{name})"
        )
    return Locked(f"{board}: in use by {found.told()}; {remedy}")


def _parsed(text: str) -> Owner:
    try:
        fields = json.loads(text)
        fields.pop("beat", None)
        return Owner(**fields)
    except (ValueError, TypeError, AttributeError):  # only where a file system has no links, and for a moment
        return Owner("another run", "a machine", 0, "an unknown time", token="unreadable")


@cache
def _machine() -> str:
    """Within what process ids mean the same: a boot of a machine, and a namespace on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" if it is not there, or dead and not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
