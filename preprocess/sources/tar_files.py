"""Tars of videos (video2dataset's, WebDataset's) are read as folders: their members are files below a root.

    read = read_tar(path, label_key="category")           # Archive(videos, problems)
    root = WithTars(Folder(Path("archive")), scratch)
    with root.local(["00000.tar/clip.mp4"]) as (file,):   # one member, copied to the scratch
        ...

Nothing is unpacked by its own name: members are read by their offset, one at a time, if they are regular files.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mae3d.video.errors import MediaError
from mae3d.video.facts import VIDEO_SUFFIXES
from preprocess.problems import Problem
from preprocess.sources.fetched_files import Scratch, kept_files
from preprocess.sources.file_kinds import HEAD_BYTES, is_picture, is_sidecar, is_system, kind_of
from preprocess.sources.ledger import unsafe
from preprocess.sources.roots import Listing, Root

TAR_SUFFIX = ".tar"
_COPIED_AT_ONCE = 1 << 20
_SMALL = 1 << 20  # a larger .cls or .json holds no label


@dataclass(frozen=True, slots=True)
class TarVideo:
    """A video in a tar."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Archive:
    """The videos of one tar in its order, and its problems, which are named by their members."""

    videos: list[TarVideo]
    problems: list[Problem]
    others: list[str] = field(default_factory=list)  # members that are no videos


def split_archive(path: str) -> tuple[str, str] | None:
    """Split a path below a root into (tar, member); None if it does not lead into a tar."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1], start=1):
        if part.lower().endswith(TAR_SUFFIX):
            return "/".join(parts[:i]), "/".join(parts[i:])
    return None


def read_tar(path: Path, *, label_key: str = "") -> Archive:
    """Scan a tar.

    Args:
        path: the file.
        label_key: the entry of a member's .json that is its label; without one the .cls beside the video is.

    Raises:
        MediaError: it is no tar.
    """
    members, problems = _members(path)
    videos: list[TarVideo] = []
    others: list[str] = []
    with path.open("rb") as file:
        for name in members:
            if not _is_video(name):
                kind = "" if is_sidecar(name) or is_picture(name) else _kind(file, *members[name])
                if kind != "video":
                    others.append(name)
                    continue
            try:
                videos.append(TarVideo(name, _labels(file, members, name, label_key)))
            except ValueError as error:
                problems.append(Problem("bad_label", str(error), name))
    return Archive(videos, problems, others)


@dataclass(frozen=True)
class WithTars:
    """A root whose tars are folders: `00000.tar/clip.mp4` is a member. Other paths are the root's."""

    root: Root
    scratch: Scratch

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def where(self) -> str:
        return self.root.where

    def files(self, below: str = "", *, follow: bool = False) -> Listing:
        return self.root.files(below, follow=follow)

    def read(self, path: str) -> bytes:
        return self.root.read(path)

    def head(self, path: str, count: int) -> bytes:
        return self.root.head(path, count)

    def inside(self, path: str) -> bool:
        parts = split_archive(path)
        return self.root.inside(parts[0] if parts else path)

    @contextmanager
    def local(self, files: Sequence[str]) -> Iterator[list[Path]]:
        parts = [split_archive(file) for file in files]
        archives = {one[0] for one in parts if one}
        if len(archives) != 1 or None in parts:
            assert not archives, "a sample lies in one tar, or in none"
            with self.root.local(files) as paths:
                yield paths
            return
        (archive,) = archives
        members = [one[1] for one in parts if one]
        with kept_files(self.scratch).hold(_Members(self.root, archive), members) as paths:
            yield paths


@dataclass(frozen=True)
class _Members:
    """The members of one tar, to be fetched."""

    root: Root
    archive: str

    @property
    def url(self) -> str:
        with self.root.local([self.archive]) as (path,):
            return str(path)

    def size(self, name: str) -> int:
        with self.root.local([self.archive]) as (path,):
            return self._find(path, name)[1]

    def get(self, name: str, path: Path) -> None:
        with self.root.local([self.archive]) as (archive,):
            offset, size = self._find(archive, name)
            with archive.open("rb") as source, path.open("wb") as target:
                source.seek(offset)
                while data := source.read(min(size - target.tell(), _COPIED_AT_ONCE)):
                    target.write(data)
            if path.stat().st_size != size:
                raise MediaError("truncated", f"{self.archive} ends in {name}")

    def _find(self, path: Path, name: str) -> tuple[int, int]:
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise MediaError("missing_file", f"{self.archive}: no such file") from error
        members = _places(path, stat.st_mtime_ns, stat.st_size)
        if name not in members:
            raise MediaError("missing_file", f"{self.archive} has no {name}")
        return members[name]


@lru_cache(maxsize=4)
def _places(path: Path, mtime_ns: int, size: int) -> dict[str, tuple[int, int]]:
    """Return `_members`, for as long as the file is the same."""
    return _members(path)[0]


def _members(path: Path) -> tuple[dict[str, tuple[int, int]], list[Problem]]:
    """Return offset and size of every regular member by its name, in order; up to the end of a damaged tar."""
    size = path.stat().st_size
    members: dict[str, tuple[int, int]] = {}
    problems: list[Problem] = []
    latest, end = "", 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in _whole_members(tar, size, problems):
                name = info.name.removeprefix("./")
                latest, end = name, info.offset_data + info.size
                if info.isdir() or not name or is_system(name):
                    continue
                if why := unsafe(name):
                    problems.append(Problem("unsafe_name", f"{name!r}: {why.partition(' (')[0]}", name))
                elif not info.isreg() or info.issparse():
                    if _is_video(name):
                        problems.append(Problem("unsafe_name", "a link or a device, not a file", name))
                elif name in members:
                    if _is_video(name):
                        problems.append(Problem("duplicate_row", "there twice; the first is taken", name))
                else:
                    members[name] = info.offset_data, info.size
            if not problems or problems[-1].reason != "truncated":
                _check_end(path, end, latest, problems)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if not latest:
            raise MediaError("unreadable", f"not a tar: {error}") from error
        problems.append(Problem("truncated", f"the tar is damaged after {latest}: {error}", latest))
    return members, problems


def _whole_members(tar: tarfile.TarFile, size: int, problems: list[Problem]) -> Iterator[tarfile.TarInfo]:
    """Return the members whose data is complete."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
        if info.offset_data + info.size > size:
            there = f"{max(0, size - info.offset_data):,} of its {info.size:,} bytes are there"
            problems.append(Problem("truncated", f"the tar ends in {info.name}: {there}", info.name))
            return
        yield info


def _check_end(path: Path, end: int, latest: str, problems: list[Problem]) -> None:
    """Check that a tar ends with empty blocks: without them more may be missing."""
    with path.open("rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            problems.append(Problem("truncated", f"the tar has no end: members after {latest} may be missing", latest))


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def _kind(file: BinaryIO, offset: int, size: int) -> str:
    """Return what a member of unknown suffix is by its first bytes."""
    file.seek(offset)
    return kind_of(file.read(min(size, HEAD_BYTES)))


def _labels(file: BinaryIO, members: dict[str, tuple[int, int]], name: str, label_key: str) -> tuple[str, ...]:
    """Return the label beside a video: WebDataset's key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    keys = (name[: -len(PurePosixPath(name).suffix)], folder + slash + base.partition(".")[0])
    suffix = ".json" if label_key else ".cls"
    at = next((members[key + suffix] for key in keys if key + suffix in members), None)
    if at is None or at[1] > _SMALL:
        return ()
    file.seek(at[0])
    text = file.read(at[1]).decode(errors="replace").strip()
    if not label_key:
        return (text,) if text else ()
    try:
        value = json.loads(text).get(label_key)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"its .json cannot be read: {error}") from error
    values = value if isinstance(value, list) else [value]
    return tuple(str(one) for one in values if one is not None and one != "")
