"""Runs below a folder ─► a page that follows them, with the data that it reads again and again, all in one folder.

board = Board(Path("runs"), Path("runs/board"), every_s=30)
board.write()                                  # once per interval; what has not changed is not read again

board.html loads runs.js, and data/RUN.js of the runs that are chosen, as scripts: that works from a file as well as
over http. Texts of the runs are JSON in them, and reach the page as text alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from launch.report.board_style import SCRIPT, STYLE
from launch.report.runs_table import cells_of
from mae3d.io.files import replace_file, write_text
from mae3d.io.html import escape, page, paragraph, refuse_other_page, table
from mae3d.io.resume import dotted
from mae3d.tracking.curves import Curves, Follower
from mae3d.tracking.history import SCORES, pictures
from mae3d.tracking.overview import DAMAGED, RunStatus, clips_per_step, find_runs, is_run
from mae3d.tracking.plots import CURVES
from mae3d.tracking.run_dir import EVENTS, SPIKES, Run, last_rows

PAGE, STATE, DATA, IMAGES = "board.html", "runs.js", "data", "pictures"
MOST_PICTURES = 100  # of a run, spread over its evaluations
PICTURE_WIDTH, _QUALITY = 1600, 85
MOST_PIXELS = 1 << 26  # of a picture; PIL itself begins to doubt at 89 million
_VALUE = 200  # letters of a setting
_MARK = "// MAE3D\n"  # the head of the scripts
_FIRST = ("loss",)  # curves come in this order, scores behind them
_AXES = ("epoch", "hours")


@dataclass
class _Followed:
    """A run between two states of the page: its curves, and the digest of its data file as it was written."""

    follower: Follower
    curves: Curves
    digest: str = ""


class Board:
    """The page of the runs below a folder."""

    def __init__(self, folder: Path, out: Path, *, every_s: float):
        """Name the folders; nothing is read or written yet.

        Args:
            folder: the runs lie in it or below it.
            out: folder of the page.
            every_s: seconds between two writes, for the page; 0 if there is one alone.

        Raises:
            ValueError: `out` is in a run's folder, which is never written to, or has another program's files.
        """
        self.folder, self.out, self.page = folder, out, out / PAGE
        self._every_s = every_s
        self._runs: dict[str, _Followed] = {}
        for parent in (out.resolve(), *out.resolve().parents):
            if parent.is_dir() and is_run({path.name: path for path in parent.iterdir()}):
                raise ValueError(f"{out}: lies in the folder of a run, {parent}: give another --out")
        refuse_other_page(self.page)
        if not self.page.exists() and (there := [name for name in (STATE, DATA, IMAGES) if (out / name).exists()]):
            raise ValueError(f"{out / there[0]}: there, and no {PAGE} beside it: give another --out, or move it")

    def write(self) -> int:
        """Write what has changed since the last time; return the number of runs.

        Raises:
            ValueError: the folder of the runs is gone.
            OSError: the page cannot be written.
        """
        statuses = list(find_runs([self.folder]))
        (self.out / DATA).mkdir(parents=True, exist_ok=True)
        write_text(self.page, self._page(statuses))  # first: it marks the files beside it as this program's
        entries = []
        for status in statuses:
            name = hashlib.sha256(str(status.folder.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
            version = "" if status.state == DAMAGED else self._write_data(status, name)
            entries.append({"id": name, "version": version, "cells": list(cells_of(status).items())})
        state = {"written": _now(), "every_s": self._every_s, "runs": entries}
        write_text(self.out / STATE, f"{_MARK}board.state({_as_script(state)});\n")
        return len(statuses)

    def _page(self, statuses: Sequence[RunStatus]) -> str:
        rows = [[status.name, status.state, *list(cells_of(status).values())[2:]] for status in statuses]
        body = [
            f"<h1>Runs below {escape(str(self.folder))}</h1>",
            '<p id="written">Curves need a script; without one, this is the state at which the page was made.</p>',
            f'<section id="runs">{table(rows, columns=_columns(), row_names=True)}</section>',
            _CONTROLS,
            '<div id="curves"></div>',
            '<section id="pictures" hidden></section>',
            '<section id="differences" hidden></section>',
            '<section id="events" hidden></section>',
        ]
        if not statuses:
            body.insert(2, paragraph("There is no run yet. The page shows those that come."))
        return page(f"Runs: {self.folder.resolve().name}", body, style=STYLE, script=SCRIPT)

    def _write_data(self, status: RunStatus, name: str) -> str:
        """Write a run's data, if they have changed; return their digest."""
        config = dotted(Run(status.folder).stored())
        run = self._runs.get(name)
        if run is None or run.follower.is_new_course():
            follower = Follower(status.folder) if run is None else run.follower
            run = _Followed(follower, Curves(clips_per_step(config)))
            self._runs[name] = run
        for row in run.follower.rows():
            run.curves.add(row)
        data = {
            "settings": [(key, _text(value)) for key, value in config.items() if key != "run.dir"],
            "curves": _ordered(run.curves),
            "axes": {axis: _points(run.curves.named[axis].points()) for axis in _AXES if axis in run.curves.named},
            "events": _events(status.folder, run.curves),
            "pictures": self._copy_pictures(status.folder, name),
            "remote": status.remote,
        }
        script = f'{_MARK}board.data("{name}", {_as_script(data)});\n'
        digest = hashlib.sha256(script.encode()).hexdigest()[:12]
        if digest != run.digest:
            write_text(self.out / DATA / f"{name}.js", script)
            run.digest = digest
        return digest

    def _copy_pictures(self, folder: Path, name: str) -> list[tuple[int, str]]:
        """Return (step, path from the page) of the pictures of a run's evaluations, each a smaller JPEG here."""
        shown, copies = _spread(pictures(folder)), []
        if shown:
            (self.out / IMAGES / name).mkdir(parents=True, exist_ok=True)
        for step, source in shown:
            copy = self.out / IMAGES / name / f"step-{step:08d}.jpg"
            if not copy.exists() or copy.stat().st_mtime < source.stat().st_mtime:
                picture = _shrunk(source)
                if picture is None:
                    continue
                with replace_file(copy) as aside:
                    picture.save(aside, "JPEG", quality=_QUALITY)
            copies.append((step, f"{IMAGES}/{name}/{copy.name}"))
        return copies


_CONTROLS = """<form id="controls" hidden>
<label>x <select name="x"><option value="step">steps</option><option value="epoch">epochs</option>
<option value="hours">hours in steps</option></select></label>
<label><input type="checkbox" name="log"> log scale</label>
<label>smoothing <input type="range" name="smooth" min="0" max="20" value="5"><output></output></label>
</form>"""


def _columns() -> list[str]:
    return list(cells_of(RunStatus(Path(), "", "")))


def _ordered(curves: Curves) -> list[dict[str, Any]]:
    """Return the curves for the page: the loss, scores, then all others."""
    rank = {name: position for position, name in enumerate((*_FIRST, *CURVES))}

    def order(name: str) -> tuple[int, int]:
        if name.startswith(SCORES):
            return 1, 0
        return (0 if name in _FIRST else 2), rank.get(name, len(rank))

    return [
        {
            "name": name,
            "title": CURVES.get(name, name),
            "score": name.startswith(SCORES),
            "points": _points(curves.named[name].points()),
            "means": _points(curves.named[name].means()),
        }
        for name in sorted((name for name in curves.named if name not in _AXES), key=order)
    ]


def _points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, float(f"{value:.6g}")) for step, value in points]


def _events(folder: Path, curves: Curves) -> list[tuple[int, str, str]]:
    """Return (step, time, text) of the run's starts, stops, leaps of the loss and faults, in order of steps."""
    events = [(step, "", text) for step, text in curves.events]
    for row in last_rows(folder, SPIKES):
        events.append((row["step"], "", f"the loss leapt to {row.get('loss')}, usually {row.get('usual')}"))
    for row in last_rows(folder, EVENTS):
        when = row.get("time")
        clock = _now(when) if isinstance(when, int | float) and 0 <= when < 1e11 else ""
        events.append((row["step"], clock, _text(row.get("event"))))
    return sorted(events, key=lambda event: event[:2])


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}…"


def _now(seconds: float | None = None) -> str:
    now = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    return now.astimezone().isoformat(sep=" ", timespec="seconds")


def _as_script(data: Mapping[str, Any]) -> str:
    """Return a JavaScript expression of plain data; a text inside cannot end it, nor name a prototype."""
    return f"JSON.parse({json.dumps(json.dumps(data, separators=(',', ':')))})"


def _spread(items: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Return the pictures, of too many every second, fourth, ... and the last; copies that were made stay of use."""
    stride = 1
    while len(items) > stride * MOST_PICTURES:
        stride *= 2
    return [item for i, item in enumerate(items) if i % stride == 0 or i == len(items) - 1]


def _shrunk(source: Path) -> Image.Image | None:
    """Return a picture of bounded width; None if it cannot be read, as one that is being written."""
    try:
        with Image.open(source) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((PICTURE_WIDTH, 1 << 15))
    return picture
