"""The files in a cache's folder that are provably its own: the marker, their names, and times that only a cache gives.

    if is_ours(path.name, path.lstat()): ...      # a regular file of this user that nobody has changed since

Only such files are counted or removed. A part is locked by the process that fetches it; one that nobody locks is a dead
process's.
"""

import errno
import fcntl
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mae3d.io.files import TEMPORARY_PREFIX
from preprocess.dataset.layout import INDEX_FILE

MARKER, LOCK = "CACHEDIR.TAG", "lock"
MARKER_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# This is a cache of shards that mae3d fetched (layout 2). It may be deleted when no program uses it.
"""  # the first line is that of https://bford.info/cachedir/
TAG_NAME = re.compile(r"[0-9a-f]{16}")
_NAME = rf"(?:[0-9a-f]{{16}}-shard-\d{{5,}}\.tar|{INDEX_FILE})"
FILE_NAME = re.compile(_NAME)
PART_NAME = re.compile(_NAME + r"\.(\d+)\.part")
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither through a link nor waiting for a pipe


def make_folder(folder: Path) -> bool:
    """Make the folder, and return whether it has its marker; OSError if it holds other things than a cache."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = marker_of(folder)
    others = sorted(path.name for path in folder.iterdir() if not _is_own_name(path.name))
    if text != MARKER_TEXT and (text or others):
        what = "the cache of another program or version" if text else f"holds {others[0]}, and is no cache"
        raise FileExistsError(errno.EEXIST, f"{what}; give another folder as data.cache", str(folder))
    return text == MARKER_TEXT


def owned_files(cache: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all files of a folder that are provably a cache's."""
    for folder in cache.iterdir():
        if TAG_NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # a part that its process has just given up
                    if is_ours(path.name, status := path.lstat()):
                        yield path, status


def create_locked(part: Path, num_bytes: int) -> int:
    """Create a new part of full size, so that all processes count it, under this process's lock."""
    part.parent.mkdir(mode=0o700, exist_ok=True)
    if part.parent.is_symlink():
        raise in_the_way(part.parent)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def wait_for_owner(part: Path) -> None:
    """Return when the process that fetches a part has given it up or ended."""
    with suppress(FileNotFoundError):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def remove_unlocked(path: Path) -> bool:
    """Remove a file of the cache that no process has locked; return whether it was removed."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except OSError:  # it has gone, or is a link
        return False
    try:
        if not is_ours(path.name, os.fstat(descriptor)):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def marker_of(folder: Path) -> str:
    """Return the text of a folder's marker, which backup tools know from many programs; "" if it has none."""
    path = folder / MARKER
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_own_name(name: str) -> bool:
    """Return whether a cache has an entry of this name."""
    return name in (MARKER, LOCK) or bool(TAG_NAME.fullmatch(name)) or name.startswith(TEMPORARY_PREFIX)


def is_ours(name: str, status: os.stat_result) -> bool:
    """Return whether a cache wrote this file and nobody has changed it since."""
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        return False
    if part := PART_NAME.fullmatch(name):
        return status.st_size in (0, int(part[1]))  # 0: killed before it had its size
    return bool(FILE_NAME.fullmatch(name)) and status.st_mtime_ns == _signed(name, status.st_mtime_ns) * 10**9


def sign(descriptor: int, name: str) -> None:
    """Give a file now as its access time, and the modification time that shows that the cache wrote it."""
    now = time.time_ns()  # the kernel's own would be that of its last tick
    os.utime(descriptor, ns=(now, _signed(name, now) * 10**9))


def _signed(name: str, time_ns: int) -> int:
    """Return the last second, up to 18 hours before a time, that leaves the name's checksum modulo 2^16.

    Writing to the file, or putting another in its place, gives another time; even seconds survive on FAT.
    """
    seconds = time_ns // 10**9
    return seconds - (seconds - zlib.crc32(name.encode()) * 2) % 2**16


def in_the_way(path: Path) -> OSError:
    """Return the error of a place at which a cache's file belongs and something else lies."""
    why = "not as this cache wrote it; it is left alone: move it away, or give another folder as data.cache"
    return FileExistsError(errno.EEXIST, why, str(path))


def earlier_caches(folder: Path) -> list[Path]:
    """Return what caches of layout 1 have left: `lock` and folders named by 16 hex digits, without a marker."""
    folders = [earlier for earlier in (folder, folder / "mae3d", folder / f"mae3d-{os.getuid()}") if earlier.is_dir()]
    return sorted(
        path
        for earlier in folders
        if (earlier / LOCK).is_file() and not (earlier / MARKER).exists()
        for path in earlier.iterdir()
        if TAG_NAME.fullmatch(path.name) and path.is_dir() and any(path.iterdir())
    )
