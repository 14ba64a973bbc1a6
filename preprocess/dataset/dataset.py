"""An opened dataset finds every frame of every sample, over mapped files; `preprocess.dataset.index` opens it.

dataset = open_dataset("out/shards")
spans = dataset.spans(7, np.array([0, 4, 8]))  # the positions of three JPEGs, or of two groups, in their tar
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.dataset.layout import Layout
from preprocess.dataset.media import MediaFiles
from preprocess.dataset.schema import DatasetError, Shard

REJECTED_NAME = "rejected.parquet"

_TEXT_LOCK = threading.Lock()  # a pq.ParquetFile must not be read by two threads at once


@dataclass(frozen=True)
class Spans:
    """The positions of parts in their shard: arrays of one length, `offset` in bytes from the start of the tar."""

    part: np.ndarray  # int64, number of the part in its sample
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
    layout: Layout
    fingerprint: str
    shards: tuple[Shard, ...]
    shard: np.ndarray  # int32
    offset: np.ndarray  # int64, of the first part's data in the tar
    parts_at: np.ndarray  # int64, the first part's row in the file of parts
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
    _parts: pa.Table
    media: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # int32, file of each; of layout files
    media_files: MediaFiles | None = None  # of layout files
    url: str = ""
    bad_shards: Mapping[int, str] = field(default_factory=dict)  # left out: the number ─► what is wrong with its tar
    bad_media: Mapping[int, str] = field(default_factory=dict)  # left out: the number ─► what is wrong with the file

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, i: int) -> str:
        """Return the key of sample i: its members in the tar are `<key>.json`, then its frames or its stream."""
        return self._text("key", "keys", i)

    def name(self, i: int) -> str:
        """Return the ledger's name of sample i, or the path of its file below the root that was given."""
        return self._text("name", "names", i)

    def find(self, key: str) -> int:
        """Return the number of the sample with this key; raise DatasetError if there is none."""
        i = self.keys.index(key).as_py()
        if i < 0:
            raise DatasetError(f"{self.location}: no sample has the key {key!r} (rejected? see {REJECTED_NAME})")
        return i

    def labels_of(self, i: int) -> list[int]:
        """Return the labels of sample i: none, one, or several."""
        return self.label_values[self.label_offsets[i] : self.label_offsets[i + 1]].tolist()

    def spans(self, i: int, frames: np.ndarray) -> Spans:
        """Return the positions of the parts that hold the given frames of sample i in its shard.

        Args:
            i: the sample.
            frames: integers in [0, num_frames[i]), any order, repeats allowed.

        Returns:
            Each part once, in the order of the shard.

        Raises:
            IndexError: a frame number is out of range.
        """
        count = int(self.num_frames[i])
        requested = np.asarray(frames, np.int64)
        if requested.size and (requested.min() < 0 or requested.max() >= count):
            raise IndexError(
                f"frame indices {requested.min()}..{requested.max()} of sample {i}, which has {count} frames"
            )
        part = np.unique(self.layout.parts_of(requested))
        at = int(self.parts_at[i])
        size, crc32 = self.part_rows(at, at + int(part.max(initial=-1)) + 1)
        size = size.astype(np.int64)
        offset = self.layout.offsets(size, start=int(self.offset[i]))
        return Spans(part, offset[part], size[part], crc32[part])

    def part_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the (sizes, crc32s) of parts start ... stop of the whole dataset (`parts_at` counts them)."""
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
        """Return the (sizes, crc32s) of every batch of the file of parts, mapped."""
        return [(mapped_numbers(batch["size"]), mapped_numbers(batch["crc32"])) for batch in self._parts.to_batches()]

    @cached_property
    def _batch_ends(self) -> np.ndarray:
        return np.cumsum([len(size) for size, _ in self._batches], dtype=np.int64)

    @property
    def location(self) -> str:
        """Return the folder or URL of the dataset."""
        return self.url or str(self.root)

    def shard_path(self, shard: int) -> Path:
        """Return the path of the tar with this number (a value of column `shard`), of a dataset in a folder."""
        return self.root / self.shards[shard].name

    def media_name(self, number: int) -> str:
        """Return the path or URL of a media file of an index (a value of `media`)."""
        assert self.media_files is not None
        return self.media_files.location(number)

    def _text(self, column: str, whole: str, i: int) -> str:
        """Return one text of the index; its row group is kept, but not the column, which may be the largest of all."""
        if whole in vars(self):
            return str(vars(self)[whole][i])
        with _TEXT_LOCK:
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
        """Return the keys of all samples; they are read at the first call."""
        return pq.read_table(self.root / self.meta["files"]["index"]["name"], columns=["key"])["key"]

    @cached_property
    def names(self) -> pa.ChunkedArray:
        """Return the names of all samples; they are read at the first call."""
        return pq.read_table(self.root / self.meta["files"]["index"]["name"], columns=["name"])["name"]


def mapped_numbers(array: Any) -> np.ndarray:
    """Return the numbers of an array without nulls as they lie in the file.

    `to_numpy` would import pandas, which takes half a second."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    buffer = array.buffers()[1]
    if not len(array):
        return np.empty(0, dtype)
    view: np.ndarray = np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)
    return view
