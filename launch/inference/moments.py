"""A table of vectors becomes an archive of moments: a query's vector ─► the rows that are most like it, best first.

archive = open_archive(Path("vectors.parquet"))
query = stored_query(archive, video="match.mp4", at_s=73)        # or archive_row(archive, key)
rows, similar = nearest_moments(archive, query, count=20, apart_s=2.0)

The table is read a block at a time, so that memory holds a number per row and never all vectors. A row's cosine is
summed by itself, without BLAS: neither threads nor the rest of its block change a bit of it.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from launch.common.tables import vector_blocks
from launch.inference.sharded_table import stored_settings
from mae3d.io.console import one_line
from mae3d.io.resources import require_memory

COLUMNS = ("key", "name", "first_frame", "start_s", "end_s")
ROW_BYTES = 256  # of a row without its vector in memory, at least
CANDIDATES = 256  # least that an index is searched for, before they are compared exactly

Search = Callable[[np.ndarray, int], np.ndarray]  # a vector (D,), and k ─► the rows (k,) that may be nearest


@dataclass(frozen=True)
class Archive:
    """A table of launch/embed.py without its vectors; arrays have a value per row.

    Attributes:
        path: The table.
        settings: All that the vectors depend on.
        columns: The columns of texts: key, name.
        files: int32, equal for rows of one file or sample.
        first_frame: int64, -1 if unknown.
        start_s: float64, in the source; NaN if unknown.
        end_s: Likewise.
    """

    path: Path
    settings: dict[str, Any]
    columns: pa.Table
    files: np.ndarray
    first_frame: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def key(self, row: int) -> str:
        """Return the key of a row."""
        return str(self.columns["key"][row])

    def name(self, row: int) -> str:
        """Return the name of a row: a file's as it was given to embed.py, or a sample's."""
        return str(self.columns["name"][row])

    def middle_s(self, row: int) -> float:
        """Return the middle of a row's span, in seconds of its source; NaN if unknown."""
        return float(self.start_s[row] + self.end_s[row]) / 2

    @property
    def width(self) -> int:
        """Return the length of a vector."""
        return int(self.settings["width"])


@dataclass(frozen=True)
class Query:
    """A moment whose like is searched.

    Attributes:
        vector: float32 (D,).
        title: Its file or sample, for people.
        file: Its value of `Archive.files`; -1 if the archive has none of this file.
        start_s: Its beginning, in seconds of the source; NaN if unknown.
        end_s: Its end.
        row: Its row, if its vector is the table's.
    """

    vector: np.ndarray = field(repr=False)
    title: str
    file: int = -1
    start_s: float = np.nan
    end_s: float = np.nan
    row: int | None = None


def open_archive(path: Path) -> Archive:
    """Open a table of launch/embed.py.

    Raises:
        ValueError: It is no such table, has a vector per token, or does not fit into memory without its vectors.
        OSError: It cannot be read.
    """
    settings = stored_settings(path)
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            require_memory(ROW_BYTES * rows, f"{path}: {rows:,} moments without their vectors", "give a smaller table")
            width = file.schema_arrow.field("vector").type.list_size
            table = file.read(list(COLUMNS))
    except (pa.ArrowException, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no table of embeddings (mae3d embed makes one): {one_line(error)}") from error
    if settings.get("pool") == "tokens":
        raise ValueError(f"{path}: has a vector per token; make a table with --pool mean or cls")
    names: Any = pc.dictionary_encode(table["name"].combine_chunks())
    return Archive(
        path,
        settings | {"width": width},
        table.select(["key", "name"]),
        files=names.indices.to_numpy().astype(np.int32),
        first_frame=_numbers(table["first_frame"], -1).astype(np.int64),
        start_s=_numbers(table["start_s"], np.nan),
        end_s=_numbers(table["end_s"], np.nan),
    )


def _numbers(column: pa.ChunkedArray, missing: float) -> np.ndarray:
    numbers: Any = column.cast(pa.float64()).to_numpy()  # null is NaN
    filled: np.ndarray = np.where(np.isnan(numbers), missing, numbers)
    return filled


def places_of(name: str, root: str) -> list[Path]:
    """Return where the file of a name may lie: below the root if one is given, or as the name says."""
    return ([Path(root) / name] if root else []) + [Path(name)]


def file_in_archive(archive: Archive, video: str, root: str = "") -> int:
    """Return the value of `Archive.files` of a video file; -1 if the archive has no row of it."""
    real = os.path.realpath(video)
    for file, first in zip(*np.unique(archive.files, return_index=True), strict=True):
        name = archive.name(int(first))
        if name == video or any(os.path.realpath(path) == real for path in places_of(name, root)):
            return int(file)
    return -1


def stored_query(archive: Archive, *, video: str, at_s: float, root: str = "") -> Query | None:
    """Return the query of the row whose span holds a moment, the nearest to its middle; None if there is none."""
    file = file_in_archive(archive, video, root)
    holds = np.flatnonzero((archive.files == file) & (archive.start_s <= at_s) & (at_s < archive.end_s))
    middles = (archive.start_s[holds] + archive.end_s[holds]) / 2
    for row in holds[np.argsort(np.abs(middles - at_s), kind="stable")].tolist():
        if len(vector := vectors_of(archive, [row])):
            return _query_of_row(archive, row, vector[0])
    return None


def query_of_key(archive: Archive, key: str) -> Query:
    """Return the query of the first row with a key; ValueError if there is none, or its clip could not be read."""
    row = pc.index(archive.columns["key"], key).as_py()
    if row < 0:
        raise ValueError(f"--key {key}: {archive.path} has no such row; its column key lists all")
    vectors = vectors_of(archive, [row])
    if not len(vectors):
        raise ValueError(f"--key {key}: has no vector in {archive.path}, because its clip could not be read")
    return _query_of_row(archive, row, vectors[0])


def _query_of_row(archive: Archive, row: int, vector: np.ndarray) -> Query:
    start_s, end_s = float(archive.start_s[row]), float(archive.end_s[row])
    return Query(vector, archive.name(row), int(archive.files[row]), start_s, end_s, row)


def vectors_of(archive: Archive, rows: Sequence[int]) -> np.ndarray:
    """Return the (n, D) vectors of rows in their order, without those that have none; reads their row groups."""
    with pq.ParquetFile(archive.path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    groups = np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right")).tolist()
    kept: dict[int, np.ndarray] = {}
    for block, vectors in vector_blocks(archive.path, row_groups=groups):
        for i in np.flatnonzero(np.isin(block, rows)).tolist():
            kept[int(block[i])] = vectors[i].copy()
    chosen = [kept[row] for row in rows if row in kept]
    return np.stack(chosen) if chosen else np.zeros((0, archive.width), np.float32)


def similarities(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the cosines (n,) float32 of vectors (n, D) and a query (D,), each row by itself; 0 for a vector of 0."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors) * np.einsum("j,j->", query, query))
    products = np.einsum("ij,j->i", vectors, query)
    cosines: np.ndarray = products / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosines


def nearest_moments(
    archive: Archive,
    query: Query,
    *,
    count: int,
    apart_s: float,
    other_files: bool = False,
    search: Search | None = None,
) -> tuple[list[int], list[float]]:
    """Return the nearest rows and their cosines, best first.

    The query's own row, and rows of its file that overlap it, are left out.

    Args:
        archive: The moments.
        query: The moment.
        count: So many rows at most.
        apart_s: A row that begins less than this from a better one of the same file is left out.
        other_files: Leave out all rows of the query's file.
        search: Candidates from an index, which are compared by their stored vectors; None compares all rows.
    """
    depth = min(len(archive), max(CANDIDATES, 4 * count))
    while True:
        if search is None:
            similar = np.full(len(archive), -np.inf, np.float32)
            for block, vectors in vector_blocks(archive.path):
                similar[block] = similarities(vectors, query.vector)
            ranked = np.argsort(-similar, kind="stable")
            ranked, complete = ranked[np.isfinite(similar[ranked])], True
            of_rank = similar[ranked]
        else:
            rows = np.sort(search(query.vector, depth))
            of_rows = similarities(vectors_of(archive, rows.tolist()), query.vector)
            order = np.argsort(-of_rows, kind="stable")
            ranked, of_rank, complete = rows[order], of_rows[order], depth == len(archive)
        places = _choose(archive, ranked, query, count=count, apart_s=apart_s, other_files=other_files)
        if complete or len(places) == count:
            return ranked[places].tolist(), of_rank[places].tolist()
        depth = min(len(archive), 4 * depth)


def _choose(
    archive: Archive, ranked: np.ndarray, query: Query, *, count: int, apart_s: float, other_files: bool
) -> list[int]:
    """Return the places of the chosen rows in their ranking."""
    taken: dict[int, list[float]] = defaultdict(list)
    places: list[int] = []
    for rank, row in enumerate(ranked.tolist()):
        if len(places) == count:
            break
        file, start_s = int(archive.files[row]), float(archive.start_s[row])
        if file == query.file:
            overlaps = start_s < query.end_s and query.start_s < archive.end_s[row]
            if other_files or overlaps or row == query.row:
                continue
        if any(abs(start_s - better) < apart_s for better in taken[file]):
            continue
        taken[file].append(start_s)
        places.append(rank)
    return places
