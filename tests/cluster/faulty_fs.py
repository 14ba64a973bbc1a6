"""A folder is shown through FUSE as a file system with faults: a rule for each operation that fails, and odd manners.

python -m tests.cluster.faulty_fs FOLDER MOUNT RULES       # RULES: a JSON file, read again whenever it changes

{"fail": {"link": "EOPNOTSUPP", "fsync": "EIO"},           # operation ─► error
 "open_targets": true,                                     # rename over an open file: EACCES (with hard_remove)
 "ignore_case": true,                                      # README is readme
 "delay": 3.0,                                             # seconds until a name of another mount shows
 "owner": 12345,                                           # whose all files are
 "times": "ignored",                                       # utime says yes and does nothing
 "append_only": true,                                      # a file is written from its begin to its end
 "longest": 143,                                           # of a file's name
 "no_replace": true,                                       # rename onto a name that is there: EEXIST
 "mount": {"direct_io": true, "hard_remove": true}}        # options of the mount; hard_remove: an open file may
                                                           # lose its name, and its handle is lost then
"""

# Paths are text here.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH112, PTH115, PTH118, PTH119, PTH208, PTH211

import errno
import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy as fuse

STATFS = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")
STAT = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")


class Faulty(fuse.Operations):  # type: ignore[misc]
    """The folder, as it is but for the rules."""

    use_ns = True

    def __init__(self, root: str, rules: str) -> None:
        self._root, self._path = root, Path(rules)
        self._read_at, self._rules = 0, {}  # type: int, dict[str, Any]
        self._open: dict[str, int] = {}  # path below the root ─► how often it is open
        self._descriptors: dict[int, str] = {}
        self._known: set[str] = set()  # names that this mount has made
        self._first: dict[int, float] = {}  # inode ─► when it was made, as far as can be known
        self._guard = threading.Lock()

    def _check(self, operation: str) -> dict[str, Any]:
        """Return the rules, or raise the error that they have for an operation."""
        modified = self._path.stat().st_mtime_ns
        if modified != self._read_at:
            self._rules, self._read_at = json.loads(self._path.read_text(encoding="utf-8")), modified
        if code := self._rules.get("fail", {}).get(operation):
            raise OSError(getattr(errno, code), code)
        return self._rules

    def _at(self, path: str) -> str:
        """Return the path in the folder."""
        if not self._rules.get("ignore_case"):
            return self._root + path
        at = self._root
        for part in path.strip("/").split("/"):
            names = os.listdir(at) if part and os.path.isdir(at) else []
            at = os.path.join(at, next((name for name in names if name.lower() == part.lower()), part))
        return at

    def _is_hidden(self, path: str) -> bool:
        delay = self._rules.get("delay", 0)
        if not delay or path in self._known or path == "/":
            return False
        status = os.lstat(self._at(path))
        return time.time() < self._first.setdefault(status.st_ino, status.st_ctime) + delay

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        rules = self._check("getattr")
        if fh is None and self._is_hidden(path):
            raise OSError(errno.ENOENT, path)
        status = os.fstat(fh) if fh is not None else os.lstat(self._at(path))
        facts = {name: getattr(status, name) for name in STAT}
        facts |= {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
        return facts | ({"st_uid": rules["owner"]} if "owner" in rules else {})

    def readdir(self, path: str, fh: int) -> list[str]:
        self._check("readdir")
        names = os.listdir(self._at(path))
        return [".", "..", *(name for name in names if not self._is_hidden(os.path.join(path, name)))]

    def statfs(self, path: str) -> dict[str, int]:
        self._check("statfs")
        status = os.statvfs(self._at(path))
        return {name: getattr(status, name) for name in STATFS}

    def mkdir(self, path: str, mode: int) -> int:
        self._check("mkdir")
        self._known.add(path)  # also if another has made it: the answer is that it is there
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._check("rmdir")
        os.rmdir(self._at(path))
        return 0

    def unlink(self, path: str) -> int:
        self._check("unlink")
        os.unlink(self._at(path))
        return 0

    def symlink(self, target: str, source: str) -> int:
        self._check("symlink")
        os.symlink(source, self._at(target))
        self._known.add(target)
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def rename(self, old: str, new: str) -> int:
        rules = self._check("rename_folder" if os.path.isdir(self._at(old)) else "rename")
        if rules.get("open_targets") and self._open.get(new):
            raise OSError(errno.EACCES, "a sharing violation")
        if rules.get("no_replace") and os.path.lexists(self._at(new)):
            raise OSError(errno.EEXIST, new)
        os.rename(self._at(old), self._at(new))
        self._known.add(new)
        below = [path for path in self._known if path.startswith(f"{old}/")]
        self._known.update(new + path.removeprefix(old) for path in below)
        return 0

    def link(self, target: str, source: str) -> int:
        self._check("link")
        os.link(self._at(source), self._at(target))
        self._known.add(target)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._check("chmod")
        os.chmod(self._at(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._check("chown")
        os.chown(self._at(path), uid, gid)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._check("truncate")
        os.truncate(fh if fh is not None else self._at(path), length)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if self._check("utimens").get("times") != "ignored":
            os.utime(self._at(path), ns=times) if times else os.utime(self._at(path))
        return 0

    def _opened(self, path: str, flags: int, mode: int = 0o666) -> int:
        descriptor = os.open(self._at(path), flags, mode)
        with self._guard:
            self._descriptors[descriptor] = path
            self._open[path] = self._open.get(path, 0) + 1
        return descriptor

    def open(self, path: str, flags: int) -> int:
        self._check("open")
        return self._opened(path, flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        if len(os.path.basename(path)) > self._check("create").get("longest", 255):
            raise OSError(errno.ENAMETOOLONG, path)
        self._known.add(path)
        return self._opened(path, os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._check("read")
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        rules = self._check("write")
        if rules.get("append_only") and offset < os.fstat(fh).st_size:
            raise OSError(errno.EOPNOTSUPP, "written in order only")
        return os.pwrite(fh, data, offset)

    def flush(self, path: str, fh: int) -> int:
        self._check("flush")
        return 0

    def release(self, path: str, fh: int) -> int:
        with self._guard:
            self._open[self._descriptors[fh]] -= 1
            del self._descriptors[fh]
        os.close(fh)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._check("fsync")
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._check("fsyncdir")
        return 0

    def flock(self, path: str, fh: int, op: int) -> int:
        self._check("flock")
        fcntl.flock(fh, op)
        return 0


def main(folder: str, mount: str, rules: str) -> None:
    """Serve the folder until it is unmounted."""
    options = json.loads(Path(rules).read_text(encoding="utf-8")).get("mount", {})
    options |= {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}  # the rules hold at once
    fuse.FUSE(Faulty(folder, rules), mount, foreground=True, allow_other=True, default_permissions=True, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
