"""Files of a store that is memory, and what a cache's folder holds of them."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from pipelines.storage.cache import Cache, RemoteFile

SIZE = 10_000
SET = "5e7" + 13 * "0"  # the folder of the dataset


def content_of(number: int) -> bytes:
    return bytes([number % 256]) * SIZE


def local_of(number: int) -> str:
    return f"{SET}/{0:016x}-shard-{number:05d}.tar"


def file_of(number: int, *, read: Callable[[int, int], bytes] | None = None) -> RemoteFile:
    """A file of a store that is this process's memory."""
    content = content_of(number)
    sha256 = hashlib.sha256(content).hexdigest()
    return RemoteFile(
        f"test://store/{number}",
        SIZE,
        sha256,
        local_of(number),
        read or (lambda start, stop: content[start:stop]),
    )


def names(folder: Path) -> list[str]:
    """The files of a dataset in a cache, without what its names have in common."""
    return sorted(re.sub(r".*(\d{3})\.tar(\.\d+)?", r"\1", path.name) for path in folder.glob(f"**/{SET}/*"))


def read(cache: Cache, file: RemoteFile) -> bytes:
    descriptor = cache.open(file)
    try:
        return os.pread(descriptor, SIZE + 1, 0)
    finally:
        os.close(descriptor)
