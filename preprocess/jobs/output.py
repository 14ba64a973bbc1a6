"""A dataset is written to a folder, or to a URL that gets complete files made in local scratch: files ─► output.

    output = open_output("s3://bucket/shards", scratch=Path("/tmp"))
    with output.work() as folder:                                  # a folder's own path; scratch for a URL
        ...                                                        # files are made in there
        output.publish(["shard-00003.tar", "shard-00003.parquet"], folder)

Outputs can be sent to other processes.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Protocol

from mae3d.io.lock_store import FolderLockStore, LockStore, UrlLockStore
from mae3d.io.storage import Storage, is_url
from preprocess.dataset.schema import DatasetError
from preprocess.dataset.writer import Digest, digest_of
from preprocess.sources.fetched_files import process_folder

_AT_A_TIME = 16  # files that are fetched at the same time


class Output(Protocol):
    """A place that a dataset is written to; if a method fails, its OSError names the place."""

    @property
    def locks(self) -> LockStore:
        """Return the store of its locks."""

    def prepare(self) -> None:
        """Make the output if it does not exist; raise DatasetError if something else is in the way."""

    def sizes(self, *, expected: Iterable[str] = ()) -> dict[str, int | None]:
        """Return the bytes of all files by name, None = not known; a listing may lack what is not `expected`."""

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name, which a listing may not know yet."""

    def work(self) -> AbstractContextManager[Path]:
        """Yield a folder of this machine to make files in."""

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """Fetch files to a folder that `work` gave."""

    def publish(self, names: Sequence[str], folder: Path) -> None:
        """Put files that were made in a folder that `work` gave, one after the other."""

    def digests(self, names: Sequence[str]) -> list[Digest]:
        """Return the sizes and hashes of small files."""

    def remove(self, names: Sequence[str]) -> None:
        """Remove files if they exist, one after the other."""


@dataclass(frozen=True)
class FolderOutput:
    """A folder: files are made where they stay."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def locks(self) -> LockStore:
        return FolderLockStore(self.path)

    def prepare(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DatasetError(f"{self.path}: a file is in the way; --out takes a folder") from error

    def sizes(self, *, expected: Iterable[str] = ()) -> dict[str, int | None]:
        sizes: dict[str, int | None] = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            try:
                sizes[path.name] = path.stat().st_size
            except FileNotFoundError:  # another slice's, moved to its final name
                continue
        return sizes

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    @contextmanager
    def work(self) -> Iterator[Path]:
        yield self.path

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        pass

    def publish(self, names: Sequence[str], folder: Path) -> None:
        pass

    def digests(self, names: Sequence[str]) -> list[Digest]:
        return [digest_of(self.path / name) for name in names]

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class UrlOutput:
    """A place behind a URL."""

    storage: Storage
    scratch: Path

    def __str__(self) -> str:
        return self.storage.url

    @property
    def locks(self) -> LockStore:
        return UrlLockStore(self.storage)

    def prepare(self) -> None:
        pass

    def sizes(self, *, expected: Iterable[str] = ()) -> dict[str, int | None]:
        return self.storage.sizes(expected=dict.fromkeys(expected))

    def has(self, name: str) -> bool:
        return self.storage.exists(name)

    @contextmanager
    def work(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=process_folder(self.scratch, "out")))
        try:
            yield folder
        finally:
            rmtree(folder, ignore_errors=True)

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        absent = [name for name in names if not (folder / name).exists()]
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(lambda name: self.storage.get(name, folder / name), absent))

    def publish(self, names: Sequence[str], folder: Path) -> None:
        for name in names:
            self.storage.put(folder / name, name)

    def digests(self, names: Sequence[str]) -> list[Digest]:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            return list(pool.map(self._digest, names))

    def _digest(self, name: str) -> Digest:
        data = self.storage.read(name)
        return len(data), hashlib.sha256(data).hexdigest()

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.storage.remove(name)


def open_output(given: str | Path, *, scratch: Path) -> Output:
    """Return the output of a path or URL.

    Args:
        given: the path or URL of the dataset.
        scratch: a folder for files on their way to a URL.
    """
    return UrlOutput(Storage(str(given).rstrip("/")), scratch) if is_url(str(given)) else FolderOutput(Path(given))
