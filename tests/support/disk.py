"""The state that a power cut would leave: what os.fsync has seen of files and folders, and when files were renamed.

disk = Disk(monkeypatch)
...
assert disk.renames == [("latest", True)]      # in order: the new name, and whether all of it was synced before
assert disk.keeps(path)                        # now: its content, and its name in its folder
"""

import os
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """A recorder of what lies on the disk for good; the calls themselves are made as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.renames: list[tuple[str, bool]] = []
        self._synced: dict[int, Any] = {}  # inode -> its content when it was synced last
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._recorded(getattr(os, name)))

    def keeps(self, path: Path) -> bool:
        """Return whether a power cut would leave the file or folder as it is, under its name."""
        return self._has(path) and self._synced.get(path.parent.stat().st_ino, {}).get(path.name) == path.stat().st_ino

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        self._synced[os.fstat(descriptor).st_ino] = _content(path)

    def _recorded(self, call: Any) -> Any:
        def recorded(source: Any, target: Any, **named: Any) -> None:
            was_synced = self._has(Path(source))
            call(source, target, **named)
            self.renames.append((Path(target).name, was_synced))

        return recorded

    def _has(self, path: Path) -> bool:
        """Return whether the content is on the disk: of a folder that of all its files, too."""
        content = _content(path)
        whole = self._synced.get(path.stat().st_ino) == content
        return whole and (isinstance(content, bytes) or all(self._has(path / name) for name in content))


def _content(path: Path) -> bytes | dict[str, int]:
    """Return a file's bytes, or the names and inodes of a folder's files."""
    return {one.name: one.inode() for one in os.scandir(path)} if path.is_dir() else path.read_bytes()
