"""Folders that look like runs of a training, without a training: config.yaml, metrics.jsonl and the rest."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner
from mae3d.tracking.run_dir import DONE, STOPPED, Run


def make_run(
    folder: Path,
    *,
    steps: int = 100,
    total: int = 1000,
    every: int = 10,
    settings: Mapping[str, Any] | None = None,
    state: str = "failed",
    pictures: int = 0,
) -> Path:
    """Return the folder of a run that has come to a step.

    Args:
        folder: is made.
        steps: it has taken.
        total: of its config.
        every: steps between lines.
        settings: sections of the config that differ.
        state: running, stopping, dead, stopped, done or failed.
        pictures: evaluations with a picture.
    """
    config: dict[str, Any] = {
        "model": {"preset": "vit_base"},
        "data": {"repeat_aug": 2},
        "optim": {"blr": 1e-3},
        "train": {"steps": total, "global_batch": 8},
        "run": {"dir": str(folder), "remote": ""},
    }
    for section, values in (settings or {}).items():
        config[section] = config.get(section, {}) | values
    run = Run(folder)
    run.claim(config, extend=False)
    rows = [row_of(step) for step in range(every, steps + 1, every)]
    run.write_metrics(*rows)
    run.heartbeat(0, steps)
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "latest").write_text(checkpoint.name + "\n")
    for i in range(pictures):
        (folder / "eval").mkdir(exist_ok=True)
        Image.new("RGB", (64, 32), (i % 256, 0, 0)).save(folder / "eval" / f"step-{every * (i + 1):08d}.png")
    owner = Owner.here("training")
    if state in ("running", "stopping", "dead"):
        owner = replace(owner, ending=state == "stopping", started="1" if state == "dead" else owner.started)
        FolderLockStore(folder).create(LOCK_NAME, owner)
    elif state == "stopped":
        run.end(STOPPED, "stopped by SIGTERM after step 100")
    elif state == "done":
        run.end(DONE, f"{steps} steps")
    return folder


def row_of(step: int, **more: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl."""
    row = {"step": step, "epoch": step / 50, "loss": 0.5 + math.exp(-step / 300), "lr": 1e-3, "grad_norm": 0.4}
    return row | {"clips_per_s": 160.0, "data_wait": 0.02, "skipped_steps": 0, "rollbacks": 0} | more


def tree_of(folder: Path) -> dict[str, tuple[int, float]]:
    """Return size and time of a folder and all below it: also files that were there for a moment change a folder's."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def as_json(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config))
