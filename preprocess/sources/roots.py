"""The roots of requests' paths: folders of this machine, or URLs whose files are fetched when needed.

    root, path = open_root("s3://bucket/videos", scratch=Scratch(Path("/tmp"), 10 << 30))
    root.files().names                              # ["a/1.mp4", ...]: sorted, relative, with slashes
    with root.local(["a/1.mp4"]) as (file,):        # a path on this machine, for as long as the block lasts
        ...

Decoders see local files only. Roots can be sent to other processes; each thread has its own part of the scratch.
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
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from mae3d.io.storage import Storage, is_url
from mae3d.video.errors import MediaError
from preprocess.sources.file_kinds import is_ignored
from preprocess.sources.folder_walk import FolderLinks, walk

_AT_A_TIME = 8  # files of one sample that are fetched at the same time


@dataclass(frozen=True)
class Listing:
    """All files below a folder but hidden ones and the system's (`preprocess.sources.file_kinds`)."""

    names: list[str]  # relative to the root, sorted
    links: tuple[str, ...] = ()  # linked folders that were not followed, `link -> target`, sorted
    loops: int = 0  # linked folders that lead back to a folder above them
    outside: frozenset[str] = frozenset()  # those of the names that are links to what lies outside the root


class Root(Protocol):
    """The interface of a folder or URL that paths are relative to."""

    @property
    def name(self) -> str:
        """Return the last part of its path or URL, for messages and for the identity of the input."""

    @property
    def where(self) -> str:
        """Return its path or URL, for messages only, never for files."""

    def files(self, below: str = "", *, follow: bool = False) -> Listing:
        """List all files below a folder of it; empty if there is no such folder. `follow`: linked folders too."""

    def read(self, path: str) -> bytes:
        """Read a small file; FileNotFoundError if it does not exist."""

    def head(self, path: str, count: int) -> bytes:
        """Read the first `count` bytes of a regular file; none of anything else. OSError if it cannot be read."""

    def inside(self, path: str) -> bool:
        """Return whether a path below the root stays there when links are followed."""

    def local(self, files: Sequence[str]) -> AbstractContextManager[list[Path]]:
        """Yield paths on this machine of the given files, valid in the block.

        A file that is missing here is not an error yet: opening it is. A MediaError that is raised in
        the block goes through if the root is still there.

        Raises:
            MediaError: a file behind a URL is missing, or does not fit the scratch.
            OSError: the store cannot be reached, or the folder has gone.
        """


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def where(self) -> str:
        return str(self.path)

    def files(self, below: str = "", *, follow: bool = False) -> Listing:
        names: list[str] = []
        linked: list[str] = []
        links = FolderLinks()
        with suppress(FileNotFoundError):
            for folder, entries in walk(self.path, below, follow=follow, links=links):
                prefix = f"{folder}/" if folder else ""
                names += [prefix + entry.name for entry in entries]
                linked += [prefix + entry.name for entry in entries if entry.is_symlink()]
        # Below a link that was followed every file may be outside; it was followed because that is allowed.
        outside = frozenset(name for name in linked if not self.inside(name))
        return Listing(sorted(names), tuple(sorted(links.left)), links.loops, outside)

    def read(self, path: str) -> bytes:
        return (self.path / path).read_bytes()

    def head(self, path: str, count: int) -> bytes:
        if not (self.path / path).is_file():  # opening a pipe would wait
            return b""
        with (self.path / path).open("rb", buffering=0) as file:
            return file.read(count)

    def inside(self, path: str) -> bool:
        try:
            return (self.path / path).resolve().is_relative_to(self.path.resolve())
        except RuntimeError:  # a link to itself, which leads nowhere
            return True

    @contextmanager
    def local(self, files: Sequence[str]) -> Iterator[list[Path]]:
        try:
            yield [self.path / file for file in files]
        except MediaError:
            self._check()
            raise

    def _check(self) -> None:
        """Raise OSError if the folder has gone, because then nothing is wrong with the requested file."""
        with os.scandir(self.path) as entries:
            if next(entries, None) is None:
                raise OSError(errno.ENODEV, "is empty now, as a mount that has gone is", str(self.path))


@dataclass(frozen=True)
class Scratch:
    """Room for fetched files: a folder, and the number of bytes that one worker may have there."""

    folder: Path
    limit_bytes: int


@dataclass(frozen=True)
class Remote:
    """A folder behind a URL; files are fetched completely and kept until the room is needed for others."""

    storage: Storage
    scratch: Scratch

    @property
    def name(self) -> str:
        return self.storage.url.rpartition("/")[2]

    @property
    def where(self) -> str:
        return self.storage.url

    def files(self, below: str = "", *, follow: bool = False) -> Listing:
        names = self.storage.sizes(below)
        return Listing([name for name in names if not any(map(is_ignored, name.split("/")))])

    def read(self, path: str) -> bytes:
        return self.storage.read(path)

    def head(self, path: str, count: int) -> bytes:
        return self.storage.read(path, 0, count)

    def inside(self, path: str) -> bool:
        return True

    @contextmanager
    def local(self, files: Sequence[str]) -> Iterator[list[Path]]:
        with kept_files(self.scratch).hold(self.storage, files) as paths:
            yield paths


def open_root(given: str, *, scratch: Scratch) -> tuple[Root, str]:
    """Return the root of a given path or URL, and the path below it: "" for a folder, a file's name for a file.

    Raises:
        ValueError: there is nothing.
    """
    if not is_url(given):
        path = Path(given)
        if not path.exists():
            raise ValueError(f"{given}: no such file or folder")
        return (Folder(path), "") if path.is_dir() else (Folder(path.parent), path.name)
    url = given.rstrip("/")
    parent, _, name = url.rpartition("/")
    try:
        is_folder = Storage(url).is_folder()
    except FileNotFoundError:
        raise ValueError(f"{given}: nothing there") from None
    return (Remote(Storage(url), scratch), "") if is_folder else (Remote(Storage(parent), scratch), name)


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
            for _ in pool.map(lambda file: self._fetch(storage, file, paths[file]), absent):
                pass
        self.sizes |= {paths[file]: sizes[file] for file in absent}
        yield [paths[file] for file in files]

    def _path(self, storage: Fetched, file: str) -> Path:
        # The suffix stays: FFmpeg and Pillow look at it, and messages name it.
        tag = hashlib.sha256(f"{storage.url}/{file}".encode()).hexdigest()[:24]
        return self.folder / tag / PurePosixPath(file).name

    def _fetch(self, storage: Fetched, file: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.get(file, path)
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
