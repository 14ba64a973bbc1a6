"""Files that are whole or absent.

with replace_file(out / "plan.parquet") as aside:
    aside.write_bytes(...)                     # synced and moved to its name at the end of the block
"""

import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"  # what a killed run leaves behind starts so; the next one sweeps it


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary name: what is written there is synced and moved to `path`, or removed on an error.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    aside = path.with_name(f"{TEMPORARY_PREFIX}{socket.gethostname()}-{os.getpid()}-{path.name}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the rename, too, outlives a power cut
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
