"""A dataset's samples are looked at once: near-duplicates, still, black and frozen clips, cuts ─► curation.parquet.

    counts = curate(Path("out/shards"), CurateSettings(), workers=8)      # {"near_duplicate": 12, "still": 3, ...}

Nothing is deleted: `--data.select.without near_duplicate black` leaves samples out. Shards are measured one by one, by
any number of threads, into files of their own, from which a killed run goes on; the finished file is the same, byte by
byte, for any number of workers, and holds for these shards alone.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.bounds import Bounds, check_number
from mae3d.io.files import TEMPORARY_PREFIX, replace_file
from mae3d.io.lock import hold
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore
from mae3d.io.progress import followed
from mae3d.io.resources import require_disk, require_memory
from mae3d.io.storage import is_url
from preprocess.dataset.curation import CURATION_NAME, CURATION_SCHEMA, FLAGS, METADATA, described_by, state_of
from preprocess.dataset.index import Dataset, map_dataset, open_dataset
from preprocess.dataset.schema import DatasetError, shard_name
from preprocess.inspect.curate_options import CurateSettings
from preprocess.inspect.measures import FEW, SMALL, measure, thumbnails
from preprocess.inspect.near_duplicates import find_duplicates
from preprocess.workers.executors import map_over_workers

VERSION = 1  # of the measures: a file of another one is made again
_PICTURE_BYTES = FEW * SMALL * SMALL
_ROW_BYTES = 600  # of a sample in memory while duplicates are searched: its hashes, sorted lists and columns
_PARTS = f"{TEMPORARY_PREFIX}curation-"


def curate(root: Path, settings: CurateSettings, *, workers: int = 1) -> tuple[dict[str, int], bool]:
    """Flag the samples of a dataset in curation.parquet.

    Args:
        root: the dataset's folder.
        settings: what the flags depend on.
        workers: threads at most.

    Returns:
        The number of samples by flag, and of those of which no frame decodes as `unreadable`; and whether the file was
        there already.

    Raises:
        DatasetError: there is no dataset, or shards are missing; PySceneDetect is not installed; another program's file
            is in the way.
        Locked: a run is at work there.
        OSError: a shard cannot be read, or the folder cannot be written.
    """
    check_number("workers", workers, Bounds(least=1, most=4096))
    if is_url(str(root)):
        raise DatasetError(f"{root}: curate reads every frame; run it on a copy in a folder, and copy {CURATION_NAME}")
    dataset, path = open_dataset(root), root / CURATION_NAME
    described = {"version": VERSION, "state": state_of(dataset), "settings": asdict(settings)}
    if path.exists():
        there = _described(path)
        if there == described:
            return counts_of(path), True
    if settings.cuts:
        _require_scenedetect()
    count = len(dataset)
    require_memory(_ROW_BYTES * count, f"{root}: near-duplicates of {count:,} samples", "curate a part of them")
    require_disk(root, 2 * _PICTURE_BYTES * count, f"thumbnails of {count:,} samples", "free it, and run this again")
    with hold(FolderLockStore(root), LOCK_NAME, job="curate", excludes=True):
        _measure_shards(dataset, described, settings, workers=workers)
        table = _flagged(dataset, settings)
        with replace_file(path) as aside:
            pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(described)}), aside)
        for number in range(len(dataset.shards)):
            _part(root, number).unlink(missing_ok=True)
    return counts_of(path), False


def counts_of(path: Path) -> dict[str, int]:
    """Return the number of samples by flag in a finished file, and how many were unreadable."""
    table = pq.read_table(path, columns=[*FLAGS, "frames_read", "frames_damaged"])
    counts = {name: int(np.count_nonzero(table[name].to_numpy() == 1)) for name in FLAGS}
    lost = table["frames_read"].to_numpy() == table["frames_damaged"].to_numpy()
    return counts | {"unreadable": int(np.count_nonzero(lost))}


def _described(path: Path) -> dict[str, Any]:
    with suppress(pa.ArrowException):
        if described := described_by(pq.read_schema(path)):
            return described
    raise DatasetError(f"{path}: not replaced, because MAE3D has not made it: move it away")


def _require_scenedetect() -> None:
    try:
        import scenedetect.detectors  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            "cuts are found by PySceneDetect, which is not installed: pip install 'mae3d[curate]', or leave the flag "
            "out with --no-cuts"
        ) from error


def _part(root: Path, number: int) -> Path:
    return root / f"{_PARTS}{shard_name(number)}.parquet"


def _measure_shards(dataset: Dataset, described: dict[str, Any], settings: CurateSettings, *, workers: int) -> None:
    """Make the file of each shard that has none of these settings yet."""
    root = dataset.root
    kind = described | {"state": ""}  # of one shard, which others do not change
    missing = [number for number in range(len(dataset.shards)) if not _is_done(dataset, number, kind)]
    task = partial(_measure_shard, root, dataset.meta, kind, settings)
    for _ in map_over_workers(task, missing, workers=workers, unit="shard", doing="curate", at_once=1):
        pass


def _kind_of(dataset: Dataset, number: int, kind: dict[str, Any]) -> bytes:
    shard = dataset.shards[number]
    return json.dumps(kind | {"shard": [shard.name, shard.num_samples, shard.sha256]}).encode()


def _is_done(dataset: Dataset, number: int, kind: dict[str, Any]) -> bool:
    with suppress(OSError, pa.ArrowException):
        metadata = pq.read_schema(_part(dataset.root, number)).metadata or {}
        return metadata.get(METADATA) == _kind_of(dataset, number, kind)
    return False


def _measure_shard(
    root: Path, meta: dict[str, Any], kind: dict[str, Any], settings: CurateSettings, number: int
) -> None:
    dataset = map_dataset(root, meta)  # one per call, because an opened dataset belongs to one thread
    start, stop = np.searchsorted(dataset.shard, [number, number + 1]).tolist()
    rows = []
    for i in range(start, stop):
        one = measure(*thumbnails(dataset, i, most=settings.frames), dataset, i, settings)
        rows.append(vars(one) | {"hashes": one.hashes.tobytes(), "pictures": one.pictures.tobytes()})
    schema = pa.schema(
        [
            *(pa.field(name, pa.float32()) for name in ("motion", "frozen_s", "frozen_share", "black_share")),
            pa.field("cut_frames", pa.list_(pa.int32())),
            *(pa.field(name, pa.int32()) for name in ("frames_read", "frames_damaged")),
            *(pa.field(name, pa.binary()) for name in ("hashes", "pictures")),
            pa.field("is_flat", pa.bool_()),
        ],
        metadata={METADATA: _kind_of(dataset, number, kind)},
    )
    with replace_file(_part(root, number)) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema), aside)


def _flagged(dataset: Dataset, settings: CurateSettings) -> pa.Table:
    """Return the rows of curation.parquet from the files of all shards."""
    count = len(dataset)
    hashes, flat = np.zeros((count, FEW), np.uint64), np.zeros(count, bool)
    columns: list[pa.Table] = []
    with tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=dataset.root) as file:
        file.truncate(max(1, count * _PICTURE_BYTES))
        pictures = np.memmap(file, np.uint8, "r+", shape=(count, FEW, SMALL, SMALL)) if count else np.zeros(0)
        at = 0
        for number in followed(range(len(dataset.shards)), "shard", doing="thumbnails"):
            table = pq.read_table(_part(dataset.root, number), partitioning=None)
            for of_hash, of_pictures, is_flat in zip(
                *(table[name].to_pylist() for name in ("hashes", "pictures", "is_flat")), strict=True
            ):
                hashes[at] = np.frombuffer(of_hash, np.uint64)
                pictures[at] = np.frombuffer(of_pictures, np.uint8).reshape(FEW, SMALL, SMALL)
                flat[at] = is_flat
                at += 1
            columns.append(table.drop_columns(["hashes", "pictures", "is_flat"]))
        stays, distance = find_duplicates(hashes, pictures, flat, settings)
    return _as_table(dataset, pa.concat_tables(columns), stays, distance, settings)


def _as_table(
    dataset: Dataset, measured: pa.Table, stays: np.ndarray, distance: np.ndarray, settings: CurateSettings
) -> pa.Table:
    """Return the rows with their flags."""
    motion, frozen_s, share, black = (
        measured[name].to_numpy() for name in ("motion", "frozen_s", "frozen_share", "black_share")
    )
    duplicate = stays != np.arange(len(stays))
    cuts: Sequence[list[int] | None] = measured["cut_frames"].to_pylist()
    seconds = [
        None if frames is None or not np.isfinite(fps) else [frame / fps for frame in frames]
        for frames, fps in zip(cuts, dataset.fps.tolist(), strict=True)
    ]
    frozen = (frozen_s >= settings.frozen_seconds) | (share >= settings.frozen_share)
    columns: dict[str, Any] = {
        "key": dataset.keys,
        "near_duplicate": duplicate,
        "still": motion < settings.still_levels,
        "black": black >= settings.black_share,
        "frozen": frozen & (share > 0),
        "cut": [None if frames is None else bool(frames) for frames in cuts],
        "duplicate_of": [dataset.key(row) if is_one else None for row, is_one in zip(stays, duplicate, strict=True)],
        "distance": pa.array(distance, from_pandas=True),
        "motion": pa.array(motion, from_pandas=True),
        "frozen_s": pa.array(frozen_s, from_pandas=True),
        "frozen_share": share,
        "black_share": black,
        "cut_frames": measured["cut_frames"],
        "cut_s": seconds,
        "frames_read": measured["frames_read"],
        "frames_damaged": measured["frames_damaged"],
    }
    arrays = [
        pa.chunked_array([columns[f.name]], f.type)
        if isinstance(columns[f.name], pa.Array)
        else columns[f.name]
        if isinstance(columns[f.name], pa.ChunkedArray)
        else pa.chunked_array([pa.array(columns[f.name], f.type)])
        for f in CURATION_SCHEMA
    ]
    return pa.table([array.combine_chunks() for array in arrays], schema=CURATION_SCHEMA)
