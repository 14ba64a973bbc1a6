"""Statuses of runs ─► the lines of a table that fits a terminal.

print(*lines_of(list(find_runs([Path("runs")])), width=80), sep="\\n")

On a narrow terminal the less urgent columns go first, then the middles of long names.
"""

from collections.abc import Mapping, Sequence

from mae3d.io.console import cut_text, printable, text_width, time_text
from mae3d.tracking.overview import DAMAGED, RUNNING, RunStatus

_DROPPED = ("wait", "epoch", "note", "checkpoint", "clips/s", "loss", "ETA", "step")  # the first goes first
_NOTE = 24  # letters of a note that are worth a column
_LEFT = {"name", "state", "note"}  # columns whose texts begin at the same letter
_GAP = 2
_NAME, _NARROW_NAME, _NARROW = 24, 12, 72  # letters that a name keeps: on a terminal, on one narrower than this


def cells_of(status: RunStatus) -> dict[str, str]:
    """Return a run's cells by the columns' names; unknown ones are empty."""

    def form(value: float | None, how: str) -> str:
        return "" if value is None else format(value, how)

    step = "" if status.step is None else f"{status.step:,}"
    if step and status.total:
        step += f"/{status.total:,}"
    checkpoint = "" if status.checkpoint is None else f"{status.checkpoint:,}"
    if checkpoint and status.checkpoint_age_s is not None:
        checkpoint += f" ({time_text(status.checkpoint_age_s)} ago)"
    return {
        "name": status.name,
        "state": status.state,
        "step": step,
        "epoch": form(status.epoch, ".1f"),
        "loss": form(status.loss, ".4f"),
        "clips/s": form(status.clips_per_s, ".1f"),
        "wait": form(status.data_wait, ".0%"),
        "checkpoint": checkpoint,
        "ETA": "" if status.eta_s is None else time_text(status.eta_s),
        "note": status.note,
    }


def lines_of(statuses: Sequence[RunStatus], width: int | None = None) -> list[str]:
    """Return the head and a line per run; none if there is no run.

    Args:
        statuses: the runs.
        width: columns of the terminal; None for lines of any length.
    """
    if not statuses:
        return []
    rows = [{name: printable(text) for name, text in cells_of(status).items()} for status in statuses]
    names = [name for name in rows[0] if name in ("name", "state") or any(row[name] for row in rows)]
    for dropped in _DROPPED:
        if width is None or _natural(rows, names, width) <= width:
            break
        names = [name for name in names if name != dropped]
    widths = {name: max(len(name), *(text_width(row[name]) for row in rows)) for name in names}
    widths |= {"note": len("note")} if "note" in names else {}
    if width is not None:
        room = width - _total(widths) + widths["name"] - (_NOTE if "note" in names else 0)
        widths["name"] = min(widths["name"], max(room, _NARROW_NAME))
    lines = [_line({name: name for name in names}, widths)]
    for status, row in zip(statuses, rows, strict=True):
        if status.state == DAMAGED:  # its reason stands instead of figures
            head = _line({name: row[name] for name in ("name", "state")}, {n: widths[n] for n in ("name", "state")})
            lines.append(f"{head:{widths['name'] + widths['state'] + _GAP}}  {row['note']}")
        else:
            lines.append(_line({name: row[name] for name in names}, widths))
    running = sum(status.state == RUNNING for status in statuses)
    lines.append(f"{len(statuses):,} run{'s' if len(statuses) > 1 else ''}, {running:,} running")
    return [line if width is None else cut_text(line, width) for line in lines]


def _natural(rows: Sequence[Mapping[str, str]], names: Sequence[str], width: int) -> int:
    """Return the width with all names shortened and the shortest useful note."""
    widths = {name: max(len(name), *(text_width(row[name]) for row in rows)) for name in names}
    widths["name"] = min(widths["name"], _NAME if width >= _NARROW else _NARROW_NAME)
    if "note" in widths:
        widths["note"] = min(widths["note"], _NOTE)
    return _total(widths)


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _line(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    texts = []
    for name, text in cells.items():
        text = _shortened(text, widths[name]) if name == "name" else text
        space = " " * (widths[name] - text_width(text))
        texts.append(text + space if name in _LEFT else space + text)
    return (" " * _GAP).join(texts).rstrip()


def _shortened(text: str, width: int) -> str:
    """Return a text whose middle is left out, if it is too long."""
    if text_width(text) <= width:
        return text
    head = cut_text(text, (width - 1) // 3 + 1)  # with the ellipsis
    tail = cut_text(text[::-1], width - text_width(head) + 1)[::-1].removeprefix("…")
    return head + tail
