"""A run's checkpoints are listed in a table: their contents, whether they are complete, which is latest and best.

mae3d checkpoint inspect RUN               # names and sizes: quick for any size
mae3d checkpoint inspect RUN --full        # reads every file and compares its sha256
mae3d checkpoint inspect RUN --step 500    # the files of one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints.format import MANIFEST, STATE, CheckpointError
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, LATEST, read_metrics


@dataclass(frozen=True)
class Entry:
    """A checkpoint on disk; None for unknown values."""

    name: str
    epoch: float | None
    loss: float | None
    score: float | None
    world: int
    num_bytes: int
    damage: str  # empty: whole
    marks: tuple[str, ...]  # latest, best


def look(run: Path, *, full: bool = False) -> list[Entry]:
    """Return the checkpoints of a run, oldest first.

    Args:
        run: its folder.
        full: read all bytes instead of names and sizes.
    """
    pointers = {mark: checkpoint.pointed(run, mark) for mark in (LATEST, BEST)}
    rows = {row["step"]: row for row in read_metrics(run)}
    entries = []
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        if not checkpoint.is_name(folder.name):
            continue
        try:
            checkpoint.verify(folder, full=full)
            damage = ""
        except CheckpointError as error:
            damage = str(error)
        row, score = rows.get(checkpoint.step_of(folder.name), {}), None
        try:
            score = checkpoint.read_state(folder).get("score")
        except (OSError, ValueError):
            damage = damage or f"{folder / STATE}: cannot be read"
        entries.append(
            Entry(
                folder.name,
                row.get("epoch"),
                row.get("loss"),
                score,
                len(list(folder.glob("rank-*.safetensors"))),
                sum(path.stat().st_size for path in folder.iterdir()),
                damage,
                tuple(mark for mark, name in pointers.items() if name == folder.name),
            )
        )
    return entries


def table(run: Path, entries: Sequence[Entry], *, remote: tuple[str, list[str]] | None) -> list[str]:
    """Return the table's lines.

    Args:
        run: the run's folder.
        entries: its checkpoints.
        remote: where it is mirrored to, and the names of the complete checkpoints there.
    """
    there = remote[1] if remote else []
    head = ["step", "epoch", "loss", "score", "processes", "size", "files", *(["remote"] if remote else []), ""]
    cells = [head]
    for entry in entries:
        cells.append(
            [
                f"{checkpoint.step_of(entry.name):,}",
                _number(entry.epoch, ".2f"),
                _number(entry.loss, ".4f"),
                _number(entry.score, ".4g"),
                str(entry.world),
                _size(entry.num_bytes),
                "DAMAGED" if entry.damage else "ok",
                *(["there" if entry.name in there else "-"] if remote else []),
                ", ".join(entry.marks),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([*map(str.rjust, line[:6], widths), *map(str.ljust, line[6:], widths[6:])]).rstrip() for line in cells
    ]
    lines += [f"damaged: {entry.damage}" for entry in entries if entry.damage]
    for mark in (LATEST, BEST):
        name = checkpoint.pointed(run, mark)
        if name is not None and not (run / CHECKPOINTS / name).exists():
            lines.append(f"{run / CHECKPOINTS / mark} names {name!r}, which is not there")
    if remote:
        others = [name for name in there if not (run / CHECKPOINTS / name).exists()]
        lines.append(f"remote: {remote[0]}" + (f", which also has {', '.join(others)}" if others else ""))
    return lines


def files_of(folder: Path, *, full: bool) -> list[str]:
    """Return one line per file of a checkpoint."""
    lines = []
    try:
        manifest = checkpoint.parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{folder / MANIFEST}: cannot be read ({error})"]
    for name, entry in sorted(manifest.items()):
        verdict = checkpoint.damage_of(folder / name, entry, full=full) or "ok"
        lines.append(f"{_size(entry['bytes']):>10}  {name}  {entry['sha256'][:12]}  {verdict}")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
