"""The frame folders below a root are found and read: folders of this machine as needed, a URL by one listing.

tree = FrameFolders(Folder(Path("dataset")))
tree.below()                                    # Walked(folders=["train/video_1", ...], others=[...])
tree.scan("train/video_1").videos               # (FrameFolder('img_', ...),)
"""

import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath

from preprocess.sources.file_kinds import is_ignored, role_of
from preprocess.sources.folder_walk import FolderLinks, walk
from preprocess.sources.frame_names import FrameFolder, Naming, is_frame, scan_names
from preprocess.sources.roots import Folder, Root


@dataclass
class Walked:
    """The folders with numbered pictures below a root, sorted, and the files in all other folders."""

    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: FolderLinks = field(default_factory=FolderLinks)


@dataclass(frozen=True)
class FrameFolders:
    """The frame folders below a root."""

    root: Root
    follow: bool = False  # linked folders too
    _holders: dict[str, Naming | None] = field(default_factory=dict, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def scan(self, folder: str) -> Naming:
        """Scan one folder; FileNotFoundError if there is no such folder."""
        if isinstance(self.root, Folder):
            try:
                names, links = self._read(self.root, folder)
            except NotADirectoryError as error:
                raise FileNotFoundError(folder) from error
            naming = scan_names(names)
            inside = lambda name: self.root.inside(str(PurePosixPath(folder) / name))  # noqa: E731
            if not (outside := [name for name in sorted(links) if not inside(name)]):
                return naming
            return replace(naming, videos=tuple(_leading_out(video, outside) for video in naming.videos))
        if folder not in self._listed:
            raise FileNotFoundError(folder)
        return scan_names(self._listed[folder])

    def scan_prefix(self, path: str) -> FrameFolder | None:
        """Return the video of a folder that `folder/prefix` names: `v1_rgb_`, `v1_rgb`, or `v1` if it is one."""
        folder, _, name = path.rpartition("/")
        with self._lock:  # else all threads would read one large folder at the same time
            if folder not in self._holders:
                try:
                    self._holders[folder] = self.scan(folder)
                except FileNotFoundError:
                    self._holders[folder] = None
            naming = self._holders[folder]
        if not naming or not name:
            return None
        for spelled in (lambda one: one.prefix, lambda one: one.stem, lambda one: role_of(one.stem).base):
            if len(named := [one for one in naming.videos if spelled(one) == name]) == 1:
                return named[0]
        return None

    def below(self, *, skip: Collection[str] = ()) -> Walked:
        """Find the folders with numbered pictures; no hidden ones, linked ones only if they are followed.

        Args:
            skip: folders that are not looked into.
        """
        walked = Walked()
        for path, names in self._folders(skip, walked.links):
            if any(map(is_frame, names)):
                walked.folders.append(path)
            else:
                walked.others += [f"{path}/{name}" if path else name for name in names]
        walked.folders.sort()
        walked.links.left.sort()
        return walked

    def _folders(self, skip: Collection[str], links: FolderLinks) -> Iterator[tuple[str, list[str]]]:
        if isinstance(self.root, Folder):
            for path, entries in walk(self.root.path, follow=self.follow, links=links, skip=skip):
                yield path, [entry.name for entry in entries]
            return
        for path, names in self._listed.items():
            if path not in skip:
                yield path, names

    def _read(self, root: Folder, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the files in a folder, and of those that are links to pictures."""
        with os.scandir(root.path / folder) as entries:
            files = [entry for entry in entries if not is_ignored(entry.name) and not entry.is_dir()]
        links = [entry.name for entry in files if entry.is_symlink() and is_frame(entry.name)]
        return [entry.name for entry in files], links

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


def _leading_out(video: FrameFolder, outside: list[str]) -> FrameFolder:
    """Note the first of the files that lead out of the root, if it is one of the video's."""
    files = {video.file_name(int(number)) for number in video.numbers}
    return replace(video, outside=next((name for name in outside if name in files), ""))
