"""Finished shards ─► one dataset: the tables beside the tars in; index files, rejects and dataset.json out.

    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={...}, label_names=[])

Index files carry their hash in the name, so a running trainer keeps the generation that it opened;
dataset.json is replaced last. What one call writes depends on its arguments only.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from preprocess.index import (
    FRAMES_SCHEMA,
    INDEX_SCHEMA,
    LAYOUT,
    META_NAME,
    REJECTED_NAME,
    REJECTED_SCHEMA,
    ROWS_SCHEMA,
    SCHEMA_VERSION,
    TEMPORARY_PREFIX,
    Shard,
    read_shard_table,
    replace_file,
    sha256_of,
)

_FRAMES_PER_BATCH = 1 << 22  # frames-<hash>.arrow: few, large batches, so that a reader finds a row quickly
_ROWS_PER_GROUP = 1 << 17


def write_dataset(
    root: Path,
    *,
    tables: Sequence[Path],
    settings: dict[str, Any],
    label_names: Sequence[str] = (),
    rejected: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Merges the tables of all shards into the index files and dataset.json.

    Args:
        root: the dataset's folder.
        tables: shard-NNNNN.parquet of every shard, in order.
        settings: what the build was asked for (JSON values only).
        label_names: names of label ids 0, 1, ...; empty if the labels were numbers already.
        rejected: rows of REJECTED_SCHEMA for what was left out before any shard was planned.

    Returns:
        What was written to dataset.json.

    Raises:
        DatasetError: a table is missing or is not a shard's.
    """
    shards, kept, frames, problems = _gather(tables)
    problems = [pa.Table.from_pylist(list(rejected), REJECTED_SCHEMA), *problems]
    split_names = sorted(str(name) for name in pc.unique(kept["split"]).to_pylist())
    with ExitStack() as stack:
        aside = {name: root / f"{TEMPORARY_PREFIX}{name}" for name in ("index", "rows", "frames")}
        for path in aside.values():
            stack.callback(path.unlink, missing_ok=True)
        pq.write_table(_index_table(kept), aside["index"], row_group_size=_ROWS_PER_GROUP, compression="zstd")
        _write_arrow(aside["rows"], _rows_table(kept, split_names), batch=max(1, len(kept)))
        _write_arrow(aside["frames"], frames, batch=_FRAMES_PER_BATCH)
        files = {
            "index": _adopt(aside["index"], "index", ".parquet"),
            "rows": _adopt(aside["rows"], "rows", ".arrow"),
            "frames": _adopt(aside["frames"], "frames", ".arrow"),
        }
    rejects = pa.concat_tables(problems)
    with replace_file(root / REJECTED_NAME) as path:
        pq.write_table(rejects, path)
    files["rejected"] = _entry(root / REJECTED_NAME, sha256_of(root / REJECTED_NAME))
    meta = {
        "schema": SCHEMA_VERSION,
        "layout": LAYOUT,
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "label_names": list(label_names),
        "split_names": split_names,
        "totals": _totals(shards, kept, frames, rejects),
        "files": files,
        "shards": [[shard.name, shard.bytes, shard.sha256, shard.num_samples] for shard in shards],
    }
    with replace_file(root / META_NAME) as path:
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return meta


def settings_hash(settings: dict[str, Any]) -> str:
    """A hash that two builds share if and only if they were asked for the same."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _gather(tables: Sequence[Path]) -> tuple[list[Shard], pa.Table, pa.Table, list[pa.Table]]:
    """(shards, kept samples with `shard` and `frames_at`, frames, problems) of all shards."""
    shards, kept, frames, problems = [], [], [], []
    frames_at = 0
    for number, path in enumerate(tables):
        table, shard = read_shard_table(path)
        shards.append(shard)
        problems.append(table.filter(pc.field("reason") != "").select(REJECTED_SCHEMA.names))
        table = table.filter(pc.field("num_frames") > 0)
        frames.append(
            pa.table([pc.list_flatten(table["sizes"]), pc.list_flatten(table["crc32s"])], schema=FRAMES_SCHEMA)
        )
        counts = table["num_frames"].to_numpy().astype(np.int64)
        starts = frames_at + np.cumsum(counts) - counts
        frames_at += int(counts.sum())
        table = table.append_column("shard", pa.array(np.full(len(table), number, np.int32)))
        kept.append(table.append_column("frames_at", pa.array(starts)).drop_columns(["sizes", "crc32s"]))
    return shards, pa.concat_tables(kept), pa.concat_tables(frames), problems


def _index_table(kept: pa.Table) -> pa.Table:
    split = pc.dictionary_encode(kept["split"])
    kept = kept.set_column(kept.schema.get_field_index("split"), "split", split)
    return kept.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)


def _rows_table(kept: pa.Table, split_names: list[str]) -> pa.Table:
    codes = pc.index_in(kept["split"], pa.array(split_names, pa.string()))
    kept = kept.set_column(kept.schema.get_field_index("split"), "split", codes)
    return kept.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA)


def _write_arrow(path: Path, table: pa.Table, *, batch: int) -> None:
    """Uncompressed Arrow IPC in batches of `batch` rows; at least one, so that columns can be mapped."""
    table = table.combine_chunks()
    batches = table.to_batches(max_chunksize=batch) or [pa.RecordBatch.from_pylist([], table.schema)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for one in batches:
            writer.write_batch(one)


def _adopt(aside: Path, stem: str, suffix: str) -> dict[str, Any]:
    """Moves a finished index file to the name that carries its hash."""
    sha256 = sha256_of(aside)
    final = aside.with_name(f"{stem}-{sha256[:16]}{suffix}")
    with replace_file(final) as path:
        aside.replace(path)
    return _entry(final, sha256)


def _entry(path: Path, sha256: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _totals(shards: list[Shard], kept: pa.Table, frames: pa.Table, rejects: pa.Table) -> dict[str, Any]:
    fps, counts = kept["fps"].to_numpy(), kept["num_frames"].to_numpy()
    timed = np.isfinite(fps)
    seconds = math.fsum((counts[timed] / fps[timed]).tolist())
    lost = rejects.filter(pc.field("num_frames") == 0)
    partial = rejects.filter(pc.field("num_frames") > 0)
    return {
        "samples": len(kept),
        "frames": len(frames),
        "bytes": sum(shard.bytes for shard in shards),
        "seconds": round(seconds, 3),
        "samples_without_fps": int((~timed).sum()),
        "rejected": dict(sorted(Counter(lost["reason"].to_pylist()).items())),
        "remarks": dict(sorted(Counter(partial["reason"].to_pylist()).items())),
    }
