"""A dataset is checked against the sizes and hashes in its dataset.json: folder or URL ─► findings, each with a remedy.

    verify(Path("out/shards"))                            # sizes of all files; bytes of all but the tars
    verify(Path("out/shards"), full=True, decode=True)    # every byte; every frame

No findings mean that the dataset is complete. Fast: the size of every file, and the sha256 of every file but the tars:
a tar that was damaged without changing its size is found by `full` only, wherever the damage lies. Full: the sha256 of
every file. Decode: the crc32 and the decoding of every frame, which names the frames that are damaged. Of a URL the
listing and the index are checked. A dataset of schema 1 records no hashes of .idx, plan and dataset.json: of these only
what they show themselves is checked.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mae3d.io.bounds import Bounds, check_number
from mae3d.io.files import TEMPORARY_PREFIX, sha256_of
from mae3d.io.lock_store import LOCK_NAME
from mae3d.io.storage import Storage, is_url
from mae3d.video.errors import raise_unless_of_the_file
from preprocess.dataset.curation import CURATION_NAME
from preprocess.dataset.index import META_NAME, PLAN_NAME, DatasetError, Shard, index_files, map_dataset, read_meta
from preprocess.dataset.layout import INDEX_FILE, layout_of
from preprocess.dataset.schema import read_shard_table
from preprocess.dataset.writer import is_sealed, settings_hash
from preprocess.inspect.verify_shard import check_frames
from preprocess.plan.plan import read_plan
from preprocess.workers.executors import map_over_workers

_GENERATION = re.compile(INDEX_FILE)  # older ones may still be in use
_SHARD = re.compile(r"shard-\d{5,}\.(tar|idx|parquet)")
_AGAIN = "run the build again"
_NEW_PLAN = "restore it from a copy, or build into a new folder, because no build can go on here without it"
_AT_WORK = f"of a run that is at work or was stopped; wait for its end, or {_AGAIN}"
_SMALL_FILES_AT_ONCE = 64  # files that a worker is given at a time: each takes some milliseconds


@dataclass(frozen=True)
class _Entry:
    """The size and the sha256 that dataset.json records for a file; None and "" if it records none."""

    bytes: int | None
    sha256: str


def verify(root: Path | str, *, full: bool = False, decode: bool = False, workers: int = 1) -> list[str]:
    """Check a dataset.

    Args:
        root: its folder, or a URL, of which only the listing and the index are checked.
        full: compare the sha256 of every file, the tars included.
        decode: decode every frame strictly, and compare its size and crc32.
        workers: the largest number of threads.

    Returns:
        One line per finding: the file, what is wrong with it, and the remedy.

    Raises:
        DatasetError: there is no dataset, or its dataset.json cannot be read.
        ValueError: a URL, and `full` or `decode`; fewer than one worker.
        OSError: the disk has gone.
    """
    check_number("workers", workers, Bounds(least=1, most=4096))
    if is_url(str(root)):
        if full or decode:
            raise ValueError(f"{root}: --full and --decode read every byte; copy it to a folder and verify that")
        return _verify_url(str(root))
    root = Path(root)
    meta = read_meta(root)
    if findings := _check_meta(root, meta):
        return findings
    entries = _entries(meta)
    findings, wrong = _check_listing(entries, {path.name: path.stat().st_size for path in root.iterdir()})
    to_read = [item for item in entries.items() if item[0] not in wrong and (full or not item[0].endswith(".tar"))]
    at_once = 1 if full else _SMALL_FILES_AT_ONCE
    check = partial(_check_file, root, meta)
    by_file = map_over_workers(check, to_read, workers=workers, unit="file", doing="verify", at_once=at_once)
    findings += chain.from_iterable(by_file)
    in_place = layout_of(meta).is_in_place
    if in_place:
        findings += _check_media(root, meta, wrong | {name for name, _, _ in (f.partition(":") for f in findings)})
    if decode or (full and in_place):
        damaged = {name for name in (finding.partition(":")[0] for finding in findings) if not name.endswith(".tar")}
        findings += _check_shards(root, meta, wrong | damaged, workers=workers, decode=decode)
    return findings


def _check_media(root: Path, meta: dict[str, Any], unreadable: set[str]) -> list[str]:
    """Return the findings of the media files of an index: those that are missing or of another size."""
    if unreadable & {meta["files"][stem]["name"] for stem in index_files(meta)}:
        return []
    files = map_dataset(root, meta).media_files
    assert files is not None
    remedy = "restore it, or run the index again into a new folder"
    return [f"{files.location(number)}: {damage}; {remedy}" for number, damage in files.changed().items()]


def _entries(meta: dict[str, Any]) -> dict[str, _Entry]:
    """Return the files of a dataset by name: the index, the plan, then each shard's table, .idx and tar."""
    listed = [*meta["files"].values(), meta.get("plan", {"name": PLAN_NAME})]
    entries = {entry["name"]: _Entry(entry.get("bytes"), entry.get("sha256", "")) for entry in listed}
    for shard in (Shard(*fields) for fields in meta["shards"]):
        stem = Path(shard.name).stem
        entries[f"{stem}.parquet"] = _Entry(shard.table_bytes, shard.table_sha256)
        entries[f"{stem}.idx"] = _Entry(shard.idx_bytes, shard.idx_sha256)
        entries[shard.name] = _Entry(shard.bytes, shard.sha256)
    return entries


def _check_listing(entries: Mapping[str, _Entry], sizes: Mapping[str, int | None]) -> tuple[list[str], set[str]]:
    """Return the findings of a listing, and the names of the files that are missing or of another size."""
    findings: list[str] = []
    wrong: set[str] = set()
    for name, entry in entries.items():
        if name not in sizes:
            wrong.add(name)
            findings.append(f"{name}: missing; {_remedy(name)}")
        elif None not in (sizes[name], entry.bytes) and sizes[name] != entry.bytes and name != PLAN_NAME:
            wrong.add(name)
            findings.append(f"{name}: {sizes[name]} bytes, {META_NAME} says {entry.bytes}; {_remedy(name)}")
    for name in sorted(sizes.keys() - entries.keys() - {META_NAME, CURATION_NAME}):
        if name.startswith((LOCK_NAME, TEMPORARY_PREFIX)) or _SHARD.fullmatch(name):
            findings.append(f"{name}: {_AT_WORK}")
        elif not _GENERATION.fullmatch(name):
            findings.append(f"{name}: does not belong to the dataset; remove it")
    return findings, wrong


def _check_meta(root: Path, meta: dict[str, Any]) -> list[str]:
    """Return the finding of dataset.json against its checksum; in schema 1 only its settings have one."""
    if meta["schema"] > 1 and not is_sealed((root / META_NAME).read_bytes()):
        return [f"{META_NAME}: does not match its own checksum, so no other file was checked; {_AGAIN}"]
    if settings_hash(meta["settings"]) != meta["settings_hash"]:
        return [f"{META_NAME}: its settings do not match its settings_hash, so no other file was checked; {_AGAIN}"]
    return []


def _check_file(root: Path, meta: dict[str, Any], item: tuple[str, _Entry]) -> list[str]:
    """Return the finding of one file's bytes, if there is one."""
    name, entry = item
    path = root / name
    try:
        if entry.sha256:
            damage = "" if sha256_of(path) == entry.sha256 else f"its sha256 is not the one in {META_NAME}"
        else:
            damage = _damage_without_hash(path, meta)
        if damage and name == PLAN_NAME and _is_ahead(path, meta):
            return [f"{name}: {_AT_WORK}"]
    except OSError as error:
        raise_unless_of_the_file(error, path)
        return [f"{name}: cannot be read ({error.strerror}); mend the disk or the rights, or restore it from a copy"]
    return [f"{name}: {damage}; {_remedy(name)}"] if damage else []


def _damage_without_hash(path: Path, meta: dict[str, Any]) -> str:
    """Return the damage of a file whose hash dataset.json does not record, as far as the file itself shows it."""
    try:
        if path.name == PLAN_NAME:
            read_plan(path)
        elif path.suffix == ".parquet":
            _, tar = read_shard_table(path)
            if [tar.name, tar.bytes, tar.sha256, tar.num_samples] not in [fields[:4] for fields in meta["shards"]]:
                return f"it is of another tar than {META_NAME} names"
    except DatasetError as error:
        return f"damaged ({error.__cause__})"
    return ""


def _is_ahead(path: Path, meta: dict[str, Any]) -> bool:
    """Return whether a plan is that of an `--append` or `split` that has not come to its end."""
    try:
        plan = read_plan(path)
    except DatasetError:
        return False
    return plan.num_shards > len(meta["shards"]) or plan.split_rule != meta.get("split_rule")


def _remedy(name: str) -> str:
    if name == PLAN_NAME:
        return _NEW_PLAN
    return f"remove {Path(name).stem}.* and {_AGAIN}" if _SHARD.fullmatch(name) else _AGAIN


def _check_shards(
    root: Path, meta: dict[str, Any], unreadable: set[str], *, workers: int, decode: bool
) -> Iterator[str]:
    """Yield the findings of every frame of every tar that can be read."""
    if index := sorted(unreadable & {meta["files"][stem]["name"] for stem in index_files(meta)}):
        yield f"{root}: no frame was decoded because {index[0]} is damaged; {_AGAIN}, then verify"
        return
    shards = [number for number, (name, *_) in enumerate(meta["shards"]) if name not in unreadable]
    check = partial(check_frames, root, meta, decode=decode)
    yield from chain.from_iterable(
        map_over_workers(check, shards, workers=workers, unit="shard", doing="verify", at_once=1)
    )


def _verify_url(url: str) -> list[str]:
    """Return the findings of the listing and of the index files, which are fetched."""
    storage = Storage(url.rstrip("/"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with suppress(FileNotFoundError):  # which is said below
            storage.get(META_NAME, root / META_NAME)
        try:
            meta = read_meta(root)
        except DatasetError as error:
            raise DatasetError(str(error).replace(folder, url)) from error
        if findings := _check_meta(root, meta):
            return [f"{url}/{finding}" for finding in findings]
        entries = _entries(meta)
        sizes = storage.sizes(expected={name: entry.bytes for name, entry in entries.items()})
        findings, wrong = _check_listing(entries, sizes)
        for name, entry in entries.items():
            if name not in wrong and not _SHARD.fullmatch(name):
                storage.get(name, root / name)
                findings += _check_file(root, meta, (name, entry))
        if layout_of(meta).is_in_place and not findings:
            return _check_media(root, meta, set())
        return [f"{url}/{finding}" for finding in findings]
