"""The files of `benchmarks/gpu.py`: one JSON file per section, whole or absent, and all of them as one Markdown page.

OUT/mfu.rows.jsonl    written line by line while the section runs: facts, the case that begins, a row per case
OUT/mfu.json          the section: status, reason, seconds, command, device, versions, rows; replaced whole
OUT/table.md          all sections, rendered anew after each
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mae3d.io.files import write_text

OK, FAILED, TIMED_OUT, CUT, SKIPPED = "ok", "failed", "timed out", "cut", "skipped"
LEFT = "not reached"  # of a section without a file
_LAST = ("s", "skipped", "error")  # columns

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A section as it stands in its file.

    Attributes:
        section: its name.
        status: `OK`, `FAILED` (a case failed, or the process), `TIMED_OUT` (its own limit), `CUT` (the run's end: it
            goes on at the next call) or `SKIPPED` (this machine lacks what it measures).
        reason: why it is not `OK`; empty otherwise.
        seconds: time of all its processes so far.
        command: measures the section again.
        facts: device, versions, date, commit.
        rows: a case each: its name, and its figures, `error` or `skipped`.
    """

    section: str
    status: str
    reason: str
    seconds: float
    command: str
    facts: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Return whether it is not run again; a section that was never begun may find its packages the next time."""
        return self.status in (OK, FAILED, TIMED_OUT) or (self.status == SKIPPED and bool(self.rows))


class Journal:
    """The lines that a section's process leaves while it runs, so that a kill loses the case under way at most."""

    def __init__(self, path: Path):
        """Open the journal of an earlier process or a new one; a half line at its end, of a kill, is left out."""
        self.path = path
        self.facts: Row = {}
        self.rows: list[Row] = []
        self.began = ""  # the case under way
        self.finished = False
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                self._take(json.loads(line))
            except ValueError:
                continue

    @classmethod
    def of(cls, folder: Path, section: str) -> "Journal":
        """Open the journal of a section."""
        return cls(folder / f"{section}.rows.jsonl")

    def write(self, **line: Any) -> None:
        """Append a line: `facts`, `began`, `row` or `finished`."""
        text = json.dumps(line, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")  # the line before may be half of one
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(text))

    def _take(self, line: Row) -> None:
        self.facts = line.get("facts", self.facts)
        self.began = line.get("began", self.began)
        self.finished = line.get("finished", self.finished)
        if "row" in line:
            self.rows.append(line["row"])
            self.began = ""


def save(folder: Path, result: Result) -> None:
    """Replace a section's file."""
    write_text(folder / f"{result.section}.json", json.dumps(asdict(result), indent=1, default=str) + "\n")


def load(folder: Path, section: str) -> Result | None:
    """Return what a section's file says; without one what its journal has, of a run that was killed; None without both.

    Raises:
        ValueError: the file is none of ours.
    """
    path = folder / f"{section}.json"
    if not path.exists():
        journal = Journal.of(folder, section)
        seconds = sum(float(row.get("s", 0)) for row in journal.rows)
        killed = Result(section, CUT, "the run was killed: the next call goes on", seconds, "", journal.facts)
        return replace(killed, rows=journal.rows) if journal.rows else None
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no result of benchmarks/gpu.py ({error}); remove it") from error


def judged(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the status and the reason of a section that has come to its end."""
    failed = [row for row in rows if "error" in row]
    skipped = [row for row in rows if "skipped" in row]
    if failed:
        return FAILED, f"{len(failed)} of {len(rows)} cases: {failed[0]['case']}: {failed[0]['error']}"
    if skipped and len(skipped) == len(rows):
        return SKIPPED, str(skipped[0]["skipped"])
    return OK, f"{len(skipped)} of {len(rows)} cases skipped" if skipped else ""


def page(folder: Path, sections: Iterable[tuple[str, str]]) -> str:
    """Return all sections as Markdown.

    Args:
        folder: of the results.
        sections: name and question of each.
    """
    results = [(name, question, load(folder, name)) for name, question in sections]
    facts = next((result.facts for _, _, result in reversed(results) if result and result.facts), {})
    head = [f"# {facts.get('device', 'nothing measured yet')}", ""]
    head += [f"{name}: {value}  " for name, value in facts.items() if name not in ("device", "date", "commit")]
    overview = [
        {
            "section": name,
            "status": result.status if result else LEFT,
            "s": round(result.seconds) if result else "",
            "cases": sum("error" not in row and "skipped" not in row for row in result.rows) if result else "",
            "reason": result.reason if result else "",
            "date": result.facts.get("date", "") if result else "",
            "commit": result.facts.get("commit", "") if result else "",
        }
        for name, _, result in results
    ]
    parts = ["\n".join(head), table(overview)]
    parts += [section_text(question, result) for _, question, result in results if result and result.rows]
    return "\n\n".join(parts) + "\n"


def section_text(question: str, result: Result) -> str:
    """Return one section as Markdown."""
    reason = f": {result.reason}" if result.reason else ""
    head = f"## {result.section}: {question}\n\n{result.status}{reason}; {result.seconds:.0f} s; `{result.command}`"
    return f"{head}\n\n{table(result.rows)}" if result.rows else head


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a column for each key, in the order of its first row; `_LAST` stand last."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    names.sort(key=lambda name: _LAST.index(name) + 1 if name in _LAST else 0)
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(_cell(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(str("" if value is None else value).split()).replace("|", "\\|")
