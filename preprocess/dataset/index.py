"""The disk contract is read: a dataset's folder ─► an opened Dataset.

A dataset opens in milliseconds at any size, because all that grows with it is memory-mapped and shared by the ranks of
a node:

    shard-00000.tar / .idx / .parquet   the frames; DALI's index; the shard's own rows (its presence = done)
    index-<hash>.parquet                one row per sample, for people and tools; the keys and names
    rows-<hash>.arrow                   the same rows without the strings, mapped
    frames-<hash>.arrow                 one row per frame (size, crc32), mapped; of layout video, groups-<hash>.arrow,
                                        of layout files, tables-<hash>.arrow
    media-<hash>.arrow                  of layout files, the files that hold the samples, mapped
    rejected.parquet                    the samples that were left out, where and why
    dataset.json                        replaced last: the files that it names are the dataset

    dataset = open_dataset("out/shards")
    spans = dataset.spans(7, np.array([0, 4, 8]))  # where three JPEGs, or two groups, lie in their tar

Imports numpy and pyarrow only: trainers read through this module.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from mae3d.io.files import looked_for, sha256_of
from preprocess.dataset.dataset import REJECTED_NAME, Dataset, Spans, mapped_numbers
from preprocess.dataset.layout import BLOCK, LAYOUTS, layout_of
from preprocess.dataset.media import MediaFiles, check_media
from preprocess.dataset.schema import (
    MEDIA_SCHEMA,
    PARTS_SCHEMA,
    READABLE_SCHEMAS,
    DatasetError,
    Shard,
    lines_of,
    rows_schema,
)

__all__ = [  # the names that trainers and tools may use
    "BLOCK",
    "META_NAME",
    "PLAN_NAME",
    "REJECTED_NAME",
    "Dataset",
    "DatasetError",
    "Shard",
    "Spans",
    "check_file",
    "check_shards",
    "index_files",
    "map_dataset",
    "open_dataset",
    "parse_meta",
    "read_meta",
]

META_NAME = "dataset.json"
PLAN_NAME = "plan.parquet"

_META_KEYS = {"settings", "settings_hash", "label_names", "split_names", "totals", "files", "shards"}
_HASH_AT_OPEN = 64 << 20  # larger index files: the size at every open, the hash in `verify`


def open_dataset(
    root: str | Path, *, exclude_bad_shards: bool = False, moved: Mapping[str, str] | None = None
) -> Dataset:
    """Open the dataset in a folder, checking all that can be checked without reading the shards.

    The hashes of index files beyond 64 MiB are left to `mae3d preprocess verify`.

    Args:
        root: the folder.
        exclude_bad_shards: as `check_shards`; of layout files, also media files that are missing or have changed.
        moved: of layout files, new places of the folders or URLs below which its media files lay.

    Raises:
        DatasetError: no such folder, not a dataset, an unfinished build, another schema version or layout, an index
            file that is missing or has another size or hash than dataset.json says, or bad shards (`check_shards`).
    """
    root = Path(root)
    meta = read_meta(root)
    for stem in index_files(meta):
        entry = meta["files"][stem]
        check_file(root / entry["name"], entry["bytes"], entry["sha256"])
    sizes: dict[str, int | None] = {}
    for name, *_ in meta["shards"]:
        with suppress(FileNotFoundError):
            sizes[name] = (root / name).stat().st_size
    bad = check_shards(str(root), meta, sizes, exclude_bad=exclude_bad_shards)
    dataset = map_dataset(root, meta, bad_shards=bad, moved=moved)
    return with_checked_media(dataset, exclude_bad=exclude_bad_shards)


def with_checked_media(dataset: Dataset, *, exclude_bad: bool) -> Dataset:
    """Return a dataset whose media files were looked at; errors as `preprocess.dataset.media.check_media`."""
    files = dataset.media_files
    if files is None:
        return dataset

    def num_samples(numbers: Sequence[int]) -> int:
        return int(np.isin(dataset.media, numbers).sum())

    bad = check_media(dataset.location, files, num_samples=num_samples, exclude_bad=exclude_bad)
    return replace(dataset, bad_media=bad)


def check_shards(
    location: str, meta: dict[str, Any], sizes: Mapping[str, int | None], *, exclude_bad: bool
) -> dict[int, str]:
    """Return the damage of each shard that is missing or of another size than dataset.json says, by its number.

    Args:
        location: the folder or URL, for messages.
        meta: the result of `read_meta` or `parse_meta`.
        sizes: of the files that are there, in bytes; None = not known.
        exclude_bad: whether the dataset is used without them.

    Raises:
        DatasetError: there are bad shards, and they are not to be excluded, or no sample is left without them.
    """
    shards, bad = [Shard(*entry) for entry in meta["shards"]], {}
    for number, shard in enumerate(shards):
        if shard.name not in sizes:
            bad[number] = "missing"
        elif sizes[shard.name] not in (None, shard.bytes):
            bad[number] = f"{sizes[shard.name]} bytes, {META_NAME} says {shard.bytes}"
    lost = sum(shards[number].num_samples for number in bad)
    total = sum(shard.num_samples for shard in shards)
    if bad and (not exclude_bad or lost == total):
        remedy = "restore them from a copy or run the build again"
        if lost < total:
            remedy += ", or leave them out with --data.exclude_bad_shards true"
        listed = (f"{location}/{shards[number].name}: {what}" for number, what in bad.items())
        raise DatasetError(
            f"{location}: {len(bad)} of {len(shards)} shards, {lost:,} of {total:,} samples, are missing or not whole; "
            f"{remedy}:{lines_of(listed, count=len(bad))}"
        )
    return bad


def map_dataset(
    root: Path,
    meta: dict[str, Any],
    *,
    url: str = "",
    bad_shards: Mapping[int, str] | None = None,
    moved: Mapping[str, str] | None = None,
) -> Dataset:
    """Return a dataset over checked index files.

    Args:
        root: the folder of the index files.
        meta: the result of `read_meta` or `parse_meta`.
        url: the URL of the shards, if they are not in `root`.
        bad_shards: the result of `check_shards`.
        moved: as `open_dataset`.

    Raises:
        DatasetError: an index file is none, or has other columns.
    """
    layout, media = layout_of(meta), None
    if layout.is_in_place:
        table = _map_table(root / meta["files"]["media"]["name"], MEDIA_SCHEMA)
        media = MediaFiles(table, roots=meta["media_roots"], moved=moved or {})
    rows = _map_table(root / meta["files"]["rows"]["name"], rows_schema(layout))
    columns: dict[str, Any] = {
        name: mapped_numbers(rows[name].chunk(0)) for name in rows.column_names if name != "labels"
    }
    labels: Any = rows["labels"].chunk(0)  # a LargeListArray
    return Dataset(
        root=root,
        meta=meta,
        layout=layout,
        fingerprint=_fingerprint(meta),
        shards=tuple(Shard(*entry) for entry in meta["shards"]),
        label_offsets=mapped_numbers(labels.offsets),
        label_values=mapped_numbers(labels.values),
        splits=columns.pop("split"),
        parts_at=columns.pop(layout.at),
        split_names=list(meta["split_names"]),
        label_names=list(meta["label_names"]),
        _parts=_map_table(root / meta["files"][layout.parts]["name"], PARTS_SCHEMA),
        media_files=media,
        url=url,
        bad_shards=bad_shards or {},
        **columns,
    )


def index_files(meta: dict[str, Any]) -> tuple[str, ...]:
    """Return the entries of dataset.json's `files` without which no sample can be found; rejected.parquet is none."""
    layout = layout_of(meta)
    return "index", "rows", layout.parts, *(["media"] if layout.is_in_place else [])


def read_meta(root: Path) -> dict[str, Any]:
    """Return dataset.json of a folder, its schema version and layout checked; raise DatasetError."""
    path = root / META_NAME
    if not root.is_dir():
        command = f"mae3d preprocess build --out {shlex.quote(str(root))}"
        raise DatasetError(f"{root}: no such folder{looked_for(root)}; `{command}` makes a dataset")
    if not path.is_file():
        if (root / PLAN_NAME).is_file():
            raise DatasetError(f"{root}: an unfinished build ({PLAN_NAME} but no {META_NAME}); run the build again")
        raise DatasetError(f"{root}: not a dataset (no {META_NAME}); give the --out folder of `preprocess build`")
    return parse_meta(path.read_bytes(), where=path)


def parse_meta(text: bytes, *, where: Path | str) -> dict[str, Any]:
    """Return dataset.json from its bytes, schema and layout checked; raise DatasetError, which names `where`."""
    try:
        meta = json.loads(text)
        version, layout = meta["schema"], meta["layout"]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where}: cannot be read ({error}); run the build again") from error
    if version not in READABLE_SCHEMAS or layout not in LAYOUTS:
        raise DatasetError(
            f"{where}: schema {version!r}, layout {layout!r}; this program reads schemas "
            f"{' and '.join(map(str, READABLE_SCHEMAS))}, layouts {' and '.join(LAYOUTS)}: build it again, or use the "
            "version that wrote it"
        )
    keys = _META_KEYS | {"video": {"codec", "group"}, "files": {"media_roots"}, "png": {"channels", "bits"}}.get(
        layout, set()
    )
    if not (lacking := sorted(keys - meta.keys())):
        lacking = sorted({*index_files(meta), "rejected"} - dict(meta["files"]).keys())
    if lacking:
        raise DatasetError(f"{where}: has no {', '.join(lacking)}; run the build again")
    return meta


def _fingerprint(meta: dict[str, Any]) -> str:
    files = meta["files"]
    parts = [
        1,  # not the schema: a dataset of schema 1 keeps its fingerprint when a later one is written over it
        meta["layout"],
        files["rows"]["sha256"],
        files["index"]["sha256"],
        files[layout_of(meta).parts]["sha256"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_file(path: Path, num_bytes: int, sha256: str | None = None) -> None:
    """Raise DatasetError unless a file is there with this size, and with this hash if it is not too large."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing, though {META_NAME} names it; restore it or run the build again") from None
    if size != num_bytes:
        raise DatasetError(f"{path}: {size} bytes, {META_NAME} says {num_bytes}; restore it or run the build again")
    if sha256 and num_bytes <= _HASH_AT_OPEN and sha256_of(path) != sha256:
        raise DatasetError(f"{path}: its sha256 is not the one in {META_NAME}; restore it or run the build again")


def _map_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a mapped Arrow file: no bytes are read before they are used."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: not an Arrow file ({error}); run the build again") from error
    if not table.schema.equals(schema):
        raise DatasetError(f"{path}: its columns are not those that this program reads; run the build again")
    return table
