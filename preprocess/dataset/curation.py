"""The flags of a dataset's samples, beside it in a file: dataset ─► which samples are duplicates, still, black, …

flags = read_flags(dataset, ["near_duplicate", "black"])       # name ─► bool (N,)

`mae3d preprocess curate OUT` writes `curation.parquet`: one row per sample, in the dataset's order. Its metadata
says of which shards it is, so that flags are never taken for another state of the dataset.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.storage import Storage
from preprocess.dataset.dataset import Dataset
from preprocess.dataset.schema import DatasetError

CURATION_NAME = "curation.parquet"
METADATA = b"mae3d.curation"
FLAGS = ("near_duplicate", "still", "black", "frozen", "cut")

_FLAG_FIELDS: list[Any] = [pa.field(name, pa.bool_()) for name in FLAGS]  # cut is null if cuts were not looked for
_FIELDS: list[Any] = [
    pa.field("key", pa.string()),
    *_FLAG_FIELDS,
    pa.field("duplicate_of", pa.string()),  # the key of the sample that stays; null if this one stays
    pa.field("distance", pa.float32()),  # to that: 1 - correlation of the thumbnails
    pa.field("motion", pa.float32()),  # mean distance of the frames from their mean, in grey levels
    pa.field("frozen_s", pa.float32()),  # the longest run of equal frames, in seconds; null without a time base
    pa.field("frozen_share", pa.float32()),  # the same as a share of the sample
    pa.field("black_share", pa.float32()),  # of its frames
    pa.field("cut_frames", pa.list_(pa.int32())),  # first frames after a cut, numbers within the sample
    pa.field("cut_s", pa.list_(pa.float32())),  # the same in seconds from the sample's beginning; null without a base
    pa.field("frames_read", pa.int32()),
    pa.field("frames_damaged", pa.int32()),  # of these
]
CURATION_SCHEMA = pa.schema(_FIELDS)


def state_of(dataset: Dataset) -> str:
    """Return a hash of a dataset's shards; a split, which touches none, does not change it."""
    shards = [[shard.name, shard.num_samples, shard.sha256] for shard in dataset.shards]
    return hashlib.sha256(json.dumps(shards).encode()).hexdigest()


def open_curation(dataset: Dataset) -> pq.ParquetFile:
    """Open the file of flags that belongs to a dataset, in its folder or behind its URL.

    Raises:
        DatasetError: There is none, or it is of another state of the dataset; the message gives the remedy.
    """
    where = f"{dataset.location}/{CURATION_NAME}"
    remedy = f"run `mae3d preprocess curate {(dataset.url and 'FOLDER') or dataset.root}`"
    if dataset.url:
        remedy += f" on a copy in a folder, and copy its {CURATION_NAME} there"
    try:
        source: Any = dataset.root / CURATION_NAME
        if dataset.url:
            source = io.BytesIO(Storage(dataset.url, back_off_s=()).read(CURATION_NAME))
        file = pq.ParquetFile(source)
    except FileNotFoundError as error:
        raise DatasetError(f"{where}: missing; {remedy}") from error
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{where}: cannot be read ({error}); {remedy}") from error
    described = described_by(file.schema_arrow)
    if described is None or not file.schema_arrow.equals(CURATION_SCHEMA):
        raise DatasetError(f"{where}: its columns are not those that this program reads; {remedy}")
    if described.get("state") != state_of(dataset) or file.metadata.num_rows != len(dataset):
        raise DatasetError(f"{where}: of another state of the dataset, which has other shards now; {remedy} again")
    return file


def described_by(schema: pa.Schema) -> dict[str, Any] | None:
    """Return the settings in a file of flags; None if another program made it."""
    text = (schema.metadata or {}).get(METADATA)
    described: dict[str, Any] | None = None if text is None else json.loads(text)
    return described


def read_flags(dataset: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return flags of all samples by name, bool (N,).

    Raises:
        DatasetError: As `open_curation`; or there is no such flag, or cuts were not looked for.
    """
    for name in names:
        if name not in FLAGS:
            close = get_close_matches(name, FLAGS, n=1)
            raise DatasetError(
                f"no flag {name!r}{f'; did you mean {close[0]}?' if close else ''} There are {', '.join(FLAGS)}"
            )
    with open_curation(dataset) as file:
        table = file.read(list(names))
    for name in names:
        if table[name].null_count:
            raise DatasetError(
                f"{dataset.location}/{CURATION_NAME}: has no flag {name!r}, because it was made with --no-cuts; run "
                "`mae3d preprocess curate` without it"
            )
    return {name: table[name].to_numpy() for name in names}
