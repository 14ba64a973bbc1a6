"""A large table of vectors ─► an approximate index (usearch's HNSW) in a file beside it, made once.

search = open_index(archive)                     # vectors.parquet.0123456789abcdef.usearch
rows = search(vector, 256)                       # candidates, best first by the index's own measure

The vectors of a model lie in a narrow cone, in which numbers of 16 bits do not keep near ones apart: of 30,000
such vectors 16 bits find 0.62 of the 10 nearest among 256 candidates. So unit vectors are moved by their mean and
compared by their distance, which ranks as the cosine does, and 16 bits find all of them; 8 bits find 0.995. The index
is mapped, not read. It is made on all cores, and its graph depends on their timing: two indices of one table may miss
different candidates.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from launch.common.tables import read_vectors, vector_blocks
from launch.inference.moments import CANDIDATES, Archive, Search, similarities
from mae3d.io.files import replace_file
from mae3d.io.progress import Progress, followed
from mae3d.io.random import Stream, philox
from mae3d.io.resources import require_disk, require_memory

DTYPE = "f16"
SUFFIX = ".usearch"
LINK_BYTES = 400  # of a vector's place in the graph
NEAREST = 10  # neighbours that recall is counted over
MEAN_GROUPS, MEAN_ROWS = 32, 512  # row groups, and rows of each, that the mean is taken over
_FOOTER_BYTES = 8  # a Parquet file ends with its footer's length and a magic word


def index_path(table: Path) -> Path:
    """Return the name of a table's index: it holds a hash of the table's size and footer.

    The footer has the settings, the size of every column's chunk and its least and greatest value.
    """
    size = table.stat().st_size
    with table.open("rb") as file:
        file.seek(size - _FOOTER_BYTES)
        footer = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - _FOOTER_BYTES - footer))
        content = hashlib.sha256(file.read() + str(size).encode()).hexdigest()[:16]
    return table.with_name(f"{table.name}.{content}{SUFFIX}")


def open_index(archive: Archive, *, say: Callable[[str], None] = print) -> Search:
    """Map the index of an archive, and make it first if there is none.

    Args:
        archive: The moments.
        say: Prints a line for people.

    Raises:
        ValueError: A file of the index's name is no index of this table, or memory is short.
        OSError: The index cannot be written.
    """
    from usearch.index import Index

    path = index_path(archive.path)
    if not path.exists():
        before = sorted(other.name for other in path.parent.glob(f"{archive.path.name}.*{SUFFIX}"))
        if before:
            say(f"{', '.join(before)}: of an older state of {archive.path.name}, and no longer used")
        _make(archive, path, say=say)
    with pq.ParquetFile(archive.path) as file:
        most = file.metadata.num_rows
    index: Any = None
    try:
        described: Any = Index.metadata(path)
        if described["dimensions"] == archive.width:
            index = Index.restore(path, view=True)
    except (ValueError, RuntimeError, TypeError):  # another program's file, or one that was cut off
        index = None
    if index is None or not 0 < len(index) <= most:
        raise ValueError(f"{path}: not an index of {archive.path.name}: remove it, and it is made again")
    mean = _mean(archive)

    def search(vector: np.ndarray, count: int) -> np.ndarray:
        keys: np.ndarray = index.search(_unit(vector[None])[0] - mean, min(count, len(index)), threads=1).keys
        return keys.astype(np.int64)

    return search


def _make(archive: Archive, path: Path, *, say: Callable[[str], None]) -> None:
    from usearch.index import Index

    needed = len(archive) * (2 * archive.width + LINK_BYTES)
    what = f"an index over {len(archive):,} vectors, {archive.width:,} wide"
    require_memory(needed, what, "give --exact true, which needs next to none")
    require_disk(path.parent, needed, what, "free it, or give --exact true")
    began = time.monotonic()
    index, mean = Index(ndim=archive.width, metric="l2sq", dtype=DTYPE), _mean(archive)
    with Progress(len(archive), "vector", doing="index") as advance:
        for rows, vectors in vector_blocks(archive.path):
            if len(rows):
                index.add(rows, _unit(vectors) - mean)
            advance(len(rows))
    with replace_file(path) as aside:
        index.save(str(aside))
    say(f"{path}: made in {time.monotonic() - began:.0f} s, {path.stat().st_size / 1e6:,.0f} MB; later starts map it")


def measure_recall(archive: Archive, search: Search, *, queries: int, seed: int = 0) -> dict[str, float]:
    """Return recall@10 of an index, its candidates compared exactly, and milliseconds per query of both ways.

    Args:
        archive: The moments; all of their vectors are read into memory.
        search: The index.
        queries: Random rows that are searched, themselves left out.
        seed: Of their choice.
    """
    what = f"{len(archive):,} vectors, {archive.width:,} wide"
    require_memory(4 * len(archive) * archive.width, what, "measure the recall on a part of them")
    vectors, rows = read_vectors(archive.path)
    chosen = philox(seed, Stream.SHOW).choice(len(rows), size=min(queries, len(rows)), replace=False)
    shared, possible = 0, 0
    spent: dict[str, list[float]] = {"exact": [], "index": []}
    for itself in followed(chosen.tolist(), "query", doing="recall"):
        query = vectors[itself]
        began = time.perf_counter()
        true = _best(similarities(vectors, query), np.arange(len(rows)), itself)
        spent["exact"].append(time.perf_counter() - began)
        began = time.perf_counter()
        candidates = np.sort(np.searchsorted(rows, search(query, CANDIDATES)))
        mine = _best(similarities(vectors[candidates], query), candidates, itself)
        spent["index"].append(time.perf_counter() - began)
        shared += len(np.intersect1d(true, mine))
        possible += len(true)
    scores = {f"recall@{NEAREST}": shared / max(1, possible)}
    for name, seconds in spent.items():
        scores[f"{name}_ms_median"], scores[f"{name}_ms_p95"] = (1e3 * np.quantile(seconds, [0.5, 0.95])).tolist()
    return scores


def _best(similar: np.ndarray, places: np.ndarray, query: int) -> np.ndarray:
    """Return the places (k,) of the most similar, without the query's own."""
    others = np.where(places == query, -np.inf, similar)
    few = np.argpartition(-others, min(NEAREST, len(others) - 1))[:NEAREST]
    return places[few[np.isfinite(others[few])]]


def _mean(archive: Archive) -> np.ndarray:
    """Return the mean (D,) of unit vectors from all over the table, the same at every start."""
    with pq.ParquetFile(archive.path) as file:
        groups = file.metadata.num_row_groups
    few = np.unique(np.linspace(0, groups - 1, min(MEAN_GROUPS, groups)).astype(np.int64)).tolist()
    heads = [next(vector_blocks(archive.path, row_groups=[group]))[1][:MEAN_ROWS] for group in few]
    mean: np.ndarray = _unit(np.concatenate(heads)).mean(axis=0)
    return mean


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    unit: np.ndarray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return unit
