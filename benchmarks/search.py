"""Recall and time of launch/search.py's index beside the comparison of all vectors, at a million moments.

    python benchmarks/search.py out/search random --width 384
    python benchmarks/search.py out/search real --vectors seconds.parquet

`random`: unit vectors without any structure, which no index does well on: all neighbours are about as far. `real`: the
vectors of a table of launch/embed.py, made more by jitter, because no archive of a million moments is at hand: each is
t a + (1 - t) b of a random moment a and the one before or after it, or a itself, t uniform, plus normal noise of a
tenth of the standard deviation of each dimension. Tables are written as launch/embed.py writes them; the index is then
made, mapped and searched as launch/search.py does.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import resident_mb

BLOCK = 32_768
GROUP_BYTES = 64 << 20  # as launch/inference/sharded_table.py


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=["random", "real"])
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()

    from launch.common.tables import read_vectors
    from launch.inference.moments import nearest_moments, open_archive, query_of_key
    from launch.inference.vector_index import index_path, measure_recall, open_index

    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / f"{options.kind}-{options.count}.parquet"
    source = read_vectors(options.vectors)[0] if options.vectors else None
    if not table.exists():
        write(table, options.count, options.width, source)
    archive = open_archive(table)
    memory, began = resident_mb(), time.monotonic()
    search = open_index(archive)
    made = time.monotonic() - began
    print(f"{table.name}: {len(archive):,} x {archive.width}, {table.stat().st_size / 1e6:,.0f} MB")
    size = index_path(table).stat().st_size / 1e6
    print(f"index: {made:.0f} s, {size:,.0f} MB; this process {resident_mb() - memory:+.0f} MB", flush=True)
    scores = measure_recall(archive, search, queries=options.queries)
    print("in memory:", ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    query = query_of_key(archive, archive.key(len(archive) // 2))
    for name, how in {"all, from the file": None, "index, candidates from the file": search}.items():
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            nearest_moments(archive, query, count=20, apart_s=0, search=how)
            seconds.append(time.monotonic() - began)
        print(f"{name}: {1e3 * float(np.median(seconds)):.0f} ms a query")


def write(path: Path, count: int, width: int, source: np.ndarray | None) -> None:
    """Write a table of vectors, one row a second of one file each hour."""
    rng = np.random.default_rng(0)
    if source is not None:
        width = source.shape[1]
        noise = 0.1 * source.std(axis=0)
    settings = {"model": "none", "layer": -1, "pool": "mean", "num_frames": 16, "precision": "fp32", "img_size": 224,
                "data": {"sampling_rate": 4, "target_fps": 30}, "every_s": 1.0, "num_clips": 1}  # fmt: skip
    writer, held = None, []
    for begin in range(0, count, BLOCK):
        few = min(BLOCK, count - begin)
        vectors = rng.standard_normal((few, width), dtype=np.float32)
        if source is not None:
            a = rng.integers(0, len(source), few)
            b = np.clip(a + rng.integers(-1, 2, few), 0, len(source) - 1)
            t = rng.random((few, 1), dtype=np.float32)
            vectors = (t * source[a] + (1 - t) * source[b] + noise * vectors).astype(np.float32)
        else:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        seconds = np.arange(begin, begin + few)
        held.append(
            pa.table(
                {
                    "key": [f"{number:09d}" for number in seconds.tolist()],
                    "name": [f"video_{number // 3600:04d}.mp4" for number in seconds.tolist()],
                    "labels": pa.array([[]] * few, pa.list_(pa.int32())),
                    "first_frame": pa.array(seconds % 3600 * 30, pa.int64()),
                    "start_s": pa.array(seconds % 3600, pa.float64()),
                    "end_s": pa.array(seconds % 3600 + 2.13, pa.float64()),
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width),
                }
            )
        )
        schema = held[0].schema.with_metadata({"mae3d": json.dumps(settings)})
        writer = writer or pq.ParquetWriter(path, schema)
        if sum(one.nbytes for one in held) >= GROUP_BYTES or begin + few == count:
            whole = pa.concat_tables(held)
            writer.write_table(whole.cast(schema), row_group_size=len(whole))
            held = []
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    main()
