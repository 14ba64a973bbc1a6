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

Only what is provably the cache's own (pipelines/storage/ownership.py) is counted or removed: a regular file of this
user, in a folder with the marker, under a name as above, and with the modification time that `sign` gives it, which any
other writer would change (a part: with its size). Everything else stays, and a fetch that finds it in its way fails.
"""

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mae3d.io.files import write_text
from pipelines.storage.ownership import (
    FILE_NAME,
    LOCK,
    MARKER,
    MARKER_TEXT,
    PART_NAME,
    READ_FLAGS,
    TAG_NAME,
    create_locked,
    earlier_caches,
    in_the_way,
    is_ours,
    make_folder,
    marker_of,
    owned_files,
    remove_unlocked,
    sign,
    wait_for_owner,
)

logger = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20  # of one request to the store
ROOM_SECONDS = 60.0  # how long a read waits while other processes fetch into all of the cache
FOLDER = f"mae3d-cache-{os.getuid()}"  # inside the folder that users name, which may hold anything


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
        self.folder = folder if marker_of(folder) == MARKER_TEXT else folder / FOLDER
        self.limit_bytes = limit_bytes
        if not self.folder.exists() and (left := earlier_caches(folder)):  # said once, when the new cache begins
            logger.warning(
                "%s: of an earlier version and not used any more: remove it to have its space back (%d such folders)",
                left[0],
                len(left),
            )
        self.bytes_fetched = self.files_fetched = 0
        self._planned: dict[Path, int] = {}
        self._counting = threading.Lock()
        make_folder(self.folder)
        if self.folder.stat().st_uid != os.getuid():  # anybody can make folders in /tmp
            raise PermissionError(
                errno.EPERM, "another user's cache; give a folder of your own as data.cache", str(self.folder)
            )
        with self._locked():
            self._make_room(0)

    def path(self, file: RemoteFile) -> Path:
        """Return the path at which the file is, or will be; ValueError if that is not a file of a cache."""
        tag, _, name = file.local.partition("/")
        if not (TAG_NAME.fullmatch(tag) and FILE_NAME.fullmatch(name)):
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
                descriptor = os.open(path, READ_FLAGS)
            except FileNotFoundError:
                self.fetch(file)
                continue
            except OSError as error:  # a link, or nothing that this user may read
                raise in_the_way(path) from error
            status = os.fstat(descriptor)
            if not is_ours(path.name, status) or status.st_size != file.num_bytes:
                os.close(descriptor)
                raise in_the_way(path)
            sign(descriptor, path.name)
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
            if is_ours(path.name, path.lstat()):
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
                is_others = os.path.lexists(part) and not remove_unlocked(part)
                if is_others and not is_ours(part.name, part.lstat()):
                    raise in_the_way(part)
                has_room = not is_others and self._make_room(file.num_bytes, spare_planned=ahead)
                descriptor = create_locked(part, file.num_bytes) if has_room else None
            if descriptor is not None:
                try:
                    return self._download(file, descriptor, part, is_stopped=is_stopped)
                finally:
                    part.unlink(missing_ok=True)
                    os.close(descriptor)
            if ahead:
                return is_others
            if is_others:
                wait_for_owner(part)
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
                sign(descriptor, path.name)
                os.fsync(descriptor)  # whole after a power cut, too: nothing checks it again
                with self._locked():  # so that a process that makes room counts it once
                    if os.path.lexists(path):
                        raise in_the_way(path)
                    part.rename(path)
                with self._counting:
                    self.files_fetched += 1
                return True
            logger.warning("%s: fetched with another sha256 than dataset.json says", file.url)
        raise DamagedFileError(
            f"{file.url}: fetched twice, its sha256 is not the one in dataset.json; copy it there again, "
            "from a folder that `mae3d preprocess verify FOLDER --full` finds whole"
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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.folder)  # those who tidy up /tmp may have taken it
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not make_folder(self.folder):
                write_text(self.folder / MARKER, MARKER_TEXT)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, num_bytes: int, *, spare_planned: bool = False) -> bool:
        """Evict until so many more bytes fit, and return whether they do; the caller holds the folder's lock.

        First goes what is not planned, the least recently used first; then, unless spared, what is planned, the last
        needed first.
        """
        excess, victims = num_bytes - self.limit_bytes, []
        for path, status in owned_files(self.folder):
            if PART_NAME.fullmatch(path.name) and remove_unlocked(path):
                continue  # a dead process's
            excess += status.st_size
            turn = self._planned.get(path)
            if FILE_NAME.fullmatch(path.name) and not (spare_planned and turn is not None):
                victims.append((turn is not None, -(turn or 0), status.st_atime_ns, status.st_size, path))
        if excess > sum(size for *_, size, _ in victims):
            return False
        for *_, size, path in sorted(victims):
            if excess <= 0:
                break
            if remove_unlocked(path):
                excess -= size
        return excess <= 0


class DamagedFileError(ValueError):
    """A file that its store gives with other bytes than its dataset says; another try would not help."""
