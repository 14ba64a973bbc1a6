"""A run's metrics become text and numbers for people: rows, best scores, speed and a summary.

mae3d metrics plot RUN [RUN2 ...] --out curves.png --keys loss eval_loss
mae3d metrics summary RUN
"""

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae3d.tracking.run_dir import BEST, CHECKPOINTS, DONE, LATEST, PICTURES, STOPPED, Run, read_metrics

SCORES = ("val_", "eval_")  # what names begin with in metrics.jsonl that held-out samples gave
SPEED = ("clips_per_s", "data_wait", "mfu")
COUNTS = {  # of metrics.jsonl, in words
    "skipped_steps": "steps skipped (gradient not finite)",
    "rollbacks": "times gone back to a checkpoint",
    "failed_saves": "checkpoints that could not be written",
    "failed_mirrors": "checkpoints that could not be copied to run.remote",
    "substituted": "damaged samples replaced by others",
    "read_retries": "reads tried again",
    "decode_errors": "batches decoded again",
}

Row = Mapping[str, Any]
Line = tuple[str, str]  # of a summary: its subject, and the text
_BELOW = "\n" + 9 * " "  # further lines of a subject stand below its text


class HistoryError(ValueError):
    """An error because there is nothing to read; the message names the run."""


def picture_of(run: Path, step: int) -> Path:
    """Return the path of the picture of an evaluation."""
    return run / PICTURES / f"step-{step:08d}.png"


def pictures(run: Path) -> list[tuple[int, Path]]:
    """Return (step, PNG) of a run's evaluations, in order."""
    return [(int(path.stem.removeprefix("step-")), path) for path in sorted((run / PICTURES).glob("step-*.png"))]


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, at least one.

    Raises:
        HistoryError: there is no such run, or it has none yet.
    """
    if not run.is_dir():
        raise HistoryError(f"{run}: no such folder; give a run, the folder that was --run.dir")
    if not Run(run).stored():
        raise HistoryError(f"{run}: no run, for it has no config.yaml; give the folder that was --run.dir")
    rows = [row for row in read_metrics(run) if isinstance(row.get("step"), int)]
    if not rows:
        raise HistoryError(f"{run}: metrics.jsonl has no line yet; the first comes after log.every steps")
    return rows


def is_lower_better(score: str) -> bool:
    """Return whether a score of metrics.jsonl is better the lower it is, by its name."""
    return score.endswith("loss")


def best_of(rows: Sequence[Row], score: str) -> tuple[int, float] | None:
    """Return (step, value) of the best line, of equal ones the first; None if the score is in none."""
    scored = [(row["step"], row[score]) for row in rows if is_number(row.get(score))]
    sign = 1 if is_lower_better(score) else -1
    return min(scored, key=lambda pair: sign * pair[1]) if scored else None


def is_number(value: object) -> bool:
    """Return whether a value can be drawn: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def score_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of held-out samples' scores, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith(SCORES)))


def speed_of(rows: Sequence[Row], *, clips_per_step: int) -> dict[str, float]:
    """Return the hours in steps (not in evaluations) over all intervals between lines, and the means of `SPEED`.

    Args:
        rows: of metrics.jsonl.
        clips_per_step: over all processes.
    """
    seconds, clips, before = 0.0, 0, 0
    weighted: dict[str, float] = {}
    for row in rows:
        interval = interval_s(row, before, clips_per_step=clips_per_step)
        if interval is None:
            continue
        clips, seconds, before = clips + (row["step"] - before) * clips_per_step, seconds + interval, row["step"]
        for name in ("data_wait", "mfu"):
            if is_number(row.get(name)):
                weighted[name] = weighted.get(name, 0.0) + row[name] * interval
    if not seconds:
        return {}
    return {"hours": seconds / 3600, "clips_per_s": clips / seconds} | {n: w / seconds for n, w in weighted.items()}


def interval_s(row: Row, before: int, *, clips_per_step: int) -> float | None:
    """Return the seconds in steps since the line of step `before`, by the line's speed; None if it has none."""
    speed = row.get("clips_per_s")
    return (row["step"] - before) * clips_per_step / speed if is_number(speed) and speed and speed > 0 else None


def summary(folder: str | Path) -> str:
    """Summarise a run, one line per subject.

    Raises:
        HistoryError: there is no such run, or nothing in it.
    """
    run = Path(folder)
    rows, config = rows_of(run), Run(run).stored()
    lines = [
        *_length(run, rows),
        *_scores(rows),
        *_speed(rows, config),
        ("trouble", _trouble(rows)),
        *_model(run, config),
    ]
    return "\n".join(f"{name + ':':9}{text}" for name, text in lines)


def _length(run: Path, rows: Sequence[Row]) -> Iterator[Line]:
    state = "running, or killed: then the same command goes on"
    if (run / DONE).exists():
        state = "finished"
    elif (run / STOPPED).exists():
        state = f"{(run / STOPPED).read_text(encoding='utf-8').strip()}; the same command goes on"
    yield "run", f"{run} ({state})"
    yield "length", f"{rows[-1]['step']:,} steps, {rows[-1].get('epoch', math.nan):.1f} epochs"
    losses = [row for row in rows if is_number(row.get("loss"))]
    if losses:
        first, last = losses[0], losses[-1]
        step, lowest = best_of(losses, "loss") or (0, math.nan)
        text = f"{first['loss']:.4f} at step {first['step']:,}, {last['loss']:.4f} at step {last['step']:,}"
        yield "loss", text + (f"; lowest {lowest:.4f} at step {step:,}" if step != last["step"] else "")


def _scores(rows: Sequence[Row]) -> Iterator[Line]:
    lines = []
    for name in score_names(rows):
        if best := best_of(rows, name):
            last = next(row for row in reversed(rows) if is_number(row.get(name)))
            text = f"{name} {last[name]:.4f} at step {last['step']:,}"
            lines.append(text + ("" if best[1] == last[name] else f", best {best[1]:.4f} at step {best[0]:,}"))
    if lines:
        yield "scores", _BELOW.join(lines)


def _speed(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[Line]:
    clips = config.get("train", {}).get("global_batch", 1) * config.get("data", {}).get("repeat_aug", 1)
    if speed := speed_of(rows, clips_per_step=clips):
        hours = speed["hours"]
        text = f"{speed['clips_per_s']:.1f} clips/s, " + (f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min")
        text += f" in steps, {speed.get('data_wait', 0):.1%} of it waiting for data"
        yield "speed", text + (f", MFU {speed['mfu']:.1%}" if "mfu" in speed else "")


def _trouble(rows: Sequence[Row]) -> str:
    last = next((row for row in reversed(rows) if "loss" in row), {})
    return "; ".join(f"{last[name]:,} {what}" for name, what in COUNTS.items() if last.get(name)) or "none"


def _model(run: Path, config: Mapping[str, Any]) -> Iterator[Line]:
    folder = run / CHECKPOINTS
    best, latest = (
        (folder / name).read_text(encoding="utf-8").strip() if (folder / name).is_file() else ""
        for name in (BEST, LATEST)
    )
    if not latest:
        yield "model", "no checkpoint yet"
        return
    which = f"the best; the newest is {latest}" if best not in ("", latest) else "the newest"
    yield "model", f"{folder / (best or latest)} ({which}{', and the best' if best == latest else ''})"
    shards = config.get("data", {}).get("shards") or "SHARDS"
    shards = shlex.join([shards] if isinstance(shards, str) else shards)
    folder_of = {what: shlex.quote(f"{run}-{what}") for what in ("report", "test", "probes", "fine", "model")}
    quoted = shlex.quote(str(run))
    visualize = f"mae3d visualize --run {quoted} --data.shards {shards} --out {folder_of['report']}"
    if "few_shot" in config:  # of finetuning alone
        commands = [
            f"mae3d evaluate --run {quoted} --data.shards TEST --num_clips 5 --num_crops 3 --out {folder_of['test']}",
            visualize,
        ]
    else:
        commands = [
            visualize,
            f"mae3d probe --run {quoted} --data.shards {shards} --test.shards TEST --out {folder_of['probes']}",
            f"mae3d finetune --init {quoted} --data.shards {shards} --val.shards VAL --run.dir {folder_of['fine']}",
        ]
    plot, export = f"mae3d metrics plot {quoted}", f"mae3d export {quoted} {folder_of['model']}"
    yield "next", _BELOW.join([plot, *commands, export])
