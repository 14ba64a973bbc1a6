"""Files behind URLs and in tars are fetched to the scratch, and kept there until the room is needed for others.

    with kept_files(Scratch(Path("/tmp"), 10 << 30)).hold(storage, ["a/1.mp4"]) as (file,):
        ...

Each thread has its own part of the scratch, which is removed when the thread or the process ends.
"""

import atexit
import errno
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from mae3d.io.storage import fetch_whole
from mae3d.video.errors import MediaError

_AT_A_TIME = 8  # files of one sample that are fetched at the same time


@dataclass(frozen=True)
class Scratch:
    """Room for fetched files: a folder, and the number of bytes that one worker may have there."""

    folder: Path
    limit_bytes: int


class Fetched(Protocol):
    """The interface that files are fetched through: a Storage, or an archive."""

    @property
    def url(self) -> str:
        """Return what identifies it."""

    def size(self, name: str) -> int | None:
        """Return the bytes of one file; FileNotFoundError if it does not exist."""

    def get(self, name: str, path: Path) -> None:
        """Write a file to a path of this machine."""


@dataclass
class Kept:
    """The files that this thread has fetched, the least recently used first."""

    folder: Path
    limit_bytes: int
    sizes: OrderedDict[Path, int] = field(default_factory=OrderedDict)

    @contextmanager
    def hold(self, storage: Fetched, files: Sequence[str]) -> Iterator[list[Path]]:
        """Fetch missing files and yield the paths; files that are not held may be removed for them."""
        paths = {file: self._path(storage, file) for file in files}
        for path in [path for path in paths.values() if path in self.sizes and not path.is_file()]:
            del self.sizes[path]  # somebody cleaned up
        absent = [file for file, path in paths.items() if path not in self.sizes]
        for path in paths.values():
            if path in self.sizes:
                self.sizes.move_to_end(path)
        # The threads use this one's files: fetching a member of a tar needs the tar.
        with ThreadPoolExecutor(_AT_A_TIME, initializer=_use, initargs=(_kept_by_scratch(),)) as pool:
            sizes = dict(zip(absent, pool.map(lambda file: _size(storage, file), absent), strict=True))
            held = sum(self.sizes.get(path, 0) for path in paths.values()) + sum(sizes.values())
            if held > self.limit_bytes:
                room = f"{held / 1e9:.3g} GB to fetch, one worker may have {self.limit_bytes / 1e9:.3g} GB of scratch"
                raise MediaError("too_large", f"{room}; give more --scratch-gb, or fewer --workers")
            self._make_room(sum(sizes.values()), keep=set(paths.values()))
            for _ in pool.map(lambda file: self._fetch(storage, file, paths[file], sizes[file]), absent):
                pass
        self.sizes |= {paths[file]: sizes[file] for file in absent}
        yield [paths[file] for file in files]

    def _path(self, storage: Fetched, file: str) -> Path:
        # The suffix stays: FFmpeg and Pillow look at it, and messages name it.
        tag = hashlib.sha256(f"{storage.url}/{file}".encode()).hexdigest()[:24]
        return self.folder / tag / PurePosixPath(file).name

    def _fetch(self, storage: Fetched, file: str, path: Path, num_bytes: int) -> None:
        def damage() -> str:
            given = path.stat().st_size
            return "" if given == num_bytes or not num_bytes else f"the store gave {given} of {num_bytes} bytes twice"

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if left := fetch_whole(lambda: storage.get(file, path), damage):
                raise OSError(errno.EIO, left, f"{storage.url}/{file}")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _make_room(self, num_bytes: int, *, keep: set[Path]) -> None:
        total = sum(self.sizes.values())
        for path in list(self.sizes):
            if total + num_bytes <= self.limit_bytes:
                return
            if path not in keep:
                total -= self.sizes.pop(path)
                shutil.rmtree(path.parent, ignore_errors=True)


_thread = threading.local()


def kept_files(scratch: Scratch) -> Kept:
    """Return this thread's part of the scratch; it is removed when the thread ends."""
    by_scratch, key = _kept_by_scratch(), (scratch, os.getpid())
    if key not in by_scratch:
        folder = Path(tempfile.mkdtemp(dir=process_folder(scratch.folder, "in")))
        kept = by_scratch[key] = Kept(folder, scratch.limit_bytes)
        weakref.finalize(kept, _remove_own, folder, os.getpid())
    return by_scratch[key]


def _kept_by_scratch() -> dict[tuple[Scratch, int], Kept]:
    kept: dict[tuple[Scratch, int], Kept] = vars(_thread).setdefault("kept", {})
    return kept


def _use(kept: dict[tuple[Scratch, int], Kept]) -> None:
    _thread.kept = kept


def process_folder(scratch: Path, kind: str) -> Path:
    """Return a folder of this process; removed at its end, or by the next process here if it is killed."""
    with _making_folder:
        return _process_folder(scratch, kind, os.getpid())


_making_folder = threading.Lock()  # else a second thread would remove the folder that the first has just made


@cache
def _process_folder(scratch: Path, kind: str, pid: int) -> Path:
    # Process ids are looked up in their own namespace only: containers may share host name and scratch.
    mine = f"mae3d-{kind}-{socket.gethostname()}-{Path('/proc/self/ns/pid').stat().st_ino}-"
    for path in scratch.glob(f"{mine}*"):
        other = path.name.removeprefix(mine)
        if other.isdecimal() and not Path(f"/proc/{other}").exists():
            shutil.rmtree(path, ignore_errors=True)
    folder = scratch / f"{mine}{pid}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    atexit.register(_remove_own, folder, pid)
    return folder


def _remove_own(folder: Path, pid: int) -> None:
    """Remove a folder of process `pid`; one that it has forked runs this at its end, too."""
    if pid == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _size(storage: Fetched, file: str) -> int:
    try:
        return storage.size(file) or 0
    except FileNotFoundError as error:
        raise MediaError("missing_file", f"{storage.url}/{file} is not there") from error
