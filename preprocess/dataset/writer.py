"""Finished shards are merged into one dataset: the tables beside the tars ─► index files, rejects, dataset.json.

    write_dataset(root, tables=sorted(root.glob("shard-*.parquet")), settings={...}, label_names=[])

Shard by shard: memory does not grow with the dataset (ten million samples pass through some 300 MB). Index files carry
their hash in the name, so a running trainer keeps the generation that it opened; dataset.json is replaced last. The
bytes depend on the arguments only, and a call that was killed is simply made again.
"""

import hashlib
import json
import math
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from mae3d.io.files import TEMPORARY_PREFIX, replace_file, sha256_of
from mae3d.io.progress import followed
from preprocess.dataset.index import META_NAME, PLAN_NAME, REJECTED_NAME
from preprocess.dataset.layout import JPEG, Layout
from preprocess.dataset.schema import (
    MEDIA_SCHEMA,
    PARTS_SCHEMA,
    REJECTED_SCHEMA,
    SCHEMA_VERSION,
    index_schema,
    read_shard_table,
    rows_schema,
)

Digest = tuple[int, str]  # size and sha256 of a file

_CHECKSUM = b'"checksum": '  # the last key of dataset.json
_PARTS_PER_BATCH = 1 << 22  # frames-<hash>.arrow: few, large batches, so that a reader finds a row quickly
_ROWS_PER_GROUP = 1 << 15  # a reader of one name reads one group


def write_dataset(
    root: Path,
    *,
    tables: Sequence[Path],
    settings: dict[str, Any],
    layout: Layout = JPEG,
    label_names: Sequence[str] = (),
    rejected: Sequence[dict[str, Any]] = (),
    splits: pa.DictionaryArray | None = None,
    split_rule: dict[str, Any] | None = None,
    idx: Sequence[Digest] | None = None,
) -> dict[str, Any]:
    """Merge the tables of all shards into the index files and dataset.json.

    Args:
        root: the dataset's folder.
        tables: shard-NNNNN.parquet of every shard, in order.
        settings: the settings and sources of the build (JSON values only).
        layout: of the shards.
        label_names: names of label ids 0, 1, ...; empty if the labels were numbers already.
        rejected: rows of REJECTED_SCHEMA for the samples that were left out of the plan.
        splits: the split of every planned sample by its number; None = as the tables say.
        split_rule: the rule that made them, for dataset.json.
        idx: size and sha256 of the .idx of every shard; None = they lie beside the tables.

    Returns:
        The content of dataset.json.

    Raises:
        DatasetError: a table is missing or is not a shard's.
        FileNotFoundError: an .idx is missing.
    """
    totals = _Totals()
    with ExitStack() as stack:
        stems = ("index", "rows", layout.parts, *(["media"] if layout.is_in_place else []), "rejected")
        aside = {stem: root / f"{TEMPORARY_PREFIX}{stem}" for stem in stems}
        for path in aside.values():
            stack.callback(path.unlink, missing_ok=True)
        split_names = _write_files(aside, layout, tables, rejected, splits, totals)
        suffixes = {"index": ".parquet"}
        files = {stem: _adopt(aside[stem], stem, suffixes.get(stem, ".arrow")) for stem in stems[:-1]}
        with replace_file(root / REJECTED_NAME) as path:
            aside["rejected"].replace(path)
    files["rejected"] = _entry(root / REJECTED_NAME, sha256_of(root / REJECTED_NAME))
    idx = idx or [digest_of(path.with_suffix(".idx")) for path in tables]
    digests = zip(idx, map(digest_of, tables), strict=True)
    meta = {
        "schema": SCHEMA_VERSION,
        "layout": layout.name,
        **layout.description(),
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "label_names": list(label_names),
        "split_names": split_names,
        "totals": totals.as_json(),
        "files": files,
        "shards": [[*shard, *beside, *table] for shard, (beside, table) in zip(totals.shards, digests, strict=True)],
    }
    if layout.is_in_place:
        meta["media_roots"] = totals.media_roots
    if split_rule:
        meta["split_rule"] = split_rule
    if (root / PLAN_NAME).is_file():
        meta["plan"] = _entry(root / PLAN_NAME, sha256_of(root / PLAN_NAME))
    _write_meta(root / META_NAME, meta)
    return meta


def _write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write dataset.json, one line per key, and its checksum."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items()]
    with replace_file(path) as aside:
        aside.write_bytes(_sealed("{\n" + ",\n".join(lines) + ",\n"))


def digest_of(path: Path) -> Digest:
    """Return the size and the sha256 of a file."""
    return path.stat().st_size, sha256_of(path)


def is_sealed(data: bytes) -> bool:
    """Return whether dataset.json ends with the sha256 of the bytes before it."""
    head, key, _ = data.rpartition(_CHECKSUM)
    return data == _sealed(head.decode(errors="replace")) if key else False


def _sealed(head: str) -> bytes:
    data = head.encode()
    return data + _CHECKSUM + f'"{hashlib.sha256(data).hexdigest()}"\n}}\n'.encode()


def settings_hash(settings: dict[str, Any]) -> str:
    """Return a hash that two builds share if and only if they have the same settings and sources."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _write_files(
    aside: dict[str, Path],
    layout: Layout,
    tables: Sequence[Path],
    rejected: Sequence[dict[str, Any]],
    splits: pa.DictionaryArray | None,
    totals: "_Totals",
) -> list[str]:
    """Write the files, shard by shard, and return the names of the splits in the order of their first samples."""
    split_codes: dict[str, int] = {}
    with ExitStack() as stack:
        rows = _Rows(aside["rows"].parent, rows_schema(layout), stack)
        sink = stack.enter_context(pa.OSFile(str(aside[layout.parts]), "wb"))
        arrow = stack.enter_context(pa.ipc.new_file(sink, PARTS_SCHEMA))
        columns = index_schema(layout)
        index = stack.enter_context(pq.ParquetWriter(aside["index"], columns, compression="zstd"))
        rejects = stack.enter_context(pq.ParquetWriter(aside["rejected"], REJECTED_SCHEMA))
        if layout.is_in_place:
            media = _Media(stack.enter_context(pa.OSFile(str(aside["media"]), "wb")))
        parts = _Regrouped(_PARTS_PER_BATCH, lambda table: arrow.write_batch(_parts_batch(table)))
        samples = _Regrouped(
            _ROWS_PER_GROUP, lambda table: index.write_table(_index_table(table, columns), _ROWS_PER_GROUP)
        )
        problems = _Regrouped(_ROWS_PER_GROUP, lambda table: rejects.write_table(table, _ROWS_PER_GROUP))
        lost = pa.Table.from_pylist(list(rejected), REJECTED_SCHEMA)
        problems.add(lost)
        totals.add_problems(lost)
        for number, path in enumerate(followed(tables, "shard", doing="index")):
            table, shard = read_shard_table(path)
            lost = table.filter(pc.field("reason") != "").select(REJECTED_SCHEMA.names)
            problems.add(lost)
            table = table.filter(pc.field("num_frames") > 0)
            if splits is not None:
                table = _with_splits(table, splits)
            counts = pc.list_value_length(table["sizes"]).to_numpy().astype(np.int64)
            parts_at = totals.parts + np.cumsum(counts) - counts
            totals.parts += int(counts.sum())
            table = table.append_column("shard", pa.array(np.full(len(table), number, np.int32)))
            table = table.append_column(layout.at, pa.array(parts_at))
            if layout.is_in_place:
                table = table.append_column("media", media.add(table))
            parts.add(pa.table([pc.list_flatten(table[name]) for name in ("sizes", "crc32s")], schema=PARTS_SCHEMA))
            samples.add(table.select(columns.names))
            for name in pc.unique(table["split"]).to_pylist():
                split_codes.setdefault(str(name), len(split_codes))
            rows.add(table, split_codes)
            totals.shards.append([shard.name, shard.bytes, shard.sha256, shard.num_samples])
            totals.add_samples(table)
            totals.add_problems(lost)
        for regrouped in (parts, samples, problems):
            regrouped.finish()
        rows.write(aside["rows"])
        if layout.is_in_place:
            media.finish()
            totals.media_roots = list(media.roots)
    return list(split_codes)


@dataclass
class _Regrouped:
    """Tables of any length in, tables of `size` rows out: files do not depend on how samples lie in shards.

    The last table may be shorter; at least one table, perhaps empty, goes out.
    """

    size: int
    write: Callable[[pa.Table], None]
    _waiting: list[pa.Table] = field(default_factory=list)
    _count: int = 0
    _written: bool = False

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._count += len(table)
        while self._count >= self.size:
            self._put(self.size)

    def finish(self) -> None:
        if self._count or not self._written:
            self._put(self._count)

    def _put(self, count: int) -> None:
        table = pa.concat_tables(self._waiting)
        # One chunk: where a Parquet page ends depends on the chunks.
        self.write(table.slice(0, count).combine_chunks())
        self._waiting = [table.slice(count)]
        self._count -= count
        self._written = True


def _parts_batch(parts: pa.Table) -> pa.RecordBatch:
    """Return parts in new buffers: those of a slice may hold more than the slice, which would be written too."""
    columns: list[Any] = [pa.array(parts[name].to_numpy().copy()) for name in PARTS_SCHEMA.names]
    return pa.record_batch(columns, schema=PARTS_SCHEMA)


def _with_splits(table: pa.Table, splits: pa.DictionaryArray) -> pa.Table:
    """Return the samples of a shard with other splits; their keys are their numbers."""
    chosen = splits.take(pc.cast(table["key"].combine_chunks(), pa.int64())).cast(pa.string())
    return table.set_column(table.schema.get_field_index("split"), "split", chosen)


def _index_table(samples: pa.Table, columns: pa.Schema) -> pa.Table:
    at = samples.schema.get_field_index("split")
    return samples.set_column(at, "split", pc.dictionary_encode(samples["split"])).cast(columns)


class _Media:
    """The writer of media-<hash>.arrow: a row per file, if its samples lie in one shard or in neighbouring ones."""

    def __init__(self, sink: pa.OSFile) -> None:
        self.roots: dict[str, int] = {}
        self._file = pa.ipc.new_file(sink, MEDIA_SCHEMA)
        self._batches = _Regrouped(
            _PARTS_PER_BATCH, lambda table: self._file.write_table(pa.Table.from_batches([_own_buffers(table)]))
        )
        self._count = 0
        self._before: dict[tuple[str, str, int], int] = {}  # files of the shard before ─► their numbers

    def add(self, table: pa.Table) -> pa.Array:
        """Add the files of a shard's samples, and return the number of each sample's file."""
        columns = (table[name].to_pylist() for name in ("media_root", "media_path", "media_bytes"))
        files = list(zip(*columns, strict=True))
        number: dict[tuple[str, str, int], int] = {}
        rows: list[dict[str, Any]] = []
        for file in dict.fromkeys(files):
            number[file] = self._before.get(file, self._count + len(rows))
            if file not in self._before:
                root, path, size = file
                rows.append({"root": self.roots.setdefault(root, len(self.roots)), "path": path, "bytes": size})
        self._count, self._before = self._count + len(rows), number
        self._batches.add(pa.Table.from_pylist(rows, MEDIA_SCHEMA))
        return pa.array([number[file] for file in files], pa.int32())

    def finish(self) -> None:
        """Write what is left, and the end of the file."""
        self._batches.finish()
        self._file.close()


def _own_buffers(table: pa.Table) -> pa.RecordBatch:
    """Return a table in new buffers: those of a slice may hold more than the slice, which would be written too."""
    columns: list[Any] = [pa.array(table[name].to_pylist(), table[name].type) for name in table.column_names]
    return pa.record_batch(columns, schema=table.schema)


class _Rows:
    """The columns of rows-<hash>.arrow, which is one batch: they grow in files without names, then are mapped."""

    def __init__(self, folder: Path, schema: pa.Schema, stack: ExitStack) -> None:
        self._schema = schema
        names = [*(name for name in schema.names if name != "labels"), "label_offsets", "label_values"]
        self._files = {name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in names}  # noqa: SIM115
        self._count = self._labels = 0
        self._files["label_offsets"].write(np.int64(0).tobytes())

    def add(self, table: pa.Table, split_codes: dict[str, int]) -> None:
        """Append the samples of a shard."""
        codes = pc.index_in(table["split"], pa.array(list(split_codes), pa.string()))
        lengths = pc.list_value_length(table["labels"]).to_numpy().astype(np.int64)
        columns = {name: table[name].to_numpy() for name in self._files if name in table.column_names}
        columns["split"] = codes.to_numpy()
        columns["label_offsets"] = self._labels + np.cumsum(lengths)
        columns["label_values"] = pc.list_flatten(table["labels"]).to_numpy()
        for name, column in columns.items():
            self._files[name].write(np.ascontiguousarray(column).tobytes())
        self._count += len(table)
        self._labels += int(lengths.sum())

    def write(self, path: Path) -> None:
        """Write the file."""
        arrays: list[Any] = []
        for column in self._schema:
            if column.name == "labels":
                offsets = self._mapped("label_offsets", pa.int64(), self._count + 1)
                values = self._mapped("label_values", pa.int32(), self._labels)
                arrays.append(pa.LargeListArray.from_arrays(offsets, values))
            else:
                arrays.append(self._mapped(column.name, column.type, self._count))
        batch = pa.record_batch(arrays, schema=self._schema)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            writer.write_batch(batch)

    def _mapped(self, name: str, kind: Any, count: int) -> Any:
        file = self._files[name]
        file.flush()
        num_bytes = count * kind.bit_width // 8
        # Private: some FUSE mounts have no shared maps. An empty file cannot be mapped.
        column: Any = mmap.mmap(file.fileno(), num_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ) if count else b""
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(column)])


@dataclass
class _Totals:
    """The totals of all shards for dataset.json."""

    shards: list[list[Any]] = field(default_factory=list)
    samples: int = 0
    frames: int = 0
    parts: int = 0
    samples_without_fps: int = 0
    media_roots: list[str] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    _rejected: Counter[str] = field(default_factory=Counter)
    _remarks: Counter[str] = field(default_factory=Counter)

    def add_samples(self, kept: pa.Table) -> None:
        fps, counts = kept["fps"].to_numpy(), kept["num_frames"].to_numpy()
        timed = np.isfinite(fps)
        self.samples += len(kept)
        self.frames += int(counts.sum(dtype=np.int64))
        self.samples_without_fps += int((~timed).sum())
        self._seconds.append(math.fsum((counts[timed] / fps[timed]).tolist()))

    def add_problems(self, problems: pa.Table) -> None:
        """Count rows of REJECTED_SCHEMA by reason; rows with frames were kept, with a remark."""
        for reason, num_frames in zip(*(problems[name].to_pylist() for name in ("reason", "num_frames")), strict=True):
            (self._remarks if num_frames else self._rejected)[reason] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "frames": self.frames,
            "bytes": sum(shard[1] for shard in self.shards),
            "seconds": round(math.fsum(self._seconds), 3),
            "samples_without_fps": self.samples_without_fps,
            "rejected": dict(sorted(self._rejected.items())),
            "remarks": dict(sorted(self._remarks.items())),
        }


def _adopt(aside: Path, stem: str, suffix: str) -> dict[str, Any]:
    """Move a finished index file to the name that carries its hash."""
    sha256 = sha256_of(aside)
    final = aside.with_name(f"{stem}-{sha256[:16]}{suffix}")
    with replace_file(final) as path:
        aside.replace(path)
    return _entry(final, sha256)


def _entry(path: Path, sha256: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}
