"""The disk contract: what `preprocess` writes and everything else reads.

A dataset is a folder. It opens in milliseconds whatever its size: all that grows with it is memory-mapped and
shared by the ranks of a node:

    shard-00000.tar / .idx / .parquet   the frames; DALI's index; the shard's own rows (its presence = done)
    index-<hash>.parquet                one row a sample, for people and tools; the keys and names
    rows-<hash>.arrow                   the same rows without the strings, mapped
    frames-<hash>.arrow                 one row a frame (size, crc32), mapped
    rejected.parquet                    what was left out, where and why
    dataset.json                        replaced last: what it names is the dataset

    dataset = open_dataset("out/shards")
    spans = dataset.frames(7, np.array([0, 4, 8]))  # where three JPEGs lie in their tar

Imports numpy and pyarrow only: trainers read through this module.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from preprocess.files import sha256_of
from preprocess.tables import FRAMES_SCHEMA, ROWS_SCHEMA, SCHEMA_VERSION, DatasetError, Shard

LAYOUT = "jpeg"
META_NAME = "dataset.json"
PLAN_NAME = "plan.parquet"
REJECTED_NAME = "rejected.parquet"

BLOCK = 512  # tar block: a member is one header block and its data, padded to whole blocks
_FILES = {"index", "rows", "frames", "rejected"}
_META_KEYS = {"settings", "settings_hash", "label_names", "split_names", "totals", "files", "shards"}
_LISTED = 10  # bad shards that a message names
_HASH_AT_OPEN = 64 << 20  # larger index files: the size at every open, the hash in `verify`


@dataclass(frozen=True)
class FrameSpans:
    """Where frames lie in their shard: arrays of one length, `offset` in bytes from the start of the tar."""

    offset: np.ndarray  # int64
    size: np.ndarray  # int64
    crc32: np.ndarray  # uint32


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset: one generation of the index, immutable; arrays have length N unless noted.

    The arrays are read-only views of mapped files: processes of one node share their memory. `shard` holds
    positions in `shards`; `splits` holds positions in `split_names` (one of which is "" where samples have no
    split); the labels of sample i are `label_values[label_offsets[i]:label_offsets[i + 1]]`.
    """

    root: Path  # folder of the index files; of the shards, too, unless `url` says where they are
    meta: dict[str, Any]
    fingerprint: str
    shards: tuple[Shard, ...]
    shard: np.ndarray  # int32
    offset: np.ndarray  # int64, of the first frame's data in the tar
    frames_at: np.ndarray  # int64
    num_frames: np.ndarray  # int32
    first: np.ndarray  # int64, the source's number of the first frame
    fps: np.ndarray  # float64, NaN = unknown
    start_s: np.ndarray  # float64, NaN = unknown
    width: np.ndarray  # int32
    height: np.ndarray  # int32
    label_offsets: np.ndarray  # int64 (N + 1,)
    label_values: np.ndarray  # int32
    splits: np.ndarray  # int32
    split_names: list[str]
    label_names: list[str]
    _frames: pa.Table
    url: str = ""
    bad_shards: Mapping[int, str] = field(default_factory=dict)  # left out: the number ─► what is wrong with its tar

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, i: int) -> str:
        """The key of sample i: its members in the tar are `<key>.json`, `<key>.000000.jpg`, ..."""
        return self._text("key", "keys", i)

    def name(self, i: int) -> str:
        """The ledger's name of sample i, or the path of its file below the root that was given."""
        return self._text("name", "names", i)

    def find(self, key: str) -> int:
        """The number of the sample with this key; DatasetError if there is none."""
        i = self.keys.index(key).as_py()
        if i < 0:
            raise DatasetError(f"{self.location}: no sample has the key {key!r} (rejected? see {REJECTED_NAME})")
        return i

    def labels_of(self, i: int) -> list[int]:
        """The labels of sample i: none, one, or several."""
        return self.label_values[self.label_offsets[i] : self.label_offsets[i + 1]].tolist()

    def frames(self, i: int, frame_indices: np.ndarray) -> FrameSpans:
        """Where the given frames of sample i lie in its shard.

        Args:
            i: the sample.
            frame_indices: integers in [0, num_frames[i]), any order, repeats allowed.

        Raises:
            IndexError: a frame index is out of range.
        """
        count = int(self.num_frames[i])
        wanted = np.asarray(frame_indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise IndexError(f"frame indices {wanted.min()}..{wanted.max()} of sample {i}, which has {count} frames")
        at = int(self.frames_at[i])
        size, crc32 = self.frame_rows(at, at + int(wanted.max(initial=-1)) + 1)
        size = size.astype(np.int64)
        offset = frame_offsets(size, start=int(self.offset[i]))
        return FrameSpans(offset[wanted], size[wanted], crc32[wanted])

    def frame_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(sizes, crc32s) of the frames with numbers start ... stop of the whole dataset (`frames_at` counts them)."""
        parts = []
        batch = int(np.searchsorted(self._batch_ends, start, side="right"))
        while start < stop:
            size, crc32 = self._batches[batch]
            end = int(self._batch_ends[batch])
            first = end - len(size)
            parts.append((size[start - first : stop - first], crc32[start - first : stop - first]))
            start, batch = end, batch + 1
        if len(parts) == 1:
            return parts[0]
        none = np.empty(0, np.int32), np.empty(0, np.uint32)
        sizes, crc32s = zip(*(parts or [none]), strict=True)
        return np.concatenate(sizes), np.concatenate(crc32s)

    @cached_property
    def _batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(sizes, crc32s) of every batch of the frames file, mapped."""
        return [(_view(batch["size"]), _view(batch["crc32"])) for batch in self._frames.to_batches()]

    @cached_property
    def _batch_ends(self) -> np.ndarray:
        return np.cumsum([len(size) for size, _ in self._batches], dtype=np.int64)

    @property
    def location(self) -> str:
        """Where the dataset is: its folder, or its URL."""
        return self.url or str(self.root)

    def shard_path(self, shard: int) -> Path:
        """The tar with this number (a value of column `shard`), of a dataset in a folder."""
        return self.root / self.shards[shard].name

    def _text(self, column: str, whole: str, i: int) -> str:
        """One text of the index; its row group is kept, not the column, which may be larger than all else together."""
        if whole in vars(self):
            return str(vars(self)[whole][i])
        group = int(np.searchsorted(self._group_ends, i, side="right"))
        if column not in self._texts or self._texts[column][0] != group:
            self._texts[column] = group, self._index_file.read_row_group(group, columns=[column])[column]
        texts = self._texts[column][1]
        return str(texts[i - int(self._group_ends[group]) + len(texts)])

    @cached_property
    def _texts(self) -> dict[str, tuple[int, pa.ChunkedArray]]:
        return {}

    @cached_property
    def _index_file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.root / self.meta["files"]["index"]["name"])

    @cached_property
    def _group_ends(self) -> np.ndarray:
        groups = self._index_file.metadata
        return np.cumsum([groups.row_group(group).num_rows for group in range(groups.num_row_groups)])

    @cached_property
    def keys(self) -> pa.ChunkedArray:
        """The keys of all samples; read when first asked for."""
        return pq.read_table(self.root / self.meta["files"]["index"]["name"], columns=["key"])["key"]

    @cached_property
    def names(self) -> pa.ChunkedArray:
        """The names of all samples; read when first asked for."""
        return pq.read_table(self.root / self.meta["files"]["index"]["name"], columns=["name"])["name"]


def frame_offsets(sizes: np.ndarray, *, start: int) -> np.ndarray:
    """Offsets of the data of consecutive tar members: one header block and whole data blocks apart.

    Args:
        sizes: int64 (n,), bytes of each member's data.
        start: offset of the first member's data.
    """
    steps = BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK
    return start + np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])[: len(sizes)]


def open_dataset(root: str | Path, *, exclude_bad_shards: bool = False) -> Dataset:
    """Opens the dataset in a folder, checking all that can be checked without reading the shards.

    The hashes of index files beyond 64 MiB are left to `python -m preprocess verify`.

    Args:
        root: the folder.
        exclude_bad_shards: as `check_shards`.

    Raises:
        DatasetError: no such folder, not a dataset, an unfinished build, another schema version or layout, an index
            file that is missing or has another size or hash than dataset.json says, or bad shards (`check_shards`).
    """
    root = Path(root)
    meta = read_meta(root)
    for stem in ("index", "rows", "frames"):  # what was rejected is no matter here
        entry = meta["files"][stem]
        check_file(root / entry["name"], entry["bytes"], entry["sha256"])
    sizes: dict[str, int | None] = {}
    for name, *_ in meta["shards"]:
        with suppress(FileNotFoundError):
            sizes[name] = (root / name).stat().st_size
    return map_dataset(root, meta, bad_shards=check_shards(str(root), meta, sizes, exclude_bad=exclude_bad_shards))


def check_shards(
    location: str, meta: dict[str, Any], sizes: Mapping[str, int | None], *, exclude_bad: bool
) -> dict[int, str]:
    """The shards that are missing or of another size than dataset.json says: their numbers ─► what is wrong with them.

    Args:
        location: the folder or URL, for messages.
        meta: what `read_meta` or `parse_meta` returned.
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
        raise DatasetError(
            f"{location}: {len(bad)} of {len(shards)} shards, {lost:,} of {total:,} samples, are missing or not whole; "
            f"{remedy}:" + _lines([f"{location}/{shards[number].name}: {what}" for number, what in bad.items()])
        )
    return bad


def _lines(listed: Sequence[str]) -> str:
    more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
    return "".join(f"\n  {line}" for line in [*listed[:_LISTED], *more])


def map_dataset(
    root: Path, meta: dict[str, Any], *, url: str = "", bad_shards: Mapping[int, str] | None = None
) -> Dataset:
    """A dataset over checked index files.

    Args:
        root: the folder of the index files.
        meta: what `read_meta` or `parse_meta` returned.
        url: where the shards are, if that is not `root`.
        bad_shards: what `check_shards` returned.

    Raises:
        DatasetError: an index file is none, or has other columns.
    """
    rows = _map_table(root / meta["files"]["rows"]["name"], ROWS_SCHEMA)
    columns = {name: _view(rows[name].chunk(0)) for name in rows.column_names if name != "labels"}
    labels: Any = rows["labels"].chunk(0)  # a LargeListArray
    return Dataset(
        root=root,
        meta=meta,
        fingerprint=_fingerprint(meta),
        shards=tuple(Shard(*entry) for entry in meta["shards"]),
        label_offsets=_view(labels.offsets),
        label_values=_view(labels.values),
        splits=columns.pop("split"),
        split_names=list(meta["split_names"]),
        label_names=list(meta["label_names"]),
        _frames=_map_table(root / meta["files"]["frames"]["name"], FRAMES_SCHEMA),
        url=url,
        bad_shards=bad_shards or {},
        **columns,
    )


def read_meta(root: Path) -> dict[str, Any]:
    """dataset.json of a folder, its schema version and layout checked; raises DatasetError."""
    path = root / META_NAME
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; `python -m preprocess build --out {root}` makes a dataset")
    if not path.is_file():
        if (root / PLAN_NAME).is_file():
            raise DatasetError(f"{root}: an unfinished build ({PLAN_NAME} but no {META_NAME}); run the build again")
        raise DatasetError(f"{root}: not a dataset (no {META_NAME}); give the --out folder of `preprocess build`")
    return parse_meta(path.read_bytes(), where=path)


def parse_meta(text: bytes, *, where: Path | str) -> dict[str, Any]:
    """dataset.json from its bytes, schema version and layout checked; raises DatasetError, which names `where`."""
    try:
        meta = json.loads(text)
        version, layout = meta["schema"], meta["layout"]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where}: cannot be read ({error}); run the build again") from error
    if version != SCHEMA_VERSION or layout != LAYOUT:
        raise DatasetError(
            f"{where}: schema {version!r}, layout {layout!r}; this program reads schema {SCHEMA_VERSION}, "
            f"layout {LAYOUT!r}: build it again, or use the version that wrote it"
        )
    if lacking := sorted((_META_KEYS - meta.keys()) | (_FILES - dict(meta.get("files", {})).keys())):
        raise DatasetError(f"{where}: has no {', '.join(lacking)}; run the build again")
    return meta


def _fingerprint(meta: dict[str, Any]) -> str:
    files = meta["files"]
    parts = [
        meta["schema"],
        meta["layout"],
        files["rows"]["sha256"],
        files["index"]["sha256"],
        files["frames"]["sha256"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_file(path: Path, num_bytes: int, sha256: str | None = None) -> None:
    """Raises DatasetError unless a file is there with this size, and with this hash if it is not too large."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing, though {META_NAME} names it; restore it or run the build again") from None
    if found != num_bytes:
        raise DatasetError(f"{path}: {found} bytes, {META_NAME} says {num_bytes}; restore it or run the build again")
    if sha256 and num_bytes <= _HASH_AT_OPEN and sha256_of(path) != sha256:
        raise DatasetError(f"{path}: its sha256 is not the one in {META_NAME}; restore it or run the build again")


def _map_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A mapped Arrow file: no bytes are read before they are used."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: not an Arrow file ({error}); run the build again") from error
    if not table.schema.equals(schema):
        raise DatasetError(f"{path}: its columns are not those of schema {SCHEMA_VERSION}; run the build again")
    return table


def _view(array: Any) -> np.ndarray:
    """The numbers of an array without nulls as they lie in the file; `to_numpy` would import pandas, half a second."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    buffer = array.buffers()[1]
    if not len(array):
        return np.empty(0, dtype)
    view: np.ndarray = np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)
    return view
