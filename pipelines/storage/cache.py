"""Files behind URLs ─► whole local copies in one bounded folder, shared by the processes of a node.

cache = Cache(Path("/scratch"), limit_bytes=100 * 10**9)      # CACHE is /scratch/mae3d-cache-<user id>
descriptor = cache.open(file)        # a RemoteFile; fetched if it is not there, and what is needed least makes room

    CACHE/CACHEDIR.TAG               the marker: what lies here was fetched and may go (backups leave it out)
    CACHE/lock                       held while room is made: the sum of all files' sizes never passes the limit
    CACHE/<tag>/<file>               whole, checked by sha256; its access time is its last use
    CACHE/<tag>/<file>.<bytes>.part  being fetched, at its full size from the start; locked by its process

All locks are flock's: they end with their process, however it ends. A part that nobody locks is a dead process's, and
the next one that needs room removes it. Files under a shared lock (`hold`) are not evicted. Readers keep descriptors,
so a file that is evicted under them stays readable.

Only what is provably the cache's own is counted or removed: a regular file of this user, in a folder with the marker,
under a name as above, and with the modification time that `_signed` gives it, which any other writer would change
(a part: with its size). Everything else stays, and a fetch that finds it in its way fails.
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
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mae3d.io.files import TEMPORARY_PREFIX, write_text

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20  # of one request to the store
ROOM_SECONDS = 60.0  # how long a read waits while other processes fetch into all of the cache
FOLDER = f"mae3d-cache-{os.getuid()}"  # inside the folder that users name, which may hold anything
MARKER, LOCK = "CACHEDIR.TAG", "lock"
_MARK = """Signature: 8a477f597d28d172789f06886806bc55
# This is a cache of shards that mae3d fetched (layout 2). It may be deleted when no program uses it.
"""  # the first line is that of https://bford.info/cachedir/
_TAG = re.compile(r"[0-9a-f]{16}")
_NAME = r"(?:[0-9a-f]{16}-shard-\d{5,}\.tar|(?:index|rows|frames)-[0-9a-f]{16}\.(?:parquet|arrow))"
_FILE = re.compile(_NAME)
_PART = re.compile(_NAME + r"\.(\d+)\.part")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither through a link nor waiting for a pipe


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset behind a URL; content and name never part, for its local name holds its hash."""

    url: str
    num_bytes: int
    sha256: str
    local: str  # <tag>/<file> below the cache's folder
    read: Callable[[int, int], bytes]  # (start, stop) ─► these bytes; OSError


def default_folder() -> Path:
    """Return $XDG_CACHE_HOME, or $TMPDIR (else /tmp): both lie on the node."""
    return Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir())


def gigabytes(num_bytes: int) -> str:
    """Format a size as --data.cache_gb takes it, rounded up to 0.00001 GB, from 1 GB on to 0.01 GB."""
    return f"{-(-num_bytes // 10**4) / 1e5:.5f}" if num_bytes < 10**9 else f"{-(-num_bytes // 10**7) / 100:.2f}"


class Cache:
    """A folder of whole files, never larger than its limit; any number of processes and threads use it at once."""

    def __init__(self, folder: Path, *, limit_bytes: int):
        """Make the cache's own folder if it is missing, and remove what killed processes left in it.

        Args:
            folder: the folder that holds the cache's own, and may hold anything else; or the cache's own.
            limit_bytes: the largest sum of the files' sizes.

        Raises:
            OSError: the folder cannot be made, is another user's, or holds other things than a cache.
        """
        self.folder = folder if _marker(folder) == _MARK else folder / FOLDER
        self.limit_bytes = limit_bytes
        if not self.folder.exists() and (left := _earlier_caches(folder)):  # said once, when the new cache begins
            logger.warning(
                "%s: of an earlier version and not used any more: remove it to have its space back (%d such folders)",
                left[0],
                len(left),
            )
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
        """Return the path at which the file is, or will be; ValueError if that is not a file of a cache."""
        tag, _, name = file.local.partition("/")
        if not (_TAG.fullmatch(tag) and _FILE.fullmatch(name)):
            raise ValueError(f"{file.url}: its dataset.json gives it a name that no dataset of MAE3D has: {name}")
        return self.folder / tag / name

    def plan(self, files: Sequence[RemoteFile]) -> None:
        """Set the files that this process will need, the next one first: others are evicted before these."""
        self._planned = {self.path(file): turn for turn, file in enumerate(files)}

    def open(self, file: RemoteFile) -> int:
        """Return a descriptor of the complete file, open for reading; the caller closes it.

        Raises:
            OSError: the store failed, the disk is full, other processes fill the cache, or another file lies there.
            DamagedFileError: fetched twice, it has another sha256 than its dataset says.
        """
        path = self.path(file)
        while True:
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                self.fetch(file)
                continue
            except OSError as error:  # a link, or nothing that this user may read
                raise _in_the_way(path) from error
            status = os.fstat(descriptor)
            if not _is_ours(path.name, status) or status.st_size != file.num_bytes:
                os.close(descriptor)
                raise _in_the_way(path)
            _sign(descriptor, path.name)
            return descriptor

    def hold(self, file: RemoteFile) -> int:
        """Return a descriptor like `open`; as long as it is open the file stays in the cache."""
        while True:
            descriptor = self.open(file)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # evicted in between

    def discard(self, file: RemoteFile) -> None:
        """Remove a file that turned out to be damaged, so that it is fetched again; those who hold it keep reading."""
        path = self.path(file)
        with suppress(FileNotFoundError):
            if _is_ours(path.name, path.lstat()):
                path.unlink()

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
        part = path.with_name(f"{path.name}.{file.num_bytes}.part")
        while not os.path.lexists(path):
            with self._locked():
                if os.path.lexists(path):
                    return True
                is_others = os.path.lexists(part) and not _remove_unlocked(part)
                if is_others and not _is_ours(part.name, part.lstat()):
                    raise _in_the_way(part)
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
                path = self.path(file)
                _sign(descriptor, path.name)
                os.fsync(descriptor)  # whole after a power cut, too: nothing checks it again
                with self._locked():  # so that a process that makes room counts it once
                    if os.path.lexists(path):
                        raise _in_the_way(path)
                    part.rename(path)
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

    def _make_folder(self) -> bool:
        """Make the folder, and return whether it has its marker; OSError if it holds other things than a cache."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = _marker(self.folder)
        others = sorted(path.name for path in self.folder.iterdir() if not _is_own_name(path.name))
        if text != _MARK and (text or others):
            what = "the cache of another program or version" if text else f"holds {others[0]}, and is no cache"
            raise FileExistsError(errno.EEXIST, f"{what}; give another folder as data.cache", str(self.folder))
        return text == _MARK

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._make_folder()  # those who tidy up /tmp may have taken it
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self._make_folder():
                write_text(self.folder / MARKER, _MARK)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, num_bytes: int, *, spare_planned: bool = False) -> bool:
        """Evict until so many more bytes fit, and return whether they do; the caller holds the folder's lock.

        First goes what is not planned, the least recently used first; then, unless spared, what is planned, the last
        needed first.
        """
        excess, victims = num_bytes - self.limit_bytes, []
        for path, status in self._owned():
            if _PART.fullmatch(path.name) and _remove_unlocked(path):
                continue  # a dead process's
            excess += status.st_size
            turn = self._planned.get(path)
            if _FILE.fullmatch(path.name) and not (spare_planned and turn is not None):
                victims.append((turn is not None, -(turn or 0), status.st_atime_ns, status.st_size, path))
        if excess > sum(size for *_, size, _ in victims):
            return False
        for *_, size, path in sorted(victims):
            if excess <= 0:
                break
            if _remove_unlocked(path):
                excess -= size
        return excess <= 0

    def _owned(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield all files that are provably this cache's."""
        for folder in self.folder.iterdir():
            if _TAG.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):  # a part that its process has just given up
                        if _is_ours(path.name, status := path.lstat()):
                            yield path, status


class DamagedFileError(ValueError):
    """A file that its store gives with other bytes than its dataset says; another try would not help."""


def _create_locked(part: Path, num_bytes: int) -> int:
    """Create a new part of full size, so that all processes count it, under this process's lock."""
    part.parent.mkdir(mode=0o700, exist_ok=True)
    if part.parent.is_symlink():
        raise _in_the_way(part.parent)
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
    """Remove a file of the cache that no process has locked; return whether it was removed."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:  # it has gone, or is a link
        return False
    try:
        if not _is_ours(path.name, os.fstat(descriptor)):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _marker(folder: Path) -> str:
    """Return the text of a folder's marker, which backup tools know from many programs; "" if it has none."""
    path = folder / MARKER
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_own_name(name: str) -> bool:
    """Return whether a cache has an entry of this name."""
    return name in (MARKER, LOCK) or bool(_TAG.fullmatch(name)) or name.startswith(TEMPORARY_PREFIX)


def _is_ours(name: str, status: os.stat_result) -> bool:
    """Return whether a cache wrote this file and nobody has changed it since."""
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        return False
    if part := _PART.fullmatch(name):
        return status.st_size in (0, int(part[1]))  # 0: killed before it had its size
    return bool(_FILE.fullmatch(name)) and status.st_mtime_ns == _signed(name, status.st_mtime_ns) * 10**9


def _sign(descriptor: int, name: str) -> None:
    """Give a file now as its access time, and the modification time that shows that the cache wrote it."""
    now = time.time_ns()  # the kernel's own would be that of its last tick
    os.utime(descriptor, ns=(now, _signed(name, now) * 10**9))


def _signed(name: str, time_ns: int) -> int:
    """Return the last second, up to 18 hours before a time, that leaves the name's checksum modulo 2^16.

    Writing to the file, or putting another in its place, gives another time; even seconds survive on FAT.
    """
    seconds = time_ns // 10**9
    return seconds - (seconds - zlib.crc32(name.encode()) * 2) % 2**16


def _in_the_way(path: Path) -> OSError:
    why = "not as this cache wrote it; it is left alone: move it away, or give another folder as data.cache"
    return FileExistsError(errno.EEXIST, why, str(path))


def _earlier_caches(folder: Path) -> list[Path]:
    """Return what caches of layout 1 have left: `lock` and folders named by 16 hex digits, without a marker."""
    folders = [earlier for earlier in (folder, folder / "mae3d", folder / f"mae3d-{os.getuid()}") if earlier.is_dir()]
    return sorted(
        path
        for earlier in folders
        if (earlier / LOCK).is_file() and not (earlier / MARKER).exists()
        for path in earlier.iterdir()
        if _TAG.fullmatch(path.name) and path.is_dir() and any(path.iterdir())
    )
