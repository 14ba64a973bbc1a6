"""A run's folder: its layout, its config, its metrics, and the marker of its end.

run = Run("out/run")
run.check(config, extend=False)      # compares with config.yaml
run.claim(config, extend=False)      # writes it
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from mae3d.io.files import write_text
from mae3d.io.resume import ALL_FIXED, ResumeRules, dotted

CONFIG, METRICS, DONE, STOPPED = "config.yaml", "metrics.jsonl", "DONE", "STOPPED"
STOP = "STOP"  # made by a person: the run stops at the next step, and does not start while it is there
SPIKES, HEARTBEATS = "spikes.jsonl", "heartbeats"
EVENTS = "events.jsonl"  # when the run was started and ended, and at which step
CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"  # a folder, and the files in it that name a checkpoint
PICTURES = "eval"  # a folder with a picture of each evaluation

_LISTED = 16  # ranks that a message lists
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C's is ten times faster


class RunError(ValueError):
    """An error because a run cannot go on with these settings; the message names each with both values."""


class Run:
    """A run's folder, written by rank 0."""

    def __init__(self, folder: str | Path, rules: ResumeRules = ALL_FIXED):
        """Name the folder; nothing is touched yet.

        Args:
            folder: need not exist.
            rules: which settings may differ between two starts; `check` and `check_same` need them.
        """
        self.folder, self.rules = Path(folder), rules

    @property
    def is_done(self) -> bool:
        """Return whether the last step has been taken and saved."""
        return (self.folder / DONE).exists()

    def check(
        self, config: Mapping[str, Any], *, extend: bool, defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Check that the config is the one that the run was started with, if it was; nothing is written.

        Args:
            config: nested plain values, complete.
            extend: whether the run's length may change.
            defaults: nested as `config`; a setting that config.yaml lacks is newer than the run, which had its default.

        Raises:
            RunError: a setting differs that the losses depend on, or a file requests a stop.
        """
        if (self.folder / STOP).exists():
            raise RunError(f"{self.folder / STOP} requests a stop: remove that file to go on")
        if not (self.folder / CONFIG).exists():
            self.refuse_foreign()
            return
        before, now = dotted(self.stored()), dotted(_plain(config))
        if before and now and not before.keys() & now.keys():
            raise RunError(f"{self.folder / CONFIG}: no config of a run of MAE3D; give another run.dir")
        self._compare(dotted(_plain(defaults)) | before, now, extend=extend)

    def claim(self, config: Mapping[str, Any], *, extend: bool) -> None:
        """Make the folder with its config.yaml, after a `check`; the marker of an end goes if there is more to do.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / CONFIG, yaml.safe_dump(_plain(config), sort_keys=False))
        (self.folder / STOPPED).unlink(missing_ok=True)
        (self.folder / HEARTBEATS).mkdir(exist_ok=True)
        for beat in self._heartbeats():
            beat.unlink(missing_ok=True)
        if extend:
            (self.folder / DONE).unlink(missing_ok=True)

    def refuse_foreign(self) -> None:
        """Refuse a folder without config.yaml that holds names of a run: they would be rewritten or removed."""
        for name in (METRICS, SPIKES, EVENTS, CHECKPOINTS, HEARTBEATS, PICTURES, DONE, STOPPED):
            if (self.folder / name).exists():
                raise RunError(
                    f"{self.folder / name} is there, and no {CONFIG} beside it, so this folder is no run of MAE3D: "
                    "give another run.dir, or move that away"
                )

    def stored(self) -> dict[str, Any]:
        """Return the config of the run's last start, nested plain values; empty before its first start."""
        path = self.folder / CONFIG
        if not path.is_file():
            return {}
        try:
            stored = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: no config of a run ({type(error).__name__}); give another run.dir") from error
        if not isinstance(stored, dict):
            raise RunError(f"{path}: no config of a run of MAE3D; give another run.dir")
        return stored

    def check_same(self, config: Mapping[str, Any], *, where: str) -> None:
        """Compare a config from elsewhere with that of the run's last start, if there was one.

        Raises:
            RunError: it is another run's: a setting differs that the losses depend on, the length aside.
        """
        mine, other = dotted(self.stored()), dotted(config)
        shared = mine.keys() & other.keys()  # the rest is newer than one of them
        changed = [key for key in sorted(shared) if mine[key] != other[key]]
        refused = [key for key in changed if not self.rules.is_free(key) and key not in self.rules.length]
        if refused:
            both = "; ".join(f"{key}: {other[key]!r} there, {mine[key]!r} here" for key in refused)
            raise RunError(f"{where} holds another run than {self.folder} ({both}): give another run.remote or run.dir")

    def _compare(self, before: dict[str, Any], now: dict[str, Any], *, extend: bool) -> None:
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        length = self.rules.length
        refused = [key for key in changed if not self.rules.is_free(key) and not (extend and key in length)]
        if refused:
            both = "; ".join(f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in refused)
            hint = " (--extend true allows another length)" if set(refused) & set(length) else ""
            raise RunError(
                f"{self.folder} was started with other settings: {both}. Restore them{hint}, or give another run.dir"
            )

    def cut_metrics(self, step: int) -> None:
        """Remove the lines after `step`: the resumed run writes them again."""
        path = self.folder / METRICS
        if not path.exists():
            return
        kept = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if (row := _row(line)) and row["step"] <= step
        ]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def write_metrics(self, *rows: Mapping[str, Any]) -> None:
        """Append lines, all of them or, if that is an OSError, none."""
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with (self.folder / METRICS).open("ab", buffering=0) as file:
            size, written = file.seek(0, os.SEEK_END), 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    def write_spike(self, row: Mapping[str, Any]) -> None:
        """Append a line to spikes.jsonl. A full disk is no reason to stop: the log has it as well."""
        self._append(SPIKES, row)

    def write_event(self, step: int, text: str) -> None:
        """Append a line to events.jsonl, with the time. A full disk is no reason to stop."""
        self._append(EVENTS, {"step": step, "time": round(time.time(), 3), "event": text})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def heartbeat(self, rank: int, step: int) -> None:
        """Record that a rank has taken `step` steps. A full disk or a lost mount is no reason to stop."""
        with contextlib.suppress(OSError):
            (self.folder / HEARTBEATS / f"rank-{rank:05d}").write_text(f"{step}\n", encoding="utf-8")

    def describe_heartbeats(self) -> str:
        """Describe how far each rank has come."""
        beats = []
        for path in self._heartbeats():
            with contextlib.suppress(OSError, ValueError):
                seconds = max(time.time() - path.stat().st_mtime, 0)
                beats.append((int(path.read_text(encoding="utf-8")), int(path.name.removeprefix("rank-")), seconds))
        ranks = [f"rank {rank}: step {step}, {seconds:.0f} s ago" for step, rank, seconds in sorted(beats)[:_LISTED]]
        more = f"; {len(beats) - _LISTED} more" if len(beats) > _LISTED else ""
        return f"Last steps: {'; '.join(ranks)}{more}." if beats else ""

    def _heartbeats(self) -> list[Path]:
        return sorted((self.folder / HEARTBEATS).glob(f"rank-{5 * '[0-9]'}"))

    def end(self, marker: str, text: str) -> None:
        """Write DONE or STOPPED."""
        (self.folder / marker).write_text(text + "\n", encoding="utf-8")


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return all complete lines of a run's metrics.jsonl."""
    path = Path(folder) / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(_row, lines) if row]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as it comes back from a file: tuples as lists."""
    values: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return values


def last_rows(folder: str | Path, name: str = METRICS, *, most: int = 1 << 16) -> list[dict[str, Any]]:
    """Return the last complete lines of a run's file of rows, of which no more than `most` bytes are read."""
    path = Path(folder) / name
    if not path.exists():
        return []
    with path.open("rb") as file:
        begin = max(file.seek(0, os.SEEK_END) - most, 0)
        file.seek(begin)
        lines = file.read(most).split(b"\n")
    return rows_in(lines[1:] if begin else lines)  # the first one may have been cut


def rows_in(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """Return the rows that are complete, with a step."""
    return [row for row in map(_row, lines) if row and isinstance(row.get("step"), int)]


def _row(line: str | bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the last line of a killed run, or one of another program
        return None
    return row if isinstance(row, dict) else None
