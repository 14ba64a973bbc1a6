"""The roots of requests' paths: folders of this machine, or URLs whose files are fetched when needed.

    root, path = open_root("s3://bucket/videos", scratch=Scratch(Path("/tmp"), 10 << 30))
    root.files().names                              # ["a/1.mp4", ...]: sorted, relative, with slashes
    with root.local(["a/1.mp4"]) as (file,):        # a path on this machine, for as long as the block lasts
        ...

Decoders see local files only. Roots can be sent to other processes; each thread has its own part of the scratch.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mae3d.io.storage import Storage, is_url
from mae3d.video.errors import MediaError
from preprocess.sources.fetched_files import Scratch, kept_files
from preprocess.sources.file_kinds import is_ignored
from preprocess.sources.folder_walk import FolderLinks, walk


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
