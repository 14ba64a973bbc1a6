"""The media files of a dataset that is an index over them: where each lies, and whether it is still what it was.

files = MediaFiles(table, roots=["/archive"], moved={"/archive": "/mnt/archive"})
bad = check_media("out/index", files, exclude_bad=False)       # {} if all have the size that they had
with files.open(7) as read:
    read(4096, 1 << 20)                                        # size and offset, of a folder or behind a URL
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mae3d.io.storage import Storage, is_url
from preprocess.dataset.schema import DatasetError, lines_of

_AT_A_TIME = 32  # threads that look at files: storages of a network answer slowly, and many questions at once
_IN_A_CHUNK = 1 << 12


Read = Callable[[int, int], bytes]  # (size, offset) ─► these bytes of a file; fewer at its end
Pread = Callable[[int, int, int], bytes]  # as os.pread


@contextmanager
def reading(descriptor: int, *, pread: Pread = os.pread) -> Iterator[Read]:
    """Yield the reader of an opened file, and close it."""
    try:
        yield partial(pread, descriptor)
    finally:
        os.close(descriptor)


class MediaFiles:
    """The files of an index, by the numbers that its samples give them."""

    def __init__(self, table: pa.Table, *, roots: Sequence[str], moved: Mapping[str, str]) -> None:
        """Take the mapped table (MEDIA_SCHEMA), the roots that its rows count in, and new places of roots."""
        self._table = table
        self._roots = [moved.get(root, root).rstrip("/") for root in roots]

    def __len__(self) -> int:
        return len(self._table)

    def location(self, number: int) -> str:
        """Return the path or URL of a file."""
        root, path = self._where(number)
        return f"{root}/{path}"

    def root(self, number: int) -> str:
        """Return the folder or URL below which a file lies."""
        return self._where(number)[0]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all files when the index was made."""
        return int(pc.sum(self._table["bytes"]).as_py() or 0)

    @contextmanager
    def open(self, number: int, *, pread: Pread = os.pread) -> Iterator[Read]:
        """Yield the reader of a file, on this machine by `pread`; OSError if it cannot be read."""
        root, path = self._where(number)
        if is_url(root):
            storage = self._storages[root]
            yield lambda size, offset: storage.read(path, offset, offset + size)
            return
        with reading(os.open(f"{root}/{path}", os.O_RDONLY), pread=pread) as read:
            yield read

    def root_is_there(self, number: int) -> bool:
        """Return whether the root of a file holds anything: then not all of the storage has gone."""
        root, _ = self._where(number)
        try:
            if is_url(root):
                return self._storages[root].is_folder()
            with os.scandir(root) as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def changed(self) -> dict[int, str]:
        """Return what is wrong with each file that is missing or has another size, by its number.

        Raises:
            OSError: a storage cannot be reached.
        """
        listings = {root: Storage(root).sizes() for root in self._roots if is_url(root)}

        def look(start: int) -> list[tuple[int, str]]:
            rows = self._table.slice(start, _IN_A_CHUNK)
            columns = (rows[name].to_pylist() for name in ("root", "path", "bytes"))
            bad = []
            for number, (root, path, num_bytes) in enumerate(zip(*columns, strict=True), start):
                where = self._roots[root]
                size = listings[where].get(path, -1) if where in listings else _size(f"{where}/{path}")
                if size == -1:
                    bad.append((number, "missing"))
                elif size not in (None, num_bytes):
                    bad.append((number, f"{size} bytes, it had {num_bytes} when it was indexed"))
            return bad

        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            return dict(pair for bad in pool.map(look, range(0, len(self), _IN_A_CHUNK)) for pair in bad)

    @cached_property
    def _storages(self) -> dict[str, Storage]:
        return {root: Storage(root, back_off_s=()) for root in self._roots if is_url(root)}  # readers try again

    def _where(self, number: int) -> tuple[str, str]:
        return self._roots[self._table["root"][number].as_py()], self._table["path"][number].as_py()


def _size(path: str) -> int:
    """Return the bytes of a file, -1 if it is not there."""
    try:
        return Path(path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror, path) from error


def check_media(
    location: str, files: MediaFiles, *, num_samples: Callable[[Sequence[int]], int], exclude_bad: bool
) -> dict[int, str]:
    """Return what is wrong with the files of an index that are not as they were, by their numbers.

    Args:
        location: the folder or URL of the index, for messages.
        files: the files.
        num_samples: counts the samples of some files.
        exclude_bad: whether the index is used without them.

    Raises:
        DatasetError: there are such files, and they are not to be excluded, or they are all there are.
    """
    try:
        bad = files.changed()
    except OSError as error:
        raise DatasetError(f"{location}: {error.filename}: {error.strerror}, while its files were looked at") from error
    if bad and (not exclude_bad or len(bad) == len(files)):
        remedy = (
            "restore them, run `mae3d preprocess index` again, or, if the folder has moved, --data.moved "
            f"{files.root(next(iter(bad)))}=NEW"
        )
        if len(bad) < len(files):
            remedy += ", or leave them out with --data.exclude_bad_shards true"
        listed = (f"{files.location(number)}: {what}" for number, what in bad.items())
        raise DatasetError(
            f"{location}: {len(bad):,} of {len(files):,} media files, {num_samples(list(bad)):,} samples, are missing "
            f"or have changed since they were indexed; {remedy}:" + lines_of(listed, count=len(bad))
        )
    return bad
