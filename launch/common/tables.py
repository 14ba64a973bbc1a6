"""Small tables of results ─► CSV files, whole or absent, and lines for a terminal; large ones of vectors are read.

write_csv(out / "summary.csv", {"mask": ["tube"], "mean": [0.41]})
print(*aligned({"mask": ["tube"], "mean": [0.41]}), sep="\n")
vectors, rows = read_vectors(Path("vectors.parquet"))

A table is columns of equal length by name; None is an empty cell.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Columns = Mapping[str, Sequence[Any]]
BLOCK_ROWS = 8192  # of a table of vectors that are in memory at a time


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the table of the rows; a name that a row lacks is an empty cell."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def write_csv(path: Path, columns: Columns) -> None:
    """Replace a CSV file with a header line."""
    write_rows(path, [list(columns), *zip(*columns.values(), strict=True)])


def write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Replace a CSV file by lines of which the first is the head; two of its names may be alike."""
    from mae3d.io.files import write_text

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def aligned(columns: Columns) -> list[str]:
    """Return a line for the head and for each row; fractions are rounded to four digits behind the point."""
    cells = [[name, *map(_cell, values)] for name, values in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*cells, strict=True)
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def vector_blocks(path: Path, *, row_groups: Sequence[int] | None = None) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """Yield the rows (n,) and vectors (n, width) float32 of a table of launch/embed.py, a few at a time, without nulls.

    Args:
        path: the table.
        row_groups: ascending numbers of the row groups to read; None for all.
    """
    import numpy as np
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        width = file.schema_arrow.field("vector").type.list_size
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        begins = np.cumsum([0, *sizes])
        for group in range(len(sizes)) if row_groups is None else row_groups:
            begin = int(begins[group])
            for batch in file.iter_batches(BLOCK_ROWS, columns=["vector"], row_groups=[group]):
                there = np.flatnonzero(batch.column(0).is_valid())
                values: Any = batch.column(0)
                yield begin + there, values.flatten().to_numpy(zero_copy_only=False).reshape(len(there), width)
                begin += len(batch)


def read_vectors(path: Path, *, most: int | None = None) -> "tuple[np.ndarray, np.ndarray]":
    """Return the vectors of a table of launch/embed.py that are not null, (n, width) float32, and their rows (n,).

    Args:
        path: the table; never all of it is in memory beside the vectors.
        most: return so many, at equal distances, if there are more; None for all.
    """
    import numpy as np
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        there = np.concatenate([batch.column(0).is_valid() for batch in file.iter_batches(columns=["vector"])])
        width = file.schema_arrow.field("vector").type.list_size
    rows = np.flatnonzero(there)
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    vectors, made = np.zeros((len(rows), width), np.float32), 0
    for block, of_block in vector_blocks(path):
        chosen = of_block[np.isin(block, rows, assume_unique=True)]
        vectors[made : made + len(chosen)] = chosen
        made += len(chosen)
    return vectors, rows
