"""A URL ─► the dataset behind it: its index files from the cache, mapped; its shards as files that the cache fetches.

shards = open_remote("s3://bucket/kinetics", cache)
shards.dataset, shards.files      # as a folder's; one RemoteFile a shard
descriptor = shards.open(17)      # of the whole tar, in the cache

Any fsspec URL. Credentials and endpoints come from the environment: for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, AWS_ENDPOINT_URL and the rest of AWS_*, or FSSPEC_S3_* for any other argument of s3fs.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mae3d.io.storage import Storage, access_remedy
from pipelines.storage.cache import Cache, RemoteFile, default_folder, gigabytes
from preprocess.dataset.index import (
    META_NAME,
    Dataset,
    DatasetError,
    Shard,
    check_file,
    check_shards,
    index_files,
    map_dataset,
    parse_meta,
    with_checked_media,
)


@dataclass(frozen=True, eq=False)
class RemoteShards:
    """A dataset whose shards are behind a URL; its index files stay in the cache as long as this lives."""

    dataset: Dataset
    cache: Cache
    files: tuple[RemoteFile, ...]
    index_bytes: int
    is_there: Callable[[], bool]  # queries the store for dataset.json
    _held: list[int] = field(default_factory=list)

    def open(self, shard: int) -> int:
        """Return a descriptor of a shard's tar; the caller closes it.

        Raise OSError and DamagedFileError as `Cache.open`.
        """
        return self.cache.open(self.files[shard])

    def __del__(self) -> None:
        while self._held:
            os.close(self._held.pop())


def open_cache(folder: str | Path, *, limit_bytes: int) -> Cache:
    """Open the node's cache below a folder, "" being the usual one; DatasetError if it cannot be used."""
    try:
        return Cache(Path(folder) if folder else default_folder(), limit_bytes=limit_bytes)
    except OSError as error:
        raise DatasetError(f"data.cache: {error.filename}: {error.strerror}") from error


def open_remote(
    url: str, cache: Cache, *, exclude_bad_shards: bool = False, moved: Mapping[str, str] | None = None
) -> RemoteShards:
    """Open the dataset behind a URL; reads dataset.json, one listing, and the part of the index that is not cached.

    Args:
        url: where it is.
        cache: where its files are fetched to.
        exclude_bad_shards: as `preprocess.dataset.index.check_shards`.
        moved: as `preprocess.dataset.index.open_dataset`.

    Raises:
        DatasetError: no such place, no dataset there, no access, a file that is missing or of another size, or a
            cache that is too small; the message names the URL and the remedy.
    """
    url = url.rstrip("/")
    patient, storage = Storage(url), Storage(url, back_off_s=())  # the loader has retries of its own for shards
    try:
        meta = parse_meta(patient.read(META_NAME), where=f"{url}/{META_NAME}")
        named = {entry["name"]: entry["bytes"] for entry in _index_entries(meta)}
        sizes = patient.sizes(expected=named | {shard.name: shard.bytes for shard in _shards(meta)})
    except ValueError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        what = f"no {META_NAME} there" if isinstance(error, FileNotFoundError) else error.strerror
        raise DatasetError(f"{url}: {what}; {_remedy(url, error)}") from error
    _check_index(url, meta, sizes)
    bad = check_shards(url, meta, sizes, exclude_bad=exclude_bad_shards)
    tag = hashlib.sha256(url.encode()).hexdigest()[:16]

    def remote(store: Storage, name: str, num_bytes: int, sha256: str, local: str) -> RemoteFile:
        return RemoteFile(f"{url}/{name}", num_bytes, sha256, f"{tag}/{local}", partial(store.read_exactly, name))

    # The names of index files hold their hash, shards' do not.
    index = [remote(patient, e["name"], e["bytes"], e["sha256"], e["name"]) for e in _index_entries(meta)]
    files = tuple(remote(storage, s.name, s.bytes, s.sha256, f"{s.sha256[:16]}-{s.name}") for s in _shards(meta))
    index_bytes = sum(file.num_bytes for file in index)
    least = index_bytes + max((file.num_bytes for file in files), default=0)
    if least > cache.limit_bytes:
        raise DatasetError(
            f"{url}: the index and the largest shard are {least / 1e9:.3g} GB, the cache's limit is "
            f"{cache.limit_bytes / 1e9:.3g} GB; give at least --data.cache_gb {gigabytes(least)}"
        )
    held = [_held(file, cache) for file in index]
    dataset = map_dataset(cache.folder / tag, meta, url=url, bad_shards=bad, moved=moved)
    dataset = with_checked_media(dataset, exclude_bad=exclude_bad_shards)

    def is_there() -> bool:
        with suppress(OSError):
            return bool(storage.read(META_NAME, 0, 1))
        return False

    return RemoteShards(dataset, cache, files, index_bytes, is_there, held)


def _index_entries(meta: dict[str, Any]) -> list[dict[str, Any]]:
    return [meta["files"][kind] for kind in index_files(meta)]


def _shards(meta: dict[str, Any]) -> list[Shard]:
    return [Shard(*entry) for entry in meta["shards"]]


def _check_index(url: str, meta: dict[str, Any], sizes: dict[str, int | None]) -> None:
    for name, num_bytes in [(entry["name"], entry["bytes"]) for entry in _index_entries(meta)]:
        if name not in sizes:
            raise DatasetError(f"{url}/{name}: missing, though {META_NAME} names it; copy the dataset there again")
        if sizes[name] not in (None, num_bytes):
            raise DatasetError(
                f"{url}/{name}: {sizes[name]} bytes, {META_NAME} says {num_bytes}; copy the dataset there again"
            )


def _held(file: RemoteFile, cache: Cache) -> int:
    """Return a descriptor that keeps an index file in the cache; a damaged copy is fetched again."""
    try:
        descriptor = cache.hold(file)
        try:
            check_file(cache.path(file), file.num_bytes, file.sha256)
            return descriptor
        except DatasetError:
            os.close(descriptor)
            cache.discard(file)
            return cache.hold(file)
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error


def _remedy(url: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"give the URL that was the --out of `preprocess build`, or to which it was copied ({error.strerror})"
    return access_remedy(url)
