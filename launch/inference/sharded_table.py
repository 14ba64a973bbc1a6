"""A big table, one row a sample, that any number of processes make part by part, and that is the same however it came.

parts = Parts(out / "predictions.parquet", num_rows=len(rows), batch_size=8, settings={"model": sha256, ...})
fill(parts, world=world, open_stream=open_stream, keys_of=keys_of, outputs_of=outputs_of)
table = pq.read_table(parts.path)          # num_rows rows in order; with the settings in the file's metadata

Killed anywhere and started again, on as many processes as may be, the same call goes on with the parts that are
missing. Batches hold the same rows whoever makes them, so that the finished file is the same, byte for byte.
Commands import this late: it needs torch.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.files import replace_file, sync, write_text

if TYPE_CHECKING:
    from mae3d.distributed import World
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus

MAX_PARTS = 1000  # so that a kill loses a thousandth of a long table at most, of each process
ROW_GROUP_BYTES = 64 * 2**20  # what the merge holds in memory
METADATA = b"mae3d"  # key of the settings in the finished file
SETTINGS = "settings.json"


class PartsError(ValueError):
    """A table was begun, or finished, with other settings; the message names them and says what to do."""


class Parts:
    """The files: `PATH`, when it is finished, and until then a folder beside it with a file for each part."""

    def __init__(self, path: Path, *, num_rows: int, batch_size: int, settings: Mapping[str, Any]) -> None:
        """Nothing is touched yet.

        Args:
            path: of the finished Parquet file.
            num_rows: of the whole table, 1 or more.
            batch_size: rows that are made at once; a part is whole batches, so that these never depend on which parts
                are missing.
            settings: all that the rows depend on, as nested plain values: the model, the samples, the views.
        """
        self.path, self.num_rows = path, num_rows
        self.folder = path.with_name(f"{path.name}.parts")
        self.part_rows = batch_size * -(-num_rows // (batch_size * MAX_PARTS))
        self.num_parts = -(-num_rows // self.part_rows)
        # As JSON gives them back: tuples become lists.
        self.settings: dict[str, Any] = json.loads(
            json.dumps({**settings, "rows": num_rows, "rows_at_once": batch_size})
        )

    @property
    def is_finished(self) -> bool:
        """Whether the whole table is there, of whatever settings."""
        return self.path.is_file()

    def begin(self) -> list[int]:
        """Makes the folder, or finds what an earlier start left there.

        Returns:
            The parts that are missing; none where the table is finished.

        Raises:
            PartsError: the table has other settings than these, or is none of ours.
            OSError: the folder cannot be made.
        """
        if self.is_finished:
            self._compare(_stored_settings(self.path), what=self.path)
            shutil.rmtree(self.folder, ignore_errors=True)  # of a merge that was killed at its very end
            return []
        file = self.folder / SETTINGS
        done = {path.name for path in self.folder.glob("part-*.parquet")}
        if done:
            self._compare(json.loads(file.read_text(encoding="utf-8")), what=self.folder)
        else:  # nothing is lost by other settings
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(self.settings, indent=1) + "\n")
        return [part for part in range(self.num_parts) if self._file(part).name not in done]

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.num_rows))

    def write(self, part: int, table: pa.Table) -> None:
        """Stores a part, whole or not at all, and with it the settings: another start may work in the same folder."""
        assert len(table) == len(self.rows(part)), (len(table), self.rows(part))
        with replace_file(self._file(part)) as aside:
            pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(self.settings)}), aside)

    def merge(self) -> None:
        """Joins all parts, in the order of the rows, into the finished file, and removes their folder.

        Raises:
            PartsError: a part is damaged, or of a start with other settings at the same time.
            OSError: a part is not there; no space, ...
        """
        for part in range(self.num_parts):
            if not self._file(part).is_file():
                raise FileNotFoundError(
                    f"{self._file(part)} is missing: several nodes need an --out that all of them see"
                )
        whole = self.folder / self.path.name
        with replace_file(whole) as aside:
            schema = self._read(0).schema
            with pq.ParquetWriter(aside, schema) as writer:
                for table in self._row_groups():
                    writer.write_table(table.cast(schema), row_group_size=len(table))
        whole.replace(self.path)
        sync(self.path.parent)
        shutil.rmtree(self.folder)

    def _row_groups(self) -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        for part in range(self.num_parts):
            held.append(self._read(part))
            if part == self.num_parts - 1 or sum(table.nbytes for table in held) >= ROW_GROUP_BYTES:
                yield pa.concat_tables(held)
                held.clear()

    def _read(self, part: int) -> pa.Table:
        file = self._file(part)
        self._compare(_stored_settings(file), what=file)
        try:
            return pq.read_table(file, partitioning=None)
        except pa.ArrowException as error:
            raise PartsError(f"{file}: damaged ({error}); delete it: the next start makes it again") from error

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"

    def _compare(self, stored: Mapping[str, Any], *, what: Path) -> None:
        before, now = _flat(stored), _flat(self.settings)
        told = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if told:
            raise PartsError(
                f"{what} was made with other settings: {'; '.join(told)}. Give another --out, or delete this one"
            )


def fill(
    parts: Parts,
    *,
    world: "World",
    open_stream: Callable[[np.ndarray], Any],
    keys_of: Callable[[np.ndarray], Mapping[str, pa.Array]],
    outputs_of: Callable[[Any], Mapping[str, pa.Array]],
    what: str = "clips",
) -> bool:
    """Makes the parts that are missing, each on one of the processes, and the whole table of them.

    To be called by all processes. Row numbers count through the table.

    Args:
        parts: the table.
        world: all processes; parts are dealt out in turn.
        open_stream: (n,) row numbers ─► their batches in this order, of `batch_size` each (`evaluation_clips` with its
            default rank and world; or anything with `close` whose batches have a `status`). Called once, for all parts
            of this process.
        keys_of: (b,) row numbers ─► columns that hold for every row.
        outputs_of: a batch ─► columns, one value a sample. Samples that could not be read, for which the batch holds
            another one (status 2), get null instead.
        what: is counted in the progress bar.

    Returns:
        False where the table was finished already.

    Raises:
        PartsError: see `Parts.begin`.
        OSError: likewise, or a part cannot be written.
    """
    missing, finished = _begin_together(parts, world)
    if finished:
        return False
    mine = missing[world.place.rank :: world.place.size]
    if mine:
        rows = np.concatenate([np.array(parts.rows(part), dtype=np.int64) for part in mine])
        stream = open_stream(rows)
        try:
            _fill_mine(parts, mine, stream, keys_of, outputs_of, what=what, quiet=not world.is_first)
        finally:
            stream.close()
    world.barrier()
    if world.is_first:
        parts.merge()
    world.barrier()
    return True


def _begin_together(parts: Parts, world: "World") -> tuple[list[int], bool]:
    """What is missing, and whether all is finished, as the first process sees it; what it finds wrong, all raise."""
    missing: list[int] = []
    problem: Exception | None = None
    if world.is_first:
        try:
            missing = parts.begin()
        except (PartsError, OSError) as error:
            problem = error
    missing, finished, problem = world.share((missing, parts.is_finished, problem))
    if problem is not None:
        raise problem
    return missing, finished


def _fill_mine(
    parts: Parts,
    mine: Sequence[int],
    stream: Any,
    keys_of: Callable[[np.ndarray], Mapping[str, pa.Array]],
    outputs_of: Callable[[Any], Mapping[str, pa.Array]],
    *,
    what: str,
    quiet: bool,
) -> None:
    from tqdm import tqdm

    total = sum(len(parts.rows(part)) for part in mine)
    with tqdm(total=total, unit=f" {what}", disable=True if quiet else None) as bar:
        for part in mine:
            rows, tables, made = np.array(parts.rows(part), dtype=np.int64), [], 0
            while made < len(rows):
                batch = next(stream)
                size = len(batch.status)
                # take(null) is null, of columns of any type
                read = pa.array(np.arange(size), pa.int64(), mask=np.asarray(batch.status) != 0)
                outputs = {name: column.take(read) for name, column in outputs_of(batch).items()}
                tables.append(pa.table({**keys_of(rows[made : made + size]), **outputs}))
                made += size
                bar.update(size)
            parts.write(part, pa.concat_tables(tables))


def sample_keys(corpus: "Corpus", rows: np.ndarray) -> dict[str, pa.Array]:
    """The columns that every such table begins with: key, name, labels (list of int32; empty = unlabelled).

    Args:
        corpus: the opened shards.
        rows: (n,) rows of the corpus.
    """
    every = rows.tolist()
    return {
        "key": pa.array([corpus.key(row) for row in every], pa.string()),
        "name": pa.array([corpus.name(row) for row in every], pa.string()),
        "labels": pa.array([corpus.labels_of(row) for row in every], pa.list_(pa.int32())),
    }


def sample_settings(corpus: "Corpus", clips: "DataConfig", rows: np.ndarray) -> dict[str, Any]:
    """What a table depends on of the data, for `Parts`: the datasets, labels, chosen samples and the sampling of clips.

    Args:
        corpus: the opened shards.
        clips: how clips are sampled and decoded.
        rows: (n,) rows of the corpus that take part.
    """
    labels = corpus.labels
    names = ("decode", "sampling", "short", "sampling_rate", "target_fps", "num_segments", "frames_per_segment")
    return {
        "dataset": corpus.fingerprint,
        "labels": _hash(labels.offsets.astype(np.int64), labels.values.astype(np.int32), "\n".join(labels.names)),
        "samples": _hash(rows.astype(np.int64)),
        "data": {name: getattr(clips, name) for name in names},
    }


def _hash(*of: np.ndarray | str) -> str:
    digest = hashlib.sha256()
    for one in of:
        digest.update(one.encode() if isinstance(one, str) else one.tobytes())
    return digest.hexdigest()[:16]


def _stored_settings(path: Path) -> dict[str, Any]:
    try:
        stored = (pq.read_schema(path).metadata or {}).get(METADATA)
    except pa.ArrowException as error:
        raise PartsError(f"{path}: no Parquet file ({error}); give another --out, or delete it") from error
    if stored is None:
        raise PartsError(f"{path}: not a table of ours, it tells no settings; give another --out, or delete it")
    settings: dict[str, Any] = json.loads(stored)
    return settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"decode": "cpu"}} ─► {"data.decode": "cpu"}"""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
