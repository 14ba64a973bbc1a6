"""Folders with runs are looked at, and nothing is written there: each run's state, step, speed and last checkpoint.

folders ─► one status per run

    for status in find_runs([Path("runs")]): print(status.name, status.state, status.step)

A run of any length costs the same: of metrics.jsonl only the end is read. A damaged run has its damage as a note.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.lock_store import LOCK_NAME, HeldLock, ObservedLocks
from mae3d.io.resume import dotted
from mae3d.tracking.history import is_number, score_names
from mae3d.tracking.run_dir import (
    CHECKPOINTS,
    CONFIG,
    DONE,
    HEARTBEATS,
    LATEST,
    METRICS,
    PICTURES,
    STOPPED,
    Run,
    last_rows,
)

RUNNING, STOPPING, DAMAGED = "running", "stopping", "damaged"
DEPTH = 8  # folders below the first that are searched
_OF_A_RUN = (METRICS, CHECKPOINTS, HEARTBEATS)  # a folder with config.yaml and one of these is a run
_CLOSED = {CHECKPOINTS, HEARTBEATS, PICTURES, "tensorboard", "wandb"}  # folders of a run that hold no further run
_DATASET = "dataset.json"  # a folder with it holds shards, maybe very many
_RECENT = 5  # last lines whose median is the speed
_SILENT_S = 600  # seconds without a step after which a running run is said to be silent


@dataclass(frozen=True)
class RunStatus:
    """A run at this moment; None for unknown values.

    Attributes:
        folder: The run's folder.
        name: The folder as it is called below the one that was searched.
        state: running, stopping, stopped, done, failed (ended by an error), dead (its process is gone without a word),
            new (never started), or damaged.
        note: The reason of the state, if there is more to say.
        kind: pretraining or finetuning.
        step: Optimizer steps that have been taken.
        total: Steps of the whole run.
        epoch: Passes over the data.
        loss: The last one that was logged.
        scores: The last held-out scores by name.
        clips_per_s: Over all ranks, the median of the last lines.
        data_wait: The share of the time that the last line waited for data.
        eta_s: Seconds that a running run still needs at this speed.
        checkpoint: Step of the last checkpoint.
        checkpoint_age_s: Seconds since it was written.
        sign_age_s: Seconds since the last step.
        remote: The URL that it is mirrored to; "" for none.
    """

    folder: Path
    name: str
    state: str
    note: str = ""
    kind: str = ""
    step: int | None = None
    total: int | None = None
    epoch: float | None = None
    loss: float | None = None
    scores: Mapping[str, float] | None = None
    clips_per_s: float | None = None
    data_wait: float | None = None
    eta_s: float | None = None
    checkpoint: int | None = None
    checkpoint_age_s: float | None = None
    sign_age_s: float | None = None
    remote: str = ""


def find_runs(folders: Sequence[Path]) -> Iterator[RunStatus]:
    """Yield the runs in these folders and below them, in order of their names; each once.

    Raises:
        ValueError: one of the folders does not exist.
    """
    seen: set[tuple[int, int]] = set()
    for top in folders:
        if not top.is_dir():
            raise ValueError(f"{top}: no such folder; give one with runs in it (of URLs, the folders here: run.dir)")
        for folder in _run_folders(top, seen, DEPTH):
            below = folder.relative_to(top)
            prefix = top if len(folders) > 1 else Path()
            yield status_of(folder, name=str(prefix / below) if below.parts else str(top))


def _run_folders(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    """Yield the folders that are runs; links are followed, circles are not."""
    try:
        stat = folder.stat()
        entries = {entry.name: entry for entry in os.scandir(folder)}
    except OSError:  # gone meanwhile, or not for us
        return
    if (stat.st_dev, stat.st_ino) in seen or _DATASET in entries:
        return
    seen.add((stat.st_dev, stat.st_ino))
    if is_run(entries):
        yield folder
    if depth:
        for name in sorted(entries):
            if name not in _CLOSED and not name.startswith((".", TEMPORARY_PREFIX)):
                with contextlib.suppress(OSError):
                    if entries[name].is_dir():
                        yield from _run_folders(folder / name, seen, depth - 1)


def is_run(names: Mapping[str, Any]) -> bool:
    """Return whether a folder with these names is a run, or a run that has lost its config.yaml."""
    return any(name in names for name in _OF_A_RUN) and (CONFIG in names or (METRICS in names and HEARTBEATS in names))


def status_of(folder: Path, *, name: str = "") -> RunStatus:
    """Return the status of one run; its damage, if there is any, is its note.

    Args:
        folder: of the run.
        name: how it is called; the folder's last part if it is empty.
    """
    name = name or folder.name
    try:
        held = ObservedLocks(folder).read(LOCK_NAME)  # before DONE: a run that ends writes that, and then unlocks
        config = dotted(Run(folder).stored())
        if not config:
            return RunStatus(folder, name, DAMAGED, f"{CONFIG} is missing or empty")
        return _status(folder, name, held, config)
    except (OSError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or str(error).removeprefix(f"{folder}{os.sep}")
        return RunStatus(folder, name, DAMAGED, " ".join(f"{what}".split()) or type(error).__name__)


def _status(folder: Path, name: str, held: HeldLock | None, config: Mapping[str, Any]) -> RunStatus:
    rows = last_rows(folder)
    beat, silent_s = _last_step(folder)
    state, note = _state(folder, held, silent_s)
    step = beat if beat is not None else rows[-1]["step"] if rows else None
    total = total_steps(config, rows)
    speeds = [row["clips_per_s"] for row in rows if is_number(row.get("clips_per_s")) and row["clips_per_s"] > 0]
    speed = median(speeds[-_RECENT:]) if speeds else None
    eta = None
    if state == RUNNING and speed and total and step is not None:
        eta = max(total - step, 0) * clips_per_step(config) / speed
    saved, saved_age = _checkpoint(folder)
    scores = {score: value for score in score_names(rows) if (value := _last(rows, score)) is not None}
    return RunStatus(
        folder,
        name,
        state,
        note,
        kind="finetuning" if "few_shot" in config else "pretraining",
        step=step,
        total=total,
        epoch=_last(rows, "epoch"),
        loss=_last(rows, "loss"),
        scores=scores,
        clips_per_s=speed,
        data_wait=_last(rows, "data_wait"),
        eta_s=eta,
        checkpoint=saved,
        checkpoint_age_s=saved_age,
        sign_age_s=silent_s,
        remote=str(config.get("run.remote") or ""),
    )


def _state(folder: Path, held: HeldLock | None, silent_s: float | None) -> tuple[str, str]:
    """Return the state and its note."""
    if (folder / DONE).exists():
        return "done", ""
    if held is not None and held.alive:
        if held.owner.ending:
            return STOPPING, "it writes its last checkpoint"
        silent = silent_s is not None and silent_s > _SILENT_S
        return RUNNING, f"no step for {silent_s / 60:.0f} min" if silent and silent_s is not None else ""
    if held is not None:
        return "dead", f"{held.owner_text()}, is gone; the same command goes on"
    if (folder / STOPPED).exists():
        return "stopped", (folder / STOPPED).read_text(encoding="utf-8", errors="replace").strip()[:200]
    if silent_s is None and not (folder / METRICS).exists():
        return "new", "no step yet"
    return "failed", "it ended by an error; the same command goes on"


def clips_per_step(config: Mapping[str, Any]) -> int:
    """Return the clips of an optimizer step over all ranks, by a config with dotted names."""
    batch, views = config.get("train.global_batch"), config.get("data.repeat_aug")
    return (batch if isinstance(batch, int) else 1) * (views if isinstance(views, int) else 1)


def total_steps(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the steps of the whole run; where it is set in epochs, as soon as a line has the length of one."""
    steps, epochs = config.get("train.steps"), config.get("train.epochs")
    if isinstance(steps, int):
        return steps
    for row in reversed(rows):
        if is_number(epochs) and is_number(row.get("epoch")) and row["epoch"] > 0 and row["step"] > 0:
            return max(round(float(epochs or 0) * row["step"] / row["epoch"]), 1)
    return None


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if is_number(row.get(name))), None)


def _last_step(folder: Path) -> tuple[int | None, float | None]:
    """Return the step of rank 0's heartbeat and its age in seconds."""
    path = folder / HEARTBEATS / "rank-00000"
    try:
        return int(path.read_text(encoding="utf-8")), max(time.time() - path.stat().st_mtime, 0.0)
    except (OSError, ValueError):
        return None, None


def _checkpoint(folder: Path) -> tuple[int | None, float | None]:
    """Return the step of the checkpoint that a start would resume from, and its age in seconds."""
    try:
        name = (folder / CHECKPOINTS / LATEST).read_text(encoding="utf-8").strip()
        age = time.time() - (folder / CHECKPOINTS / name).stat().st_mtime
        return int(name.removeprefix("step-")), max(age, 0.0) if math.isfinite(age) else None
    except (OSError, ValueError):
        return None, None
