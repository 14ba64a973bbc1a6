"""Files behind URLs ─► whole local copies in one bounded folder, shared by the processes of a node.

cache = Cache(Path("/scratch"), limit_bytes=100 * 10**9)      # CACHE is /scratch/mae3d-cache
descriptor = cache.open(file)        # a RemoteFile; fetched if it is not there, and what is needed least makes room

    CACHE/OWNER                      the marker; a folder that has none, and holds anything else, is refused
    CACHE/lock                       held while room is made: the sum of all files' sizes never passes the limit
    CACHE/<dataset>/<file>           whole, checked by sha256; its modification time is its last use
    CACHE/<dataset>/<file>.part      being fetched, at its full size from the start; locked by its process

The folder that users name may hold anything: the cache is a folder of its own inside it. There, only regular files of
this user under names that the cache itself gives (`_NAME`) are counted and removed; links are never followed.

All locks are flock's: they end with their process, however it ends. A part that nobody locks is a dead process's, and
the next one that needs room removes it. Files under a shared lock (`hold`) are not evicted. Readers keep descriptors,
so a file that is evicted under them stays readable.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20  # of one request to the store
ROOM_SECONDS = 60.0  # how long a read waits while other processes fetch into all of the cache
PART = ".part"
FOLDER = "mae3d-cache"  # the cache's own folder inside the one that users name
MARKER = "OWNER"
_MARKER_TEXT = "MAE3D's cache of shards behind URLs. MAE3D deletes the files of this folder whenever it needs room.\n"
# A shard's copy begins with its hash, an index file's name ends with it; the folder is a hash of the dataset's URL.
_DATASET = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[0-9a-f]{16}/(?:[0-9a-f]{16}-[^/]+\.tar|(?:index|rows|frames)-[0-9a-f]{16}\.[a-z]+)")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset behind a URL; content and name never part, for its local name holds its hash."""

    url: str
    num_bytes: int
    sha256: str
    local: str  # path below the cache's folder
    read: Callable[[int, int], bytes]  # (start, stop) ─► these bytes; OSError


def default_folder() -> Path:
    """Return $XDG_CACHE_HOME, or mae3d-<user id> in $TMPDIR (else /tmp): both lie on the node."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home)
    return Path(tempfile.gettempdir()) / f"mae3d-{os.getuid()}"


def gigabytes(num_bytes: int) -> str:
    """Format a size as --data.cache_gb takes it, rounded up to 0.00001 GB, from 1 GB on to 0.01 GB."""
    return f"{-(-num_bytes // 10**4) / 1e5:.5f}" if num_bytes < 10**9 else f"{-(-num_bytes // 10**7) / 100:.2f}"


class Cache:
    """A folder of whole files, never larger than its limit; any number of processes and threads use it at once."""

    def __init__(self, folder: Path, *, limit_bytes: int):
        """Make the cache's own folder if it is missing, and remove what killed processes left in it.

        Args:
            folder: the folder that holds the cache's own, and may hold anything else.
            limit_bytes: the largest sum of the files' sizes.

        Raises:
            OSError: the folder cannot be made, is another user's, or holds files that are no cache's.
        """
        self.folder, self.limit_bytes = folder / FOLDER, limit_bytes
        self.bytes_fetched = self.files_fetched = 0
        self._planned: dict[Path, int] = {}
        self._counting = threading.Lock()
        self._make_folder()
        if self.folder.stat().st_uid != os.getuid():  # anybody can make folders in /tmp
            raise PermissionError(
                errno.EPERM, "another user's cache; give a folder of your own as data.cache", str(self.folder)
            )
        with self._locked():
            self._make_room(0)

    def path(self, file: RemoteFile) -> Path:
        """Return the path at which the file is, or will be; ValueError for a name that the cache would never evict."""
        if not _NAME.fullmatch(file.local):
            raise ValueError(f"{file.url}: its dataset.json gives it a name that no dataset of MAE3D has: {file.local}")
        return self.folder / file.local

    def plan(self, files: Sequence[RemoteFile]) -> None:
        """Set the files that this process will need, the next one first: others are evicted before these."""
        self._planned = {self.path(file): turn for turn, file in enumerate(files)}

    def open(self, file: RemoteFile) -> int:
        """Return a descriptor of the complete file, open for reading; the caller closes it.

        Raises:
            OSError: the store failed, the disk is full, or other processes fill the cache.
            DamagedFileError: fetched twice, it has another sha256 than its dataset says.
        """
        while True:
            try:
                descriptor = os.open(self.path(file), os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                self.fetch(file)
                continue
            if os.fstat(descriptor).st_size != file.num_bytes:  # somebody else's doing
                self.path(file).unlink(missing_ok=True)
                os.close(descriptor)
                continue
            now = time.time_ns()  # the kernel's own would be that of its last tick
            os.utime(descriptor, ns=(now, now))
            return descriptor

    def hold(self, file: RemoteFile) -> int:
        """Return a descriptor like `open`; as long as it is open the file stays in the cache."""
        while True:
            descriptor = self.open(file)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # evicted in between

    def fetch(self, file: RemoteFile, *, ahead: bool = False, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Ensure that the file is in the cache.

        Args:
            file: what to fetch.
            ahead: only if there is room without evicting what is planned; does not wait for other processes.
            is_stopped: called between two requests; True gives up.

        Returns:
            Whether the file is there, or with `ahead` being fetched by another.

        Raises:
            OSError: as `open`.
            DamagedFileError: as `open`.
        """
        path, no_room_since = self.path(file), None
        part = path.with_name(path.name + PART)
        while not path.exists():
            with self._locked():
                if path.exists():
                    return True
                is_others = part.exists() and not _remove_unlocked(part)
                has_room = not is_others and self._make_room(file.num_bytes, spare_planned=ahead)
                descriptor = _create_locked(part, file.num_bytes) if has_room else None
            if descriptor is not None:
                try:
                    return self._download(file, descriptor, part, is_stopped=is_stopped)
                finally:
                    part.unlink(missing_ok=True)
                    os.close(descriptor)
            if ahead:
                return is_others
            if is_others:
                _wait_for_owner(part)
                continue
            no_room_since = no_room_since or time.monotonic()
            if file.num_bytes > self.limit_bytes or time.monotonic() - no_room_since > ROOM_SECONDS:
                raise OSError(
                    errno.ENOSPC,
                    f"no room for {file.url} ({file.num_bytes / 1e9:.3g} GB): other files in use fill the cache's "
                    f"{self.limit_bytes / 1e9:.3g} GB; raise data.cache_gb, or give another folder as data.cache",
                    str(self.folder),
                )
            time.sleep(0.05)
        return True

    def _download(self, file: RemoteFile, descriptor: int, part: Path, *, is_stopped: Callable[[], bool]) -> bool:
        for _ in range(2):
            digest = hashlib.sha256()
            for start in range(0, file.num_bytes, CHUNK_BYTES):
                if is_stopped():
                    return False
                data = file.read(start, min(start + CHUNK_BYTES, file.num_bytes))
                with self._counting:
                    self.bytes_fetched += len(data)
                digest.update(data)
                self._write(descriptor, data, start, file)
            if digest.hexdigest() == file.sha256:
                os.fsync(descriptor)  # whole after a power cut, too: nothing checks it again
                with self._locked():  # so that a process that makes room counts it once
                    part.rename(self.path(file))
                with self._counting:
                    self.files_fetched += 1
                return True
            logger.warning("%s: fetched with another sha256 than dataset.json says", file.url)
        raise DamagedFileError(
            f"{file.url}: fetched twice, its sha256 is not the one in dataset.json; copy it there again, "
            "from a folder that `python -m preprocess verify FOLDER --full` finds whole"
        )

    def _write(self, descriptor: int, data: bytes, start: int, file: RemoteFile) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], start + written)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno or errno.EIO)} while {file.url} was fetched into the cache: free space "
                "there, give another folder as data.cache, or lower data.cache_gb",
                str(self.folder),
            ) from error

    def _make_folder(self) -> None:
        """Make the folder and its marker, unless it holds anything that no cache has made."""
        marker = self.folder / MARKER
        if marker.is_file():
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name not in ("lock", MARKER) and not _DATASET.fullmatch(path.name):
                text = (
                    f"no cache of MAE3D because it holds {path.name}; move that, or give another folder as data.cache"
                )
                raise FileExistsError(errno.EEXIST, text, str(self.folder))
        marker.write_text(_MARKER_TEXT, encoding="utf-8")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._make_folder()  # those who tidy up /tmp may have taken it
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _own_files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files, whole or parts, that this cache has made, with their properties."""
        for dataset in self.folder.iterdir():
            if dataset.is_dir() and not dataset.is_symlink():
                for path in dataset.iterdir():
                    with suppress(FileNotFoundError):
                        status = path.lstat()
                        is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
                        if is_own and _NAME.fullmatch(f"{dataset.name}/{path.name.removesuffix(PART)}"):
                            yield path, status

    def _make_room(self, num_bytes: int, *, spare_planned: bool = False) -> bool:
        """Evict until so many more bytes fit, and return whether they do; the caller holds the folder's lock.

        First goes what is not planned, the least recently used first; then, unless spared, what is planned, the last
        needed first.
        """
        excess, victims = num_bytes - self.limit_bytes, []
        for path, status in self._own_files():
            if path.name.endswith(PART) and _remove_unlocked(path):
                continue  # a dead process's
            if path.exists():  # else a part that its process has just given up
                excess += status.st_size
                turn = self._planned.get(path)
                if not path.name.endswith(PART) and not (spare_planned and turn is not None):
                    victims.append((turn is not None, -(turn or 0), status.st_mtime_ns, status.st_size, path))
        if excess > sum(size for *_, size, _ in victims):
            return False
        for *_, size, path in sorted(victims):
            if excess <= 0:
                break
            if _remove_unlocked(path):
                excess -= size
        return excess <= 0


class DamagedFileError(ValueError):
    """A file that its store gives with other bytes than its dataset says; another try would not help."""


def _create_locked(part: Path, num_bytes: int) -> int:
    """Create a new part of full size, so that all processes count it, under this process's lock."""
    part.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def _wait_for_owner(part: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def _remove_unlocked(path: Path) -> bool:
    """Remove a file that no process has locked; return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
