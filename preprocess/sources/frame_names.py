"""Folders of numbered frames are scanned for their naming template and the numbers that exist.

In: file names such as `img_00001.jpg`. Out: `FrameFolder`, which names the file of any frame.

    scan_names(os.listdir("train/video_1"))  # FrameFolder('img_', digits=5, suffix='.jpg', numbers=[1 ... 3117])
    FrameFolders(root).scan("train/video_1")
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from preprocess.plan.plan import frame_name
from preprocess.sources.roots import Folder, Root

_FRAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.(?:jpe?g|png))", re.IGNORECASE | re.DOTALL)
_LARGEST = 1 << 53


@dataclass(frozen=True)
class FrameFolder:
    """The naming of one folder's frames: `prefix`, a number of at least `digits` digits, `suffix`."""

    prefix: str
    digits: int
    suffix: str
    numbers: np.ndarray  # int64, ascending
    outside: str = ""  # a file in it that is a link to what lies outside the root

    def file_name(self, number: int) -> str:
        """Return the name of a frame's file."""
        return frame_name(self.prefix, self.digits, self.suffix, number)

    @property
    def span(self) -> str:
        """Return the first and the last file, for messages."""
        first, last = int(self.numbers[0]), int(self.numbers[-1])
        return f"{len(self.numbers)} frames, {self.file_name(first)} to {self.file_name(last)}"

    def first_missing(self, first: int, stop: int) -> int | None:
        """Return the first number in [first, stop) without a file, or None if all exist."""
        low, high = np.searchsorted(self.numbers, [first, stop]).tolist()
        if high - low == stop - first:
            return None
        off = np.flatnonzero(self.numbers[low:high] != first + np.arange(high - low))
        return first + int(off[0] if len(off) else high - low)

    def gaps(self, first: int, stop: int) -> tuple[int, ...] | None:
        """Return the numbers in [first, stop) without a file; None if no earlier frame could replace one.

        Also None for numbers beyond the last file, or where more frames are missing than there are.
        """
        low, high = np.searchsorted(self.numbers, [first, stop]).tolist()
        if not len(self.numbers) or self.numbers[0] > first or self.numbers[-1] < stop - 1:
            return None
        if stop - first > 2 * (high - low):
            return None
        return tuple(np.setdiff1d(np.arange(first, stop), self.numbers[low:high], assume_unique=True).tolist())


def scan_names(names: Iterable[str]) -> FrameFolder | None:
    """Return the template that most of the numbered images of a folder share; None if there is no such image.

    Files of other templates are not seen: among `img_00001.jpg` ... a stray `img_0323.jpg` is none of the
    frames.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        if (match := _FRAME.fullmatch(name)) and int(match["number"]) < _LARGEST:
            groups[match["prefix"], match["suffix"]].append(match["number"])
    if not groups:
        return None
    prefix, suffix = max(groups, key=lambda group: (len(groups[group]), group))
    texts = groups[prefix, suffix]
    # A leading zero fixes the width; numbers without one fit every width up to their own.
    widths = Counter(len(text) for text in texts if text[0] == "0" and len(text) > 1)
    digits = max(widths, key=lambda width: (widths[width], width)) if widths else 1
    numbers = [int(text) for text in texts if text == f"{int(text):0{digits}d}"]
    return FrameFolder(prefix, digits, suffix, np.array(sorted(numbers), np.int64))


def index_shift(folder: FrameFolder, first: int, stop: int) -> int:
    """Return the shift from a ledger's frame numbers to the file numbers of a folder: 0, 1 or -1.

    Args:
        folder: what is on disk.
        first: the smallest frame number that the ledger names in this folder.
        stop: one more than the largest.
    """
    low, high = int(folder.numbers[0]), int(folder.numbers[-1]) + 1
    if low <= first and stop <= high:
        return 0
    if low == 1 and first == 0 and stop + 1 <= high:
        return 1  # the ledger counts from 0, the files from 1
    if low == 0 and first >= 1 and stop - 1 == high:
        return -1  # the ledger counts from 1, the files from 0
    return 0


@dataclass(frozen=True)
class FrameFolders:
    """The frame folders below a root. A folder of this machine is read as needed, a URL is listed once."""

    root: Root

    def scan(self, folder: str) -> FrameFolder | None:
        """Scan one folder; None if it has no numbered image, FileNotFoundError if there is no such folder."""
        if isinstance(self.root, Folder):
            try:
                names, links = _read(self.root.path / folder)
            except NotADirectoryError as error:
                raise FileNotFoundError(folder) from error
            inside = lambda name: self.root.inside(str(PurePosixPath(folder) / name))  # noqa: E731
            outside = next((name for name in sorted(links) if not inside(name)), "")
            frames = scan_names(names)
            return frames and replace(frames, outside=outside)
        if folder not in self._listed:
            raise FileNotFoundError(folder)
        return scan_names(self._listed[folder])

    def below(self, folder: str = "", *, skip: Collection[str] = ()) -> Iterator[str]:
        """Yield the folders with numbered images, relative to `folder`, in no order; no hidden and no linked ones.

        Args:
            folder: where to start.
            skip: folders, relative to `folder`, that are not looked into.
        """
        if isinstance(self.root, Folder):
            yield from _walk(self.root.path / folder, skip)
            return
        prefix = f"{folder}/" if folder else ""
        for path, names in self._listed.items():
            name = path.removeprefix(prefix)
            if f"{path}/".startswith(prefix) and name not in skip and any(map(_FRAME.fullmatch, names)):
                yield name

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Return the names in every folder; stores have no folders but in the names of files."""
        folders: dict[str, list[str]] = {}
        for name in self.root.files().names:
            folder, _, file = name.rpartition("/")
            if folder not in folders:
                for parent in (folder, *map(str, PurePosixPath(folder).parents)):
                    folders.setdefault("" if parent == "." else parent, [])
            folders[folder].append(file)
        return folders


def _read(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files in a folder, and of those that are links to images."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if not entry.is_dir()]
    links = [entry.name for entry in files if entry.is_symlink() and _FRAME.fullmatch(entry.name)]
    return [entry.name for entry in files], links


def _walk(root: Path, skip: Collection[str]) -> Iterator[str]:
    pending = [""]
    while pending:
        relative = pending.pop()
        if relative in skip:
            continue
        has_frames = False
        with os.scandir(root / relative) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        pending.append(f"{relative}/{entry.name}" if relative else entry.name)
                elif not has_frames:
                    has_frames = _FRAME.fullmatch(entry.name) is not None
        if has_frames:
            yield relative
