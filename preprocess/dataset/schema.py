"""The columns of all files of the disk contract are defined, and the table beside each tar is written and read.

write_shard_table(out / "shard-00003.parquet", rows, tar_bytes=..., tar_sha256=...)
table, shard = read_shard_table(out / "shard-00003.parquet")
"""

import errno
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.files import replace_file
from preprocess.dataset.layout import JPEG, Layout

SCHEMA_VERSION = 2
_LISTED = 10  # files that a message names
READABLE_SCHEMAS = (1, 2)  # 2 adds the sizes and hashes of .idx, shard tables and plan, and a checksum of dataset.json

# list[Any]: the stubs of pyarrow cannot join fields of two types.
_SAMPLE_FIELDS: list[Any] = [
    pa.field("offset", pa.int64()),  # of the first part's data in its tar
    pa.field("num_frames", pa.int32()),
    pa.field("first", pa.int64()),  # the source's frame number of the first frame
    pa.field("fps", pa.float64()),  # of the stored frames; NaN = unknown
    pa.field("start_s", pa.float64()),  # time of the first frame in the source; NaN = unknown
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
]
_PART_FIELDS: list[Any] = [pa.field("size", pa.int32()), pa.field("crc32", pa.uint32())]
_WHERE_FIELDS: list[Any] = [
    pa.field("file", pa.string()),  # the ledger or list that named it, or the media file
    pa.field("line", pa.int32()),  # 1-based; -1 = none
    pa.field("frame", pa.int64()),  # frame of the source where it broke; -1 = none or not known
    pa.field("reason", pa.string()),  # one short word for counting; "" = nothing to report
    pa.field("message", pa.string()),  # the decoder's own words where there are any
]
SHARD_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("name", pa.string()),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("split", pa.string()),
        *_SAMPLE_FIELDS,
        pa.field("sizes", pa.list_(pa.int32())),  # of every part (preprocess.dataset.layout)
        pa.field("crc32s", pa.list_(pa.uint32())),
        *_WHERE_FIELDS,
    ]
)
_MEDIA_FIELDS: list[Any] = [  # of a layout in place: the file that holds the sample
    pa.field("media_root", pa.string()),  # a folder, or a URL
    pa.field("media_path", pa.string()),  # below it
    pa.field("media_bytes", pa.int64()),
]
PARTS_SCHEMA = pa.schema(_PART_FIELDS)
_MEDIA_COLUMNS: list[Any] = [
    pa.field("root", pa.int32()),  # position in dataset.json's media_roots
    pa.field("path", pa.string()),
    pa.field("bytes", pa.int64()),
]
MEDIA_SCHEMA = pa.schema(_MEDIA_COLUMNS)
# num_frames > 0 here: the sample was kept, with a remark (damaged: not all of it; mixed_sizes).
REJECTED_SCHEMA = pa.schema(
    [pa.field("key", pa.string()), pa.field("name", pa.string()), pa.field("num_frames", pa.int32()), *_WHERE_FIELDS]
)


def shard_schema(layout: Layout) -> pa.Schema:
    """Return the columns of shard-NNNNN.parquet."""
    return pa.schema([*SHARD_SCHEMA, *_MEDIA_FIELDS]) if layout.is_in_place else SHARD_SCHEMA


def index_schema(layout: Layout) -> pa.Schema:
    """Return the columns of index-<hash>.parquet."""
    return pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("name", pa.string()),
            pa.field("labels", pa.list_(pa.int32())),
            pa.field("split", pa.dictionary(pa.int32(), pa.string())),
            pa.field("shard", pa.int32()),
            pa.field(layout.at, pa.int64()),  # the first part's row in frames- or groups-<hash>.arrow
            *_SAMPLE_FIELDS,
        ]
    )


def rows_schema(layout: Layout) -> pa.Schema:
    """Return the columns of rows-<hash>.arrow."""
    return pa.schema(
        [
            pa.field("labels", pa.large_list(pa.int32())),
            pa.field("split", pa.int32()),  # position in dataset.json's split_names
            pa.field("shard", pa.int32()),
            pa.field(layout.at, pa.int64()),
            *_SAMPLE_FIELDS,
            *([pa.field("media", pa.int32())] if layout.is_in_place else []),  # row of media-<hash>.arrow
        ]
    )


class DatasetError(ValueError):
    """A folder that cannot be used as a dataset; names the file, the value and the remedy."""


def lines_of(listed: Iterable[str], *, count: int) -> str:
    """Return the first of `count` things that a message names, a line each, and how many more there are."""
    more = [f"and {count - _LISTED} more"] if count > _LISTED else []
    return "".join(f"\n  {line}" for line in [*itertools.islice(listed, _LISTED), *more])


@dataclass(frozen=True)
class Shard:
    """A finished shard as dataset.json lists it: its tar, and the two files beside it."""

    name: str
    bytes: int
    sha256: str
    num_samples: int
    idx_bytes: int | None = None  # None and "" from here on: a dataset of schema 1, which does not record them
    idx_sha256: str = ""
    table_bytes: int | None = None
    table_sha256: str = ""


def write_shard_table(
    path: Path, rows: list[dict[str, Any]], *, tar_bytes: int, tar_sha256: str, layout: Layout = JPEG
) -> None:
    """Write shard-NNNNN.parquet: every planned sample of the shard, kept or not (`shard_schema`)."""
    metadata = {"tar_bytes": str(tar_bytes), "tar_sha256": tar_sha256}
    with replace_file(path) as aside:
        table = pa.Table.from_pylist(rows, shard_schema(layout).with_metadata(metadata))
        pq.write_table(table, aside, write_page_checksum=True)


def read_shard_table(path: Path) -> tuple[pa.Table, Shard]:
    """Return a finished shard's rows and its entry for dataset.json.

    Raises:
        DatasetError: there is no such file, or it is no such table.
        OSError: the disk cannot be read; whether it is a table is not known then.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:  # read_table would import pandas
            table = file.read()
        metadata = table.schema.metadata
        tar_bytes, sha256 = int(metadata[b"tar_bytes"]), metadata[b"tar_sha256"].decode()
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        if (number := getattr(error, "errno", None)) not in (None, errno.ENOENT):  # Arrow's own have no number
            raise OSError(number, error.strerror or str(error), str(path)) from error  # type: ignore[union-attr]
        raise DatasetError(f"{path}: not a shard's table ({error}); remove it and run the build again") from error
    kept = int(np.count_nonzero(table["num_frames"].to_numpy()))
    return table, Shard(path.with_suffix(".tar").name, tar_bytes, sha256, kept)


def shard_name(number: int) -> str:
    """Return the stem of a shard's files, as in shard-00003."""
    return f"shard-{number:05d}"


def shard_files(number: int) -> list[str]:
    """Return the names of a shard's files, in the order in which they are written."""
    return [f"{shard_name(number)}{suffix}" for suffix in (".tar", ".idx", ".parquet")]
