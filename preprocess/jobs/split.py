"""A finished dataset is split into training and validation set: a rule in its plan, and new index files.

    lines = split("out/shards", fractions={"train": 0.9, "val": 0.1}, seed=0)
    lines = split("out/shards", fractions={...}, seed=0, by="patient", table="cases.csv", key="video")

Shards are not touched. A run that was killed and is run again ends in the same dataset.
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

from mae3d.io.lock import hold
from mae3d.io.lock_store import LOCK_NAME
from preprocess.dataset.index import META_NAME, PLAN_NAME, parse_meta
from preprocess.dataset.schema import DatasetError
from preprocess.jobs.merge_slices import merge
from preprocess.jobs.output import Output, open_output
from preprocess.plan.plan import BuildPlan, read_plan, write_plan
from preprocess.plan.splits import count_lines, groups_of, split_rule, with_groups
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
    """Write splits into a finished dataset.

    Args:
        out: its folder or URL.
        fractions: of the groups for each split.
        seed: of the draw.
        by: "name": a group is a recording; else a column of `table`, such as the patient.
        table: path or URL of a .csv or .parquet with one row per recording.
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
        present = output.sizes()
    except (FileNotFoundError, NotADirectoryError):
        present = {}
    if PLAN_NAME not in present or META_NAME not in present:
        raise DatasetError(f"{output}: no finished dataset ({META_NAME}, {PLAN_NAME}); build it first")
    with hold(output.locks, LOCK_NAME, job="split", excludes=True), output.work() as folder:
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
        return _split_lines(plan, output, folder)


def _read_groups(table: str, key: str, by: str) -> dict[str, str]:
    """Return the column `by` of a table by its column `key`; raise DatasetError for a missing column or double key."""
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
    group_of: dict[str, str] = {}
    for name, group in zip(*columns, strict=True):
        if group_of.setdefault(name, group) != group:
            raise DatasetError(f"{name} is there twice, as {group_of[name]} and as {group}")
    return group_of


def _split_lines(plan: BuildPlan, output: Output, folder: Path) -> list[str]:
    """Return the counts of each split, and a warning for splits without a sample."""
    output.fetch([META_NAME], folder)
    meta = parse_meta((folder / META_NAME).read_bytes(), where=f"{output}/{META_NAME}")
    index = meta["files"]["index"]["name"]
    output.fetch([index], folder)
    samples = pq.read_table(folder / index, columns=["key", "split", "num_frames", "fps"])
    numbers = pc.cast(samples["key"], pa.int64())
    groups: Any = groups_of(plan).take(numbers).to_pylist()
    lines = count_lines(samples, groups)
    shares = meta["split_rule"]["fractions"]
    empty = [name for name, share in shares.items() if share and name not in meta["split_names"]]
    if empty:
        lines.append(f"warning: no group fell to {', '.join(empty)}: there are {len(set(groups))}; try another --seed")
    return lines
