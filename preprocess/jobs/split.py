"""`python -m preprocess split`: splits for a finished dataset: a rule in its plan, and a new generation of the index.

    lines = split("out/shards", fractions={"train": 0.9, "val": 0.1}, seed=0)
    lines = split("out/shards", fractions={...}, seed=0, by="patient", table="cases.csv", key="video")

Shards are not touched. Killed anywhere and run again it ends in the same dataset.
"""

import io
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from preprocess.dataset.index import META_NAME, PLAN_NAME, parse_meta
from preprocess.dataset.schema import DatasetError
from preprocess.jobs.lock import hold
from preprocess.jobs.lock_store import LOCK_NAME
from preprocess.jobs.merge_slices import merge
from preprocess.jobs.output import Output, open_output
from preprocess.plan.plan import Plan, read_plan, write_plan
from preprocess.plan.splits import groups_of, split_rule, tell, with_groups
from preprocess.sources.source import SCRATCH, opened


def split(
    out: str | Path,
    *,
    fractions: Mapping[str, float],
    seed: int,
    by: str = "name",
    table: str = "",
    key: str = "name",
    scratch: Path | None = None,
) -> list[str]:
    """Writes splits into a finished dataset.

    Args:
        out: its folder or URL.
        fractions: of the groups for each split.
        seed: of the draw.
        by: "name": a group is a recording; else a column of `table`, such as the patient.
        table: path or URL of a .csv or .parquet with a row a recording.
        key: the column of `table` with the dataset's names.
        scratch: for files on their way to a URL.

    Returns:
        The lines of a summary.

    Raises:
        DatasetError: no finished dataset, or recordings that the table has no group for.
        ValueError: options that do not go together.
        Locked: a run is at work there.
        OSError: `out` cannot be written.
    """
    if (by == "name") == bool(table):
        raise ValueError("--by COLUMN and --table FILE go together; --by name needs neither")
    rule = split_rule(fractions, seed=seed, by=by)
    scratch = scratch or Path(tempfile.gettempdir())
    output = open_output(out, scratch=scratch)
    try:
        there = output.sizes()
    except (FileNotFoundError, NotADirectoryError):
        there = {}
    if PLAN_NAME not in there or META_NAME not in there:
        raise DatasetError(f"{output}: no finished dataset ({META_NAME}, {PLAN_NAME}); build it first")
    with hold(output.board, LOCK_NAME, job="split", excludes=True), output.work() as folder:
        output.fetch([PLAN_NAME], folder)
        plan = replace(read_plan(folder / PLAN_NAME), split_rule=rule)
        try:
            plan = with_groups(plan, _read_groups(table, key, by) if table else None)
        except DatasetError as error:
            raise DatasetError(f"{table}: {error}; add rows for them ({key}, {by}), or split --by name") from error
        write_plan(plan, folder / PLAN_NAME)
        output.publish([PLAN_NAME], folder)
    merge(out, scratch=scratch)
    with output.work() as folder:
        return _told(plan, output, folder)


def _read_groups(table: str, key: str, by: str) -> dict[str, str]:
    """The column `by` of a table by its column `key`; DatasetError if it has no such columns, or a key twice."""
    root, path = opened(table, "--table takes a .csv or .parquet", scratch=SCRATCH)
    data = io.BytesIO(root.read(path))
    try:
        if path.lower().endswith(".parquet"):
            rows = pq.read_table(data)
        else:
            rows = pyarrow.csv.read_csv(
                data, convert_options=pyarrow.csv.ConvertOptions(column_types={key: pa.string(), by: pa.string()})
            )
    except pa.ArrowException as error:
        raise DatasetError(f"cannot be read ({error})") from error
    if missing := [name for name in (key, by) if name not in rows.column_names]:
        raise DatasetError(f"no column {missing[0]!r}; there are {', '.join(rows.column_names)}")
    columns: Any = (pc.cast(rows[name], pa.string()).to_pylist() for name in (key, by))
    found: dict[str, str] = {}
    for name, group in zip(*columns, strict=True):
        if found.setdefault(name, group) != group:
            raise DatasetError(f"{name} is there twice, as {found[name]} and as {group}")
    return found


def _told(plan: Plan, output: Output, folder: Path) -> list[str]:
    """What came of it, and a warning for splits without a sample."""
    output.fetch([META_NAME], folder)
    meta = parse_meta((folder / META_NAME).read_bytes(), where=f"{output}/{META_NAME}")
    index = meta["files"]["index"]["name"]
    output.fetch([index], folder)
    samples = pq.read_table(folder / index, columns=["key", "split", "num_frames", "fps"])
    numbers = pc.cast(samples["key"], pa.int64())
    groups: Any = groups_of(plan).take(numbers).to_pylist()
    lines = tell(samples, groups)
    shares = meta["split_rule"]["fractions"]
    empty = [name for name, share in shares.items() if share and name not in meta["split_names"]]
    if empty:
        lines.append(f"warning: no group fell to {', '.join(empty)}: there are {len(set(groups))}; try another --seed")
    return lines
