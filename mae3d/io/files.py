"""Files that are whole or absent: written aside, synced, renamed. A killed process or a full disk leaves the old ones.

with replace_file(out / "plan.parquet") as aside:
    aside.write_bytes(...)                     # synced and moved to its name at the end of the block
write_text(run / "config.yaml", text)
"""

import errno
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# First letters of what a killed process leaves behind and later ones sweep; no other program makes such names.
TEMPORARY_PREFIX = ".tmp-mae3d-"
LONGEST_NAME = 255  # bytes, of the file systems of Linux
# Errors of folders on file systems that sync files alone: vboxsf, old CIFS, many that are mounted through FUSE.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP}
MARK = b"MAE3D"  # in the head of the pictures and pages that users name, so that these alone are replaced


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name; what is written there is synced and moved to `path`, or removed on an error.

    The name holds host and process id, because several hosts may write to one folder on shared storage; it is no longer
    than file systems allow, also beside a long name.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    mine = f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-"
    aside = path.with_name(mine + path.name)
    if len(os.fsencode(aside.name)) > LONGEST_NAME:
        aside = path.with_name(mine + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16])
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)  # so that the rename, too, outlives a power cut


def write_text(path: Path, text: str) -> None:
    """Replace a text file; its encoding is UTF-8 under any locale, and what has no UTF-8 is written as an escape."""
    with replace_file(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_writable(folder: Path) -> None:
    """Make a file in a folder for a moment, before the long part of a command; OSError if that cannot be done."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    try:
        with tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def refuse_foreign(path: Path, *, marks: Sequence[bytes] = (MARK,)) -> None:
    """Refuse to replace a file that this program has not made.

    Args:
        path: where a file is to be written.
        marks: bytes of which a file of ours has one among its first 4096.

    Raises:
        ValueError: something is there, and it has no mark.
    """
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4096)
    if path.exists() and not any(mark in head for mark in marks):
        raise ValueError(f"{path}: not replaced, because MAE3D has not made it: remove it, or name another file")


def looked_for(path: str | Path) -> str:
    """Return the clause of a message that a path is missing: where a relative one was looked for; else "".

    A setting of config.yaml, too, is relative to the folder that a command is started from.
    """
    if Path(path).is_absolute() or "://" in str(path):
        return ""
    return f" (looked for in {Path.cwd()}, where this command runs: start it where the path begins, or give it whole)"


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk; of folders only where they can be synced.

    Raises:
        OSError: the disk has failed, or it is full.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            error.filename = str(path)
            raise
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
