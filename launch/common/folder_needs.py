"""Each thing that the program needs of a file system, with the attempt that shows whether it can be had there.

try_need(need, Path("/runs"))      # for need in NEEDS: a Check
"""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.common.folder_meeting import OTHER_LOCKS
from launch.common.machine_checks import FAIL, GB, OK, WARN, Check
from mae3d.io.files import LONGEST_NAME, TEMPORARY_PREFIX, sync, write_text
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner

SPEED_MB = 64
CHECKPOINT_GB = 4  # of a ViT-L
FILES = 10_000
# File systems where reserving room is a note in a table; behind others memory may be, or every byte is written.
_RESERVING = {"ext4", "xfs", "btrfs", "f2fs", "nfs4", "gpfs"}
_ELSEWHERE = "name another folder"


class Weak(Exception):
    """An error that makes the program run less well there, not fail; the remedy is its second argument."""


@dataclass(frozen=True)
class Need:
    """A thing that the program needs of a folder.

    Attributes:
        name: of the line.
        remedy: if it fails.
        attempt: tries it in a folder of its own; returns the line's detail.
    """

    name: str
    remedy: str
    attempt: Callable[[Path], str]


def mounted(path: str) -> str:
    """Return the kind of file system and its source, from the table of mounts: the folder itself may hang."""
    target, kind = "", "an unknown file system"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            at = before.split()[4].encode().decode("unicode_escape")  # \040 is a blank
            if len(at) >= len(target) and f"{path}/".startswith(at.rstrip("/") + "/"):
                target, kind = at, " ".join(after.split()[:2])
    return f"{kind} at {target or path}"


def _room(at: Path, *, seconds: float = 3.0) -> str:
    """Write for a moment, then reserve a checkpoint's room: a quota shows in no figure of the free space."""
    block, written = os.urandom(1 << 20), 0
    with (at / "speed").open("wb") as file:
        start = time.perf_counter()
        while written < SPEED_MB and time.perf_counter() - start < seconds:
            file.write(block)
            written += 1
        file.flush()
        os.fsync(file.fileno())
        speed = written * (1 << 20) / 1e6 / (time.perf_counter() - start)
    free = shutil.disk_usage(at).free
    detail = f"{free / GB:.0f} GB free, writes {speed:.0f} MB/s"
    if free > 2 * CHECKPOINT_GB * GB and mounted(str(at)).split()[0] in _RESERVING:
        with (at / "reserved").open("wb") as file:
            code = _fallocate(file.fileno(), int(CHECKPOINT_GB * GB))
        (at / "reserved").unlink()
        if code in (errno.EDQUOT, errno.ENOSPC, errno.EFBIG):
            free, detail = 0, f"{detail}, but {CHECKPOINT_GB} GB more: {os.strerror(code)}"
    if free < 10 * GB:
        remedy = f"a ViT-L checkpoint takes {CHECKPOINT_GB} GB, several are kept: make room, or --run.dir elsewhere"
        raise Weak(detail, remedy)
    if speed < 50:
        raise Weak(detail, "keep shards and runs on a faster disk, not on a slow network mount")
    return detail


def _fallocate(descriptor: int, num_bytes: int) -> int:
    """Reserve bytes of a file; return the error's number, 0 for none. C's posix_fallocate would write them instead."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return ctypes.get_errno() if call(descriptor, 0, 0, num_bytes) else 0


def _files(at: Path) -> str:
    """Look at how many files more there may be; 0 files at all means that the file system does not count them."""
    status = os.statvfs(at)
    if status.f_files and status.f_favail < FILES:
        raise Weak(f"only {status.f_favail:,} files more", "remove files there, or have more inodes made")
    return f"{status.f_favail:,} files more" if status.f_files else "as many as fit"


def _replace(at: Path) -> str:
    """Replace a file as config.yaml and `latest` are, then while somebody reads it."""
    target = at / "latest"
    for text in ("before", "after"):
        write_text(target, text)
    if target.read_text(encoding="utf-8") != "after":
        raise OSError(errno.EPROTO, "a file that was replaced has its old content")
    with target.open("rb"):
        try:
            write_text(target, "while it is read")
        except OSError as error:
            detail = f"not while it is read ({error.strerror})"
            raise Weak(detail, "a save fails, and is tried again, when somebody has RUN's small files open") from error
    return "one step, also while the file is read"


def _folders(at: Path) -> str:
    """Rename a folder with a file in it, as a checkpoint that is complete, and onto an empty one."""
    staged, final = at / f"{TEMPORARY_PREFIX}step", at / "step-00000001"
    staged.mkdir()
    (staged / "manifest.json").write_text("{}", encoding="utf-8")
    sync(staged)
    staged.rename(final)
    sync(at)
    if not (final / "manifest.json").is_file():
        raise OSError(errno.EPROTO, "a folder that was renamed has lost its file")
    empty = Path(tempfile.mkdtemp(dir=at))
    final.rename(empty)
    shutil.rmtree(empty)
    return "renamed in one step"


def _lock(at: Path) -> str:
    """Take a lock twice: the second time it must be refused; then give a sign of life, and give it back."""
    store, mine, other = FolderLockStore(at), Owner.here("doctor"), Owner.here("another doctor")
    if not store.create(LOCK_NAME, mine):
        raise OSError(errno.EPROTO, "a lock that nobody holds cannot be taken")
    if store.create(LOCK_NAME, other):
        raise OSError(errno.EPROTO, "two starts get the same lock")
    held = store.read(LOCK_NAME)
    if held is None or held.owner != mine:
        raise OSError(errno.EPROTO, "a lock does not name its owner")
    path = at / LOCK_NAME
    gives_signs = False
    with suppress(OSError):
        os.utime(path, (0, 0))
        gives_signs = path.stat().st_mtime < 1e6
        store.heartbeat(LOCK_NAME, mine)
        gives_signs &= path.stat().st_mtime > 1e6
    store.replace(LOCK_NAME, other)
    store.remove(LOCK_NAME)
    if path.exists():
        raise OSError(errno.EPROTO, "a lock cannot be given back")
    if not gives_signs:
        remedy = "start RUN on one machine only: another one would take it over after five minutes"
        raise Weak("one holder at a time, which can give no sign of life", remedy)
    (at / "a").touch()
    try:
        os.link(at / "a", at / "b")
    except OSError as error:
        return f"one holder at a time, by O_EXCL (no hard links: {error.strerror})"
    return "one holder at a time, by a hard link"


def _sync(at: Path) -> str:
    """Sync a file, then a folder as Linux has it; some file systems cannot."""
    (at / "synced").write_text("x", encoding="utf-8")
    sync(at / "synced")
    handle = os.open(at, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        sync(at)  # whether it is an error that the program passes over
        remedy = "a power cut of the server may lose the newest names; nothing to do otherwise"
        raise Weak(f"files; folders: {error.strerror}", remedy) from error
    finally:
        os.close(handle)
    return "files and folders"


def _append(at: Path) -> str:
    """Append as to metrics.jsonl."""
    path = at / "metrics.jsonl"
    for _ in range(2):
        with path.open("a", encoding="utf-8") as file:
            file.write("{}\n")
    if path.read_text(encoding="utf-8") != "{}\n{}\n":
        raise OSError(errno.EPROTO, "a line that was appended is not there")
    return "lines at the end of a file"


def _rewrite(at: Path) -> str:
    """Write behind and before a gap and cut a file, as tars are made; and use a file that has no name any more."""
    try:
        with (at / "tar").open("w+b") as file:
            file.seek(1024)
            file.write(b"member")
            file.seek(0)
            file.write(b"header")
            file.truncate(1027)
            file.seek(0)
            if file.read() != b"header".ljust(1024, b"\0") + b"mem":
                raise OSError(errno.EPROTO, "a file with a gap has other bytes than were written")
        with tempfile.TemporaryFile(dir=at) as file:
            file.write(b"x")
            file.flush()
            os.pread(file.fileno(), 1, 0)
    except OSError as error:
        raise Weak(f"not in the middle of a file ({error.strerror})", "preprocess --out elsewhere") from error
    return "in the middle of a file"


def _map(at: Path) -> str:
    """Map a file as checkpoints and indexes are read, then as one that is written through its map."""
    (at / "mapped").write_bytes(b"tensor")
    with (at / "mapped").open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            if mapped[:] != b"tensor":
                raise OSError(errno.EPROTO, "a mapped file has other bytes than were written")
        try:
            mmap.mmap(file.fileno(), 0).close()
        except OSError as error:
            detail = f"for reading; not to be written ({error.strerror})"
            raise Weak(detail, "give `preprocess curate` and the attentive probe another folder") from error
    return "files into memory"


def _clock(at: Path) -> str:
    """Compare the clock of the machine that keeps the files with this one's."""
    before = time.time()
    (at / "clock").touch()
    after = time.time()
    modified = (at / "clock").stat().st_mtime
    ahead = modified - min(max(modified, before - 1), after + 1)  # times of files may be whole seconds
    if abs(ahead) > 30:
        remedy = "chrony or ntpd on both: liveness probes compare the two"
        raise Weak(f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's", remedy)
    return "as on this machine"


def _cache(at: Path) -> str:
    """Try what only `--data.cache` needs: whose a file is, its times, and a lock that ends with its process."""
    remedy = "give --data.cache a folder on the node's own disk"
    path = at / "shard"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (owner := os.fstat(descriptor).st_uid) != os.geteuid():
            raise Weak(f"not here: files belong to user {owner}, not to this one, {os.geteuid()}", remedy)
        os.utime(descriptor, ns=(10**18, 10**18))
        if path.stat().st_mtime_ns != 10**18:
            raise Weak("not here: the time of a file cannot be set", remedy)
    except OSError as error:
        raise Weak(f"not here: {error.strerror}", remedy) from error
    finally:
        os.close(descriptor)
    return "may lie here (a node's own disk is faster)"


def _names(at: Path) -> str:
    """Make a name of the length that file systems of Linux allow, and one in other letters."""
    (at / "Case").touch()
    case = ", whatever their letter case" if (at / "cASE").exists() else ""
    try:
        (at / ("n" * LONGEST_NAME)).touch()
    except OSError as error:
        remedy = "give short names to what is written here"
        raise Weak(f"shorter than {LONGEST_NAME} bytes{case} ({error.strerror})", remedy) from error
    return f"up to {LONGEST_NAME} bytes{case}"


NEEDS = (
    Need("room", _ELSEWHERE, _room),
    Need("files", _ELSEWHERE, _files),
    Need("replace", "name a folder where rename replaces a file, which mounts of object stores cannot", _replace),
    Need("folders", "name a folder where folders can be renamed, which mounts of object stores cannot", _folders),
    Need("lock", OTHER_LOCKS, _lock),
    Need("sync", "see to that storage", _sync),
    Need("append", "name a folder where files can be appended to, which mounts of object stores cannot", _append),
    Need("rewrite", "", _rewrite),
    Need("map", "mount it with cache=mmap (9p), or without direct_io (FUSE)", _map),
    Need("names", _ELSEWHERE, _names),
    Need("clock", "", _clock),
    Need("cache", "", _cache),
)


def try_need(need: Need, at: Path) -> Check:
    """Try one need in a new folder below one, which is removed."""
    try:
        folder = Path(tempfile.mkdtemp(dir=at))
        detail = need.attempt(folder)
        shutil.rmtree(folder)
        return Check(need.name, OK, detail)
    except Weak as weak:
        detail, remedy = weak.args
        return Check(need.name, WARN, detail, remedy)
    except OSError as error:
        return Check(need.name, FAIL, error.strerror or str(error), _remedy(error) or need.remedy or _ELSEWHERE)


def _remedy(error: OSError) -> str:
    """Return what to do about an error that has nothing to do with what was tried; "" for others."""
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO):
        return "see to that storage: it answers with errors (dmesg may say more)"
    return "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
