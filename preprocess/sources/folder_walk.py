"""Folders of this machine are walked: linked ones are noted or followed, metadata of systems is passed by.

links = FolderLinks()
for folder, files in walk(Path("archive"), follow=False, links=links): ...
links.left                                      # ["class -> /elsewhere/class"]
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.sources.file_kinds import is_ignored


@dataclass
class FolderLinks:
    """The linked folders that a walk met."""

    left: list[str] = field(default_factory=list)  # not followed, `link -> target`
    loops: int = 0  # to a folder above, or to the folder itself


def walk(
    root: Path, below: str = "", *, follow: bool, links: FolderLinks, skip: Collection[str] = ()
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield each folder below a folder of this machine, relative to `root`, with its files; ignored ones left out.

    Args:
        root: what the paths are relative to.
        below: the folder to start at.
        follow: whether linked folders are entered, each once per path; those that lead back to a folder above are not.
        links: takes the linked folders that were not entered.
        skip: folders that are not looked into.

    Raises:
        OSError: the first folder cannot be read.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(below, frozenset())]
    while pending:
        folder, above = pending.pop()
        if folder in skip:
            continue
        try:
            if follow:
                status = (root / folder).stat()
                if (status.st_dev, status.st_ino) in above:
                    links.loops += 1
                    continue
                above |= {(status.st_dev, status.st_ino)}
            with os.scandir(root / folder) as opened:
                entries = [entry for entry in opened if not is_ignored(entry.name)]
        except FileNotFoundError:  # removed since the folder above was read
            if folder == below:
                raise
            continue
        files = []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_folder(entry):
                files.append(entry)
            elif follow or entry.is_dir(follow_symlinks=False):
                pending.append((path, above))
            else:
                links.left.append(f"{path} -> {Path(entry.path).readlink()}")
        yield folder, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it is the error
        return False
