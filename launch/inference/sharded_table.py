"""Batches of samples, on any number of ranks ─► one big Parquet table, which comes out the same byte for byte.

table = ShardedTable(out / "predictions.parquet", num_rows=len(rows), batch_size=8, settings={"model": sha256, ...})
fill_missing_shards(table, world=world, open_stream=open_stream, keys_of=keys_of, columns_of=columns_of)
rows = pq.read_table(table.path)          # num_rows rows in order; with the settings in the file's metadata

Killed anywhere and started again, on any number of ranks, the same call goes on with the shards that are missing.
Batches hold the same rows on any rank, so that the finished file is the same.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mae3d.io.console import one_line
from mae3d.io.files import TEMPORARY_PREFIX, replace_file, sync, write_text
from mae3d.io.progress import Progress
from mae3d.io.resources import require_disk
from mae3d.io.resume import dotted

if TYPE_CHECKING:
    from mae3d.distributed import World

MAX_SHARDS = 1000  # a kill loses at most a thousandth of a long table per rank
ROW_GROUP_BYTES = 64 * 2**20  # rows that the merge holds in memory
METADATA = b"mae3d"  # key of the settings in the finished file
SETTINGS = "settings.json"


class TableError(ValueError):
    """An error because a table has other settings; the message names them and the remedy."""


class ShardedTable:
    """The file `PATH` of a finished table; until then a folder beside it with one file per shard, a range of rows."""

    def __init__(
        self,
        path: Path,
        *,
        num_rows: int,
        batch_size: int,
        settings: Mapping[str, Any],
        row_bytes: int = 0,
        beside: Sequence[str] = (),
    ) -> None:
        """Describe the table; nothing is touched yet.

        Args:
            path: of the finished Parquet file.
            num_rows: of the complete table, 1 or more.
            batch_size: rows per batch; a shard is a number of batches, which so never depend on the missing shards.
            settings: all that the rows depend on, as nested plain values: the model, the samples, the views.
            row_bytes: of a row on the disk, at least.
            beside: names of files that are written beside it when it is finished.
        """
        self.path, self.num_rows, self.row_bytes, self.beside = path, num_rows, row_bytes, beside
        self.folder = path.with_name(f"{path.name}.parts")
        self.shard_rows = batch_size * -(-num_rows // (batch_size * MAX_SHARDS))
        self.num_shards = -(-num_rows // self.shard_rows)
        # through JSON, which stores them: tuples become lists
        self.settings: dict[str, Any] = json.loads(
            json.dumps({**settings, "rows": num_rows, "rows_at_once": batch_size})
        )

    @property
    def is_finished(self) -> bool:
        """Return whether the complete table is there, of any settings."""
        return self.path.is_file()

    def begin(self) -> list[int]:
        """Make the folder, or list the shards that an earlier start left there.

        Returns:
            The numbers of the missing shards; none if the table is finished.

        Raises:
            TableError: the table has other settings than these, or another program wrote it, or a file of `beside` is
                there already, whose table this is not.
            OSError: the folder cannot be made, or the table does not fit into its file system.
        """
        if self.is_finished:
            self._compare(stored_settings(self.path), file=self.path)
            with contextlib.suppress(TableError):
                if self._folder_settings() in (None, self.settings):
                    self._remove_folder()  # left by a merge that was killed at its very end
            return []
        if self.path.exists():
            raise TableError(f"{self.path}: a folder; give the name of a file as --out")
        stored, done = self._folder_settings(), {path.name for path in self.folder.glob("part-*.parquet")}
        if stored is not None and done:
            self._compare(stored, file=self.folder)
        else:  # no shard is lost by other settings
            for name in self.beside:
                if self.path.with_name(name).exists():
                    raise TableError(
                        f"{self.path.with_name(name)}: there already, without its {self.path.name}: remove it, or give "
                        "another --out"
                    )
        missing = [shard for shard in range(self.num_shards) if self._file(shard).name not in done]
        require_disk(
            self.folder,
            self.row_bytes * (self.num_rows + sum(len(self.rows(shard)) for shard in missing)),  # and then its copy
            f"a table of {self.num_rows:,} rows of {self.row_bytes:,} bytes, and its shards until they are joined",
            "give an --out with more room, or fewer samples",
        )
        if not done:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / SETTINGS, json.dumps(self.settings, indent=1) + "\n")
        return missing

    def rows(self, shard: int) -> range:
        """Return the row numbers of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows))

    def write(self, shard: int, batches: Iterable[pa.Table]) -> None:
        """Store a shard, complete or not at all, with the settings: another start may work in the same folder.

        Args:
            shard: its number.
            batches: its rows in their order, of which `ROW_GROUP_BYTES` are in memory at a time.
        """
        metadata, made = {METADATA: json.dumps(self.settings)}, 0
        with replace_file(self._file(shard)) as aside:
            made = _write_groups(aside, (batch.replace_schema_metadata(metadata) for batch in batches))
            assert made == len(self.rows(shard)), (made, self.rows(shard))

    def merge(self) -> None:
        """Join all shards, in the order of the rows, into the finished file, and remove their folder.

        Raises:
            TableError: a shard is damaged, or of a start with other settings at the same time.
            OSError: a shard is missing; no space, ...
        """
        for shard in range(self.num_shards):
            if not self._file(shard).is_file():
                raise FileNotFoundError(f"{self._file(shard)} is missing: give an --out that all nodes share")
        merged = self.folder / self.path.name
        with replace_file(merged) as aside:
            _write_groups(aside, (group for shard in range(self.num_shards) for group in self._read(shard)))
        merged.replace(self.path)
        sync(self.path.parent)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the shards and then their settings, and the folder unless it holds anything else."""
        shards = map(self._file, range(self.num_shards))
        for path in (*shards, *self.folder.glob(f"{TEMPORARY_PREFIX}*"), self.folder / SETTINGS):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _folder_settings(self) -> dict[str, Any] | None:
        """Return the settings in the folder of shards, None before the first start; TableError if it is not ours."""
        file = self.folder / SETTINGS
        if not file.exists() and not any(self.folder.glob("part-*.parquet")):
            return None
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            stored = None
        if not isinstance(stored, dict) or "rows_at_once" not in stored:
            raise TableError(f"{self.folder}: not the shards of a table of ours; give another --out, or move it away")
        return stored

    def _read(self, shard: int) -> Iterator[pa.Table]:
        file = self._file(shard)
        self._compare(stored_settings(file), file=file)
        try:
            with pq.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    yield opened.read_row_group(group)
        except pa.ArrowException as error:
            raise TableError(
                f"{file}: damaged ({one_line(error)}); delete it: the next start makes it again"
            ) from error

    def _file(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05d}.parquet"

    def _compare(self, stored: Mapping[str, Any], *, file: Path) -> None:
        before, now = dotted(stored), dotted(self.settings)
        differences = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if differences:
            raise TableError(
                f"{file} was made with other settings: {'; '.join(differences)}. Give another --out, or delete this one"
            )


def _write_groups(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables with the columns and metadata of the first one, `ROW_GROUP_BYTES` of them at a time; return rows."""
    made = 0
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for group in _grouped(tables):
            writer = writer or stack.enter_context(pq.ParquetWriter(path, group.schema))
            writer.write_table(group.cast(writer.schema), row_group_size=len(group))
            made += len(group)
    return made


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables joined to `ROW_GROUP_BYTES` and a little more, and the rest."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def fill_missing_shards(
    table: ShardedTable,
    *,
    world: "World",
    open_stream: Callable[[np.ndarray], Any],
    keys_of: Callable[[np.ndarray], Mapping[str, pa.Array]],
    columns_of: Callable[[Any], Mapping[str, pa.Array]],
    unit: str = "clips",
) -> bool:
    """Make the missing shards, each on one rank, and merge all into the table; all ranks call it.

    Row numbers count through the table.

    Args:
        table: the table.
        world: all ranks; shards are dealt out in turn.
        open_stream: (n,) row numbers ─► their batches in this order, of `batch_size` each (`evaluation_clips` with its
            default rank and world; or another object with `close` whose batches have a `status`). Called once, for all
            shards of this rank.
        keys_of: (b,) row numbers ─► columns that hold for every row.
        columns_of: a batch ─► columns, one value per sample. Samples that cannot be read, for which the batch holds a
            substitute (status 2), get null instead.
        unit: the progress bar's.

    Returns:
        False if the table was finished already.

    Raises:
        TableError: see `ShardedTable.begin`.
        OSError: likewise, or a shard cannot be written.
    """
    missing, finished = world.on_first(lambda: (table.begin(), table.is_finished))
    if finished:
        return False
    mine = missing[world.ranks.rank :: world.ranks.size]
    if mine:
        rows = np.concatenate([np.array(table.rows(shard), dtype=np.int64) for shard in mine])
        stream = open_stream(rows)
        try:
            _fill_mine(table, mine, stream, keys_of, columns_of, unit=unit, quiet=not world.is_first)
        finally:
            stream.close()
    world.barrier()
    if world.is_first:
        table.merge()
    world.barrier()
    return True


def _fill_mine(
    table: ShardedTable,
    mine: Sequence[int],
    stream: Any,
    keys_of: Callable[[np.ndarray], Mapping[str, pa.Array]],
    columns_of: Callable[[Any], Mapping[str, pa.Array]],
    *,
    unit: str,
    quiet: bool,
) -> None:
    total = sum(len(table.rows(shard)) for shard in mine)
    with Progress(total, unit, doing=table.path.name, show=not quiet) as advance:
        for shard in mine:
            table.write(shard, _batches(table.rows(shard), stream, keys_of, columns_of, advance))


def _batches(
    rows: range,
    stream: Any,
    keys_of: Callable[[np.ndarray], Mapping[str, pa.Array]],
    columns_of: Callable[[Any], Mapping[str, pa.Array]],
    advance: Callable[[int], None],
) -> Iterator[pa.Table]:
    """Yield the rows of a shard, batch by batch."""
    made = 0
    while made < len(rows):
        batch = next(stream)
        size = len(batch.status)
        # take(null) is null, of columns of any type
        is_bad: Any = np.asarray(batch.status).reshape(size, -1).any(axis=1)  # one view of it is enough
        read = pa.array(np.arange(size), pa.int64(), mask=is_bad)
        columns = {name: column.take(read) for name, column in columns_of(batch).items()}
        yield pa.table({**keys_of(np.array(rows[made : made + size], dtype=np.int64)), **columns})
        made += size
        advance(size)


def stored_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a finished table or a shard; TableError if it is another program's file."""
    try:
        stored = (pq.read_schema(path).metadata or {}).get(METADATA)
    except pa.ArrowException as error:
        raise TableError(f"{path}: no Parquet file ({one_line(error)}); give another --out, or delete it") from error
    if stored is None:
        raise TableError(f"{path}: not a table of ours, because it has no settings; give another --out, or delete it")
    settings: dict[str, Any] = json.loads(stored)
    return settings
