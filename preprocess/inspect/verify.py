"""A dataset ─► what is wrong with it, one line a finding with its remedy; an empty list means whole.

    verify(Path("out/shards"))                            # sizes and structure
    verify(Path("out/shards"), full=True, decode=True)    # every byte, every frame

Fast: dataset.json and the index in full; of every shard its table and .idx in full, of its tar the size, some headers
and the end: it reads a few kilobytes of a tar, not the frames. Full: the sha256 of every file and the crc32 of every
frame. Decode: every frame. What is behind a URL is checked as far as the listing and the index go.
"""

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mae3d.io.files import TEMPORARY_PREFIX, sha256_of
from mae3d.io.storage import Storage, is_url
from mae3d.video.errors import raise_unless_of_the_file
from preprocess.dataset.index import META_NAME, PLAN_NAME, REJECTED_NAME, Dataset, DatasetError, map_dataset, read_meta
from preprocess.dataset.writer import settings_hash
from preprocess.inspect.verify_shard import check_shard
from preprocess.jobs.lock_store import LOCK_NAME
from preprocess.workers.executors import map_over_workers

_GENERATION = re.compile(r"(index|rows|frames)-[0-9a-f]{16}\.(parquet|arrow)")  # older ones may still be in use
_SHARD = re.compile(r"shard-\d{5,}\.(tar|idx|parquet)")
_AGAIN = "run the build again"
_NEW_PLAN = "restore it from a copy, or build into a new folder: without it no build can go on here"
_PLAN_METADATA = 1 << 30
_FAST_AT_ONCE = 64  # shards that a process is sent at a time: each takes some milliseconds


def verify(root: Path | str, *, full: bool = False, decode: bool = False, workers: int = 1) -> list[str]:
    """Checks a dataset.

    Args:
        root: its folder, or a URL: then only what a listing and the index tell.
        full: read every byte and compare the checksums.
        decode: decode every frame strictly and compare its size.
        workers: processes there may be; fewer where they would take longer to start than to be done.

    Returns:
        One line for each finding: the file, what is wrong with it, what to do.

    Raises:
        DatasetError: there is no dataset, or its dataset.json cannot be read.
        ValueError: a URL, and `full` or `decode`; fewer than one worker.
        OSError: a file cannot be read.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers} must be at least 1")
    if is_url(str(root)):
        if full or decode:
            raise ValueError(f"{root}: --full and --decode read every byte; copy it to a folder and verify that")
        return _verify_url(str(root))
    root = Path(root)
    meta = read_meta(root)
    sizes = {path.name: path.stat().st_size for path in root.iterdir()}
    wrong = dict(_check_sizes(meta, sizes))
    found = [f"{name}: {finding}; {_remedy(name)}" for name, finding in wrong.items()]
    found += [*_check_foreign(meta, sizes), *_check_index(root, meta, wrong)]
    if any(meta["files"][stem]["name"] in wrong for stem in ("index", "rows", "frames")):
        return [*found, f"{root}: its index is not whole, so the shards were not looked into; {_AGAIN}, then verify"]
    numbers = range(len(meta["shards"]))
    check = partial(check_shard, root, full=full, decode=decode)
    at_once = 1 if full or decode else _FAST_AT_ONCE
    return found + list(
        chain.from_iterable(map_over_workers(check, numbers, workers=workers, unit="shard", at_once=at_once))
    )


def _check_sizes(meta: dict[str, Any], sizes: Mapping[str, int | None]) -> Iterator[tuple[str, str]]:
    """(name, finding) of every file that dataset.json names and that is missing or of another size."""
    wanted = [(entry["name"], entry["bytes"]) for entry in meta["files"].values()]
    for name, num_bytes in [*wanted, *((name, num_bytes) for name, num_bytes, *_ in meta["shards"])]:
        if name not in sizes:
            yield name, f"missing, though {META_NAME} names it"
        elif sizes[name] not in (None, num_bytes):
            yield name, f"{sizes[name]} bytes, {META_NAME} says {num_bytes}"


def _remedy(name: str) -> str:
    return f"restore it from a copy or {_AGAIN}" if name.endswith(".tar") else _AGAIN


def _check_foreign(meta: dict[str, Any], sizes: Mapping[str, int | None]) -> Iterator[str]:
    """Files that do not belong there, and the plan, which must."""
    known = {META_NAME, PLAN_NAME} | {entry["name"] for entry in meta["files"].values()}
    for name, *_ in meta["shards"]:
        known |= {str(Path(name).with_suffix(suffix)) for suffix in (".tar", ".idx", ".parquet")}
    for name in sorted(sizes.keys() - known):
        if name.startswith((LOCK_NAME, TEMPORARY_PREFIX)) or _SHARD.fullmatch(name):
            yield f"{name}: of a build that is at work or was stopped; wait for its end, or {_AGAIN}"
        elif not _GENERATION.fullmatch(name):
            yield f"{name}: does not belong to the dataset; remove it"
    if PLAN_NAME not in sizes:
        yield f"{PLAN_NAME}: missing; {_NEW_PLAN}"


def _check_index(root: Path, meta: dict[str, Any], wrong: dict[str, str]) -> Iterator[str]:
    """Hashes of the index files, and dataset.json against them; what is not whole is added to `wrong`."""
    for entry in meta["files"].values():
        if entry["name"] not in wrong and _sha256(root / entry["name"]) != entry["sha256"]:
            wrong[entry["name"]] = "damaged"
            yield f"{entry['name']}: its sha256 is not the one in {META_NAME}; {_AGAIN}"
    yield from _check_plan(root / PLAN_NAME, meta)
    if settings_hash(meta["settings"]) != meta["settings_hash"]:
        yield f"{META_NAME}: its settings are not those of its settings_hash; {_AGAIN}"
    if all(meta["files"][stem]["name"] not in wrong for stem in ("index", "rows", "frames")):
        dataset = map_dataset(root, meta)
        there = _totals(dataset)
        if REJECTED_NAME not in wrong:
            there |= _problems(pq.ParquetFile(root / REJECTED_NAME).read(["reason", "num_frames"]))
        for name, value in there.items():
            told = meta["totals"].get(name)
            if told != value and not (name == "seconds" and abs(told - value) < 0.01):  # the order of the sum
                yield f"{META_NAME}: {name} = {told}, the files say {value}; {_AGAIN}"
        counts = np.bincount(dataset.shard, minlength=len(dataset.shards)).tolist()
        for shard, count in zip(dataset.shards, counts, strict=False):
            if shard.num_samples != count:
                yield f"{META_NAME}: {shard.num_samples} samples in {shard.name}, the index says {count}; {_AGAIN}"
        if np.any(np.diff(dataset.shard) < 0) or len(counts) > len(dataset.shards):
            yield f"{meta['files']['rows']['name']}: its samples are not in the order of the shards; {_AGAIN}"


def _sha256(path: Path) -> str:
    """ "" for a file that cannot be read; OSError if its disk has gone."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise_unless_of_the_file(error, path)
        return ""


def _check_plan(path: Path, meta: dict[str, Any]) -> Iterator[str]:
    """Its pages against their own checksums; its label names."""
    if not path.is_file():
        return
    try:
        plan = pq.ParquetFile(path, page_checksum_verification=True, thrift_string_size_limit=_PLAN_METADATA)
        for group in range(plan.num_row_groups):  # a plan of millions of samples does not fit everywhere
            plan.read_row_group(group)
        label_names = json.loads(plan.schema_arrow.metadata[b"label_names"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        yield f"{PLAN_NAME}: damaged ({error}); {_NEW_PLAN}"
        return
    if label_names[: len(meta["label_names"])] != meta["label_names"]:  # one that was appended to may have more
        yield f"{META_NAME}: its label_names are not those of {PLAN_NAME}; {_AGAIN}"


def _totals(dataset: Dataset) -> dict[str, Any]:
    timed = np.isfinite(dataset.fps)
    seconds = math.fsum((dataset.num_frames[timed] / dataset.fps[timed]).tolist())
    return {
        "samples": len(dataset),
        "frames": int(dataset.num_frames.sum(dtype=np.int64)),
        "bytes": sum(shard.bytes for shard in dataset.shards),
        "seconds": round(seconds, 3),
        "samples_without_fps": int((~timed).sum()),
    }


def _problems(rejected: pa.Table) -> dict[str, Any]:
    lost, kept = pc.field("num_frames") == 0, pc.field("num_frames") > 0
    counts = {"rejected": rejected.filter(lost), "remarks": rejected.filter(kept)}
    return {name: dict(sorted(Counter(table["reason"].to_pylist()).items())) for name, table in counts.items()}


def _verify_url(url: str) -> list[str]:
    """The listing, and the index files, which are fetched for it."""
    storage = Storage(url.rstrip("/"))
    sizes = storage.sizes()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in (META_NAME, PLAN_NAME):
            if name in sizes:
                storage.get(name, root / name)
        try:
            meta = read_meta(root)
        except DatasetError as error:
            raise DatasetError(str(error).replace(folder, url)) from error
        wrong = dict(_check_sizes(meta, sizes))
        found = [f"{url}/{name}: {finding}; {_remedy(name)}" for name, finding in wrong.items()]
        for name, *_ in meta["shards"]:
            beside = (str(Path(name).with_suffix(suffix)) for suffix in (".idx", ".parquet"))
            found += [f"{url}/{one}: missing; remove {name} and {_AGAIN}" for one in beside if one not in sizes]
        for entry in meta["files"].values():
            if entry["name"] not in wrong:
                storage.get(entry["name"], root / entry["name"])
        checks = [*_check_foreign(meta, sizes), *_check_index(root, meta, wrong)]
        return [*found, *(f"{url}/{finding}" for finding in checks)]
