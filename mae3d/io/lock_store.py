"""Locks are kept as files in a folder or as objects below a URL: name ─► owner and time of the last sign of life.

    store = FolderLockStore(out)                                        # or UrlLockStore(Storage("s3://bucket/shards"))
    store.create(".lock", Owner.here("build"))                      # False: there is one
    store.read(".lock").alive                                       # whether its owner is still at work

`mae3d.io.lock` decides who gets them.
"""

import contextlib
import errno
import json
import logging
import os
import re
import socket
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Protocol

from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.storage import Storage

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"  # all locks begin so
# Of a whole, a part, one file; behind it the guards of a takeover, with the token of the dead owner.
_NAME = re.compile(re.escape(LOCK_NAME) + r"(?:\.(?:plan|slice-\d+-of-\d+)|-.+?)?(?:~(?:[0-9a-f]{32}|unreadable))*")
STALE_S = 300.0  # seconds of silence after which an owner on another machine counts as dead
# Errors of a file system that has no links: FAT, many that are mounted through FUSE, CIFS, folders with quotas.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV}
SETTLE_S = 1.0  # seconds that a lock behind a URL must stand before it is believed
SETTLE_BLIND_S = 5.0  # the same in a store that creates what is there already


@dataclass(frozen=True)
class Owner:
    """The holder of a lock."""

    job: str
    host: str
    pid: int
    since: str
    started: str = ""  # when the process began: its id may be another's later
    machine: str = ""  # within which process ids can be looked up
    ending: bool = False  # it stops as soon as it can
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls, job: str) -> "Owner":
        """Return this process as the owner."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(job, socket.gethostname(), os.getpid(), since, _started(os.getpid()), _machine())


@dataclass(frozen=True)
class HeldLock:
    """A lock that exists, and the seconds since its owner gave a sign of life."""

    owner: Owner
    silent_s: float

    @property
    def here(self) -> bool:
        """Return whether the owner can be looked up by its process id."""
        return bool(self.owner.machine) and self.owner.machine == _machine()

    @property
    def alive(self) -> bool:
        """Return whether the owner is still at work, as far as can be known from here."""
        if self.here:
            return _started(self.owner.pid) == self.owner.started
        return self.silent_s < STALE_S

    def owner_text(self) -> str:
        """Return the owner in words."""
        owner = self.owner
        return f"{owner.job} on {owner.host}, pid {owner.pid}, since {owner.since}"


class LockStore(Protocol):
    """A place that keeps locks."""

    def names(self) -> list[str]:
        """Return the names of all locks."""

    def read(self, name: str) -> HeldLock | None:
        """Return the lock, or None."""

    def create(self, name: str, owner: Owner) -> bool:
        """Make the lock unless it exists; return whether it was made."""

    def replace(self, name: str, owner: Owner) -> None:
        """Make the lock this owner's."""

    def heartbeat(self, name: str, owner: Owner) -> None:
        """Give a sign of life."""

    def remove(self, name: str) -> None:
        """Remove the lock if it exists."""


@dataclass(frozen=True)
class FolderLockStore:
    """Locks as files in a folder; their time of modification is the sign of life."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        return [path.name for path in self.folder.glob(f"{LOCK_NAME}*") if _NAME.fullmatch(path.name)]

    def read(self, name: str) -> HeldLock | None:
        path = self.folder / name
        try:
            with path.open(encoding="utf-8", errors="replace") as file:  # both of one file, though another replace it
                text, modified = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            text, modified = "a folder", 0.0
        owner = _parsed(text, where=path)
        silent = 0.0 if owner.machine == _machine() else self._now() - modified
        return HeldLock(owner, silent)

    def create(self, name: str, owner: Owner) -> bool:
        aside = self._written(name, owner)
        try:
            os.link(aside, self.folder / name)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # swept by the one who has got the lock
                return aside.stat().st_nlink > 1  # NFS: the first answer was lost, this is that of the second try
            return False
        except FileNotFoundError:  # swept as well
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Its owner may be read before it is written.
            with contextlib.suppress(FileExistsError), (self.folder / name).open("x", encoding="utf-8") as file:
                file.write(_as_text(owner))
                return True
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def replace(self, name: str, owner: Owner) -> None:
        aside = self._written(name, owner)
        try:
            aside.replace(self.folder / name)
        finally:
            aside.unlink(missing_ok=True)

    def heartbeat(self, name: str, owner: Owner) -> None:
        os.utime(self.folder / name)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _written(self, name: str, owner: Owner) -> Path:
        aside = self.folder / f"{TEMPORARY_PREFIX}{owner.token}{name}"
        try:
            aside.write_text(_as_text(owner), encoding="utf-8")
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        return aside

    def _now(self) -> float:
        """Return the time of the machine that keeps the files, which may differ from this one's."""
        aside = self.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-clock"
        try:
            aside.touch()
            return aside.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            aside.unlink(missing_ok=True)


class ObservedLocks(FolderLockStore):
    """The locks of a folder that is only looked at: nothing is written there, so ages are by this machine's clock."""

    def _now(self) -> float:
        return time.time()


@dataclass(frozen=True)
class UrlLockStore:
    """Locks as objects below a URL, written again as the sign of life.

    S3's and Google's stores create an object in one step. In others two writers of which one takes longer to write its
    lock than it must stand may both believe that they have it until the next sign of life.
    """

    storage: Storage

    def __str__(self) -> str:
        return self.storage.url

    def names(self) -> list[str]:
        return [name for name in self.storage.sizes() if _NAME.fullmatch(name)]

    def read(self, name: str) -> HeldLock | None:
        try:
            text = self.storage.read(name).decode(errors="replace")
        except FileNotFoundError:
            return None
        try:
            beat = float(json.loads(text)["beat"])
        except (ValueError, TypeError, KeyError):
            beat = 0.0
        return HeldLock(_parsed(text, where=f"{self}/{name}"), time.time() - beat)

    def create(self, name: str, owner: Owner) -> bool:
        if self.read(name) is not None:
            return False
        if self.storage.create(name, self._as_bytes(owner)):
            is_blind = self.storage.create(name, self._as_bytes(owner))  # though it has just been made
            if is_blind:
                log.info("%s: writes over what is there in spite of If-None-Match; locks take longer", self)
            time.sleep(SETTLE_BLIND_S if is_blind else SETTLE_S)
        # Also after a refusal, which may be that of a second try whose first one was answered late.
        held = self.read(name)
        return held is not None and held.owner.token == owner.token

    def replace(self, name: str, owner: Owner) -> None:
        self.heartbeat(name, owner)
        time.sleep(SETTLE_S)

    def heartbeat(self, name: str, owner: Owner) -> None:
        self.storage.write(name, self._as_bytes(owner))

    def remove(self, name: str) -> None:
        self.storage.remove(name)

    def _as_bytes(self, owner: Owner) -> bytes:
        return json.dumps({**asdict(owner), "beat": time.time()}).encode()


def _as_text(owner: Owner) -> str:
    return json.dumps(asdict(owner))


def _parsed(text: str, *, where: Path | str) -> Owner:
    """Return the owner that a lock names; ValueError for a file of another program, which is never taken over."""
    try:
        fields = json.loads(text)
        fields.pop("beat", None)
        return Owner(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        begin = '{"job"'
        if not begin.startswith(text[: len(begin)]):
            raise ValueError(f"{where}: not a lock of MAE3D; move it away, or give another folder") from error
        # begun and not written yet: only where a file system has no links, and for a moment
        return Owner("another run", "a machine", 0, "an unknown time", token="unreadable")


@cache
def _machine() -> str:
    """Return the scope of a process id: a boot of a machine, and a namespace on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return the start of a process in the kernel's ticks; "" if it is gone, or dead and not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
