"""A key or a name is looked up: all that a dataset knows of the sample, or why it is missing.

dataset = open_dataset("out/shards", exclude_bad_shards=True)
print("\n".join(describe(dataset, find(dataset, "000000017"))))
"""

import difflib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.dataset.index import BLOCK, REJECTED_NAME, Dataset, DatasetError
from preprocess.dataset.schema import read_shard_table

_SHOWN = 8
_COMPARED = 100_000  # names that are compared letter by letter; a contained part is looked for in all
_KEY_DIGITS = 9


def find(dataset: Dataset, requested: str) -> list[int]:
    """Return the samples with this key or name: a key has one, a name has one per segment of the source.

    Args:
        dataset: where.
        requested: a key, its number, or a name.

    Raises:
        DatasetError: there is none; the message says whether it was rejected and why, or names near ones.
    """
    key = f"{int(requested):0{_KEY_DIGITS}d}" if requested.isascii() and requested.isdigit() else requested
    for column, value in ((dataset.keys, requested), (dataset.keys, key), (dataset.names, requested)):
        rows = np.flatnonzero(pc.is_in(column, value_set=pa.array([value], pa.string())).to_numpy())
        if len(rows):
            return rows.tolist()
    if rejections := list(_rejections(dataset, {requested, key})):
        raise DatasetError(
            "\n".join([f"{dataset.location}: {requested!r} is no sample; it was left out:", *rejections])
        )
    near = _near(dataset, requested, key)
    hint = f"near ones: {', '.join(near)}" if near else "the columns key and name of index-*.parquet list all"
    raise DatasetError(
        f"{dataset.location}: no sample has the key or name {requested!r}, and none was left out; {hint}"
    )


def describe(dataset: Dataset, rows: Sequence[int]) -> Iterator[str]:
    """Return lines about the first of the given samples, and the keys of the others."""
    i, number = rows[0], int(dataset.shard[rows[0]])
    shard = dataset.shards[number]
    facts: dict[str, str] = {
        "key": dataset.key(i),
        "name": dataset.name(i),
        "labels": ", ".join(_labels(dataset, i)) or "none",
        "split": dataset.split_names[int(dataset.splits[i])] or "none",
        "row": f"{i:,}, counted from 0, of {len(dataset):,}",
        "frames": _frames(dataset, i),
        "size": f"{int(dataset.width[i])} x {int(dataset.height[i])} pixels",
    }
    if len(rows) > 1:
        others = ", ".join(dataset.key(row) for row in rows[1 : _SHOWN + 1])
        facts["same name"] = f"{others}{', ...' if len(rows) > _SHOWN + 1 else ''} ({len(rows) - 1:,} more)"
    facts |= _bytes(dataset, i)
    if dataset.media_files is not None:
        media = int(dataset.media[i])
        changed = f" ({dataset.bad_media[media]})" if media in dataset.bad_media else ""
        facts["video"] = dataset.media_name(media) + changed
    start = _start(dataset, i)
    facts["shard"] = f"{shard.name}, bytes {start:,} to {start + _length(dataset, i, start):,}"
    if number in dataset.bad_shards:
        facts["shard"] += f" ({dataset.bad_shards[number]})"
    else:
        facts["json"] = _json(dataset.shard_path(number), start)
    facts |= _request_of(dataset, i)
    width = max(map(len, facts))
    yield from (f"{name:<{width}}  {value}" for name, value in facts.items())


def _labels(dataset: Dataset, i: int) -> list[str]:
    names = dataset.label_names
    return [f"{label} ({names[label]})" if label < len(names) else str(label) for label in dataset.labels_of(i)]


def _frames(dataset: Dataset, i: int) -> str:
    count, fps, start = int(dataset.num_frames[i]), float(dataset.fps[i]), float(dataset.start_s[i])
    text = f"{count:,}, the first is the source's number {int(dataset.first[i]):,}"
    if np.isfinite(fps) and fps > 0:
        text += f"; {fps:.6g} a second, {count / fps:.3f} s"
    return text + (f", from {start:.3f} s on" if np.isfinite(start) else "; time unknown")


def _bytes(dataset: Dataset, i: int) -> dict[str, str]:
    size, part = _sizes(dataset, i), dataset.layout.parts[:-1]
    first = ", ".join(f"{one:,}" for one in size[:_SHOWN].tolist())
    return {
        "bytes": f"{int(size.sum()):,}; a {part} {size.min():,} to {size.max():,}, median {np.median(size):,.0f}",
        f"of {part}s": first + (", ..." if len(size) > _SHOWN else ""),
    }


def _start(dataset: Dataset, i: int) -> int:
    """Return the offset of the sample in its tar, which is the end of the one before."""
    if i == 0 or dataset.shard[i - 1] != dataset.shard[i]:
        return 0
    return _end(dataset, i - 1)


def _length(dataset: Dataset, i: int, start: int) -> int:
    return _end(dataset, i) - start


def _end(dataset: Dataset, i: int) -> int:
    return dataset.layout.end(_sizes(dataset, i), start=int(dataset.offset[i]))


def _sizes(dataset: Dataset, i: int) -> np.ndarray:
    return dataset.spans(i, np.arange(int(dataset.num_frames[i]))).size


def _json(tar: Path, start: int) -> str:
    with tar.open("rb") as file:
        file.seek(start)
        try:
            member = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
        except tarfile.HeaderError as error:
            return f"unreadable ({error}); see mae3d preprocess verify"
        return file.read(member.size).decode(errors="replace").strip()


def _request_of(dataset: Dataset, i: int) -> dict[str, str]:
    """Return the ledger or list that requested the sample, and its remark, from the table of its shard."""
    path = dataset.shard_path(int(dataset.shard[i])).with_suffix(".parquet")
    try:
        table, _ = read_shard_table(path)
    except DatasetError as error:
        return {"requested by": str(error)}
    rows = table.filter(pc.field("key") == dataset.key(i)).to_pylist()
    if not rows:
        return {"requested by": f"{path.name} does not know it; see mae3d preprocess verify"}
    facts = {"requested by": _place(rows[0])}
    if rows[0]["reason"]:
        facts["remark"] = _why(rows[0])
    return facts


def _rejections(dataset: Dataset, requested: set[str]) -> Iterator[str]:
    path = dataset.root / REJECTED_NAME
    values = pa.array(sorted(requested), pa.string())
    for batch in pq.ParquetFile(path).iter_batches() if path.is_file() else ():
        one_of = pc.or_(pc.is_in(batch["key"], value_set=values), pc.is_in(batch["name"], value_set=values))
        for row in batch.filter(one_of).to_pylist():
            yield f"  {row['key'] or 'no key'}  {row['name']}  requested by {_place(row)}: {_why(row)}"


def _place(row: dict[str, Any]) -> str:
    return row["file"] + (f", line {row['line']}" if row["line"] > 0 else "")


def _why(row: dict[str, Any]) -> str:
    return f"{row['reason']}: {row['message']}" + (f" (frame {row['frame']})" if row["frame"] >= 0 else "")


def _near(dataset: Dataset, requested: str, key: str) -> list[str]:
    """Return names that contain the requested one or resemble it; the keys beside a key."""
    if key != requested or key.isdigit():
        at = int(np.searchsorted(dataset.keys.to_numpy().astype(str), key))
        return [dataset.key(row) for row in range(max(0, at - 1), min(len(dataset), at + 2))]
    containing = pc.match_substring(dataset.names, requested, ignore_case=True)
    names = dict.fromkeys(dataset.names.filter(containing).slice(0, _SHOWN).to_pylist())
    if not names:
        compared = dict.fromkeys(map(str, dataset.names.slice(0, _COMPARED).to_pylist()))
        names = dict.fromkeys(difflib.get_close_matches(requested, list(compared), n=3))
    return [repr(name) for name in names]
