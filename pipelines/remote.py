"""A URL ─► the dataset behind it: its index files from the cache, mapped; its shards as files that the cache fetches.

shards = open_remote("s3://bucket/kinetics", cache)
shards.dataset, shards.files      # as a folder's; one RemoteFile a shard
descriptor = shards.open(17)      # of the whole tar, in the cache

Any fsspec URL. Credentials and endpoints come from the environment: for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, AWS_ENDPOINT_URL and the rest of AWS_*, or FSSPEC_S3_* for any other argument of s3fs.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.cache import Cache, RemoteFile, default_folder, gigabytes
from preprocess.index import META_NAME, Dataset, DatasetError, Shard, check_file, check_shards, map_dataset, parse_meta


@dataclass(frozen=True, eq=False)
class RemoteShards:
    """A dataset whose shards are behind a URL; its index files stay in the cache as long as this lives."""

    dataset: Dataset
    cache: Cache
    files: tuple[RemoteFile, ...]
    index_bytes: int
    is_there: Callable[[], bool]  # asks the store whether it still has dataset.json
    _held: list[int] = field(default_factory=list)

    def open(self, shard: int) -> int:
        """A descriptor of a shard's tar; the caller closes it. Raises OSError and DamagedFileError as `Cache.open`."""
        return self.cache.open(self.files[shard])

    def __del__(self) -> None:
        while self._held:
            os.close(self._held.pop())


def open_cache(folder: str | Path, *, limit_bytes: int) -> Cache:
    """The node's cache in a folder, "" being the usual one; DatasetError if it cannot be used."""
    try:
        return Cache(Path(folder) if folder else default_folder(), limit_bytes=limit_bytes)
    except OSError as error:
        raise DatasetError(f"data.cache: {error.filename}: {error.strerror}") from error


def open_remote(url: str, cache: Cache, *, exclude_bad_shards: bool = False) -> RemoteShards:
    """Opens the dataset behind a URL; what it reads is dataset.json, one listing, and what of the index is not cached.

    Args:
        url: where it is.
        cache: where its files are fetched to.
        exclude_bad_shards: as `preprocess.index.check_shards`.

    Raises:
        DatasetError: no such place, no dataset there, no access, a file that is missing or of another size, or a
            cache that is too small; the message names the URL and the remedy.
    """
    url = url.rstrip("/")
    filesystem, root = _filesystem_of(url)
    try:
        meta = parse_meta(_asked(url, filesystem.cat_file, f"{root}/{META_NAME}"), where=f"{url}/{META_NAME}")
        sizes = _asked(url, _sizes, filesystem, root)
    except OSError as error:
        what = f"no {META_NAME} there" if isinstance(error, FileNotFoundError) else error.strerror
        raise DatasetError(f"{url}: {what}; {_remedy(url, error)}") from error
    _check_index(url, meta, sizes)
    bad = check_shards(url, meta, sizes, exclude_bad=exclude_bad_shards)
    tag = hashlib.sha256(url.encode()).hexdigest()[:16]

    def remote(name: str, num_bytes: int, sha256: str, local: str) -> RemoteFile:
        read = partial(_read, filesystem, f"{root}/{name}", f"{url}/{name}")
        return RemoteFile(f"{url}/{name}", num_bytes, sha256, f"{tag}/{local}", read)

    # The names of index files hold their hash, shards' do not.
    index = [remote(e["name"], e["bytes"], e["sha256"], e["name"]) for e in _index_entries(meta)]
    shards = [Shard(*entry) for entry in meta["shards"]]
    files = tuple(remote(s.name, s.bytes, s.sha256, f"{s.sha256[:16]}-{s.name}") for s in shards)
    index_bytes = sum(file.num_bytes for file in index)
    least = index_bytes + max((file.num_bytes for file in files), default=0)
    if least > cache.limit_bytes:
        raise DatasetError(
            f"{url}: the index and the largest shard are {least / 1e9:.3g} GB, the cache's limit is "
            f"{cache.limit_bytes / 1e9:.3g} GB; give at least --data.cache_gb {gigabytes(least)}"
        )
    held = [_held(file, cache) for file in index]
    dataset = map_dataset(cache.folder / tag, meta, url=url, bad_shards=bad)

    def is_there() -> bool:
        with suppress(OSError):
            return bool(_read(filesystem, f"{root}/{META_NAME}", f"{url}/{META_NAME}", 0, 1))
        return False

    return RemoteShards(dataset, cache, files, index_bytes, is_there, held)


def _index_entries(meta: dict[str, Any]) -> list[dict[str, Any]]:
    return [meta["files"][kind] for kind in ("index", "rows", "frames")]


def _check_index(url: str, meta: dict[str, Any], sizes: dict[str, int | None]) -> None:
    for name, num_bytes in [(entry["name"], entry["bytes"]) for entry in _index_entries(meta)]:
        if name not in sizes:
            raise DatasetError(f"{url}/{name}: missing, though {META_NAME} names it; copy the dataset there again")
        if sizes[name] not in (None, num_bytes):
            raise DatasetError(
                f"{url}/{name}: {sizes[name]} bytes, {META_NAME} says {num_bytes}; copy the dataset there again"
            )


def _held(file: RemoteFile, cache: Cache) -> int:
    """A descriptor that keeps an index file in the cache; a damaged copy is fetched again."""
    try:
        descriptor = cache.hold(file)
        try:
            check_file(cache.path(file), file.num_bytes, file.sha256)
            return descriptor
        except DatasetError:
            os.close(descriptor)
            cache.path(file).unlink(missing_ok=True)
            return cache.hold(file)
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error


def _filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL, and the path there."""
    import fsspec
    from fsspec.registry import known_implementations

    for library in ("botocore", "aiobotocore"):  # every process would tell where it found the credentials
        logging.getLogger(library).setLevel(logging.WARNING)
    protocol = url.partition("://")[0].partition("::")[0]
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
        hint = f"pip install {package}" if package != "fsspec" else "install what it names"
        raise DatasetError(f"{url}: {protocol}:// needs another package ({error}): {hint}") from error
    except ValueError as error:
        raise DatasetError(f"{url}: {error}; give a folder, or a URL such as s3://bucket/shards") from error
    return filesystem, root.rstrip("/")


def _sizes(filesystem: Any, root: str) -> dict[str, int | None]:
    """Sizes by name from one listing; None where the store does not tell."""
    filesystem.invalidate_cache(root)
    return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in filesystem.ls(root, detail=True)}


def _read(filesystem: Any, path: str, url: str, start: int, stop: int) -> bytes:
    data: bytes = _asked(url, partial(filesystem.cat_file, start=start, end=stop), path)
    if len(data) != stop - start:
        raise OSError(errno.EIO, f"the store gave {len(data)} of the bytes {start} to {stop}", url)
    return data


def _asked(url: str, ask: Callable[..., Any], *arguments: Any) -> Any:
    """What a store answers; whatever its library raises becomes an OSError with a number, the words and the URL."""
    try:
        return ask(*arguments)
    except Exception as error:
        number = getattr(error, "errno", None)
        for kind, of_kind in (
            (FileNotFoundError, errno.ENOENT),
            (PermissionError, errno.EACCES),
            (TimeoutError, errno.ETIMEDOUT),
        ):
            number = of_kind if isinstance(error, kind) else number
        words = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise OSError(number or errno.EIO, words or type(error).__name__, url) from error


def _remedy(url: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"give the URL to which the --out folder of `preprocess build` was copied ({error.strerror})"
    if not url.startswith("s3"):
        return "see to it that this machine may read it"
    return (
        "see to it that this machine may read it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
        "AWS_ENDPOINT_URL for a store other than Amazon's)"
    )
