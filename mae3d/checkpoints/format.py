"""Flat slices of a sharded optimizer become a checkpoint folder that any world size and ZeRO stage reads.

    RUN/checkpoints/
      step-00000100/
        rank-00000.safetensors     this rank's slices: `<kind>|<parameter>|<start>|<stop>`, 1-D float32
        model.safetensors          the fp32 weights (their moving average where one is kept) and the model's config
        state.json                 step, loader position, running sums
        manifest.json              every file's size and sha256; written last
      latest                       text: the newest complete checkpoint's name
      best                         likewise: the one with the best validation score, where there is validation

A checkpoint is staged under a name that no reader takes for one and renamed when it is complete; nothing is pickled.
This module knows files only: `engine` knows where DeepSpeed keeps the slices.
"""

import errno
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mae3d.io.files import sha256_of, sync, write_text
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.tracking.run_dir import CHECKPOINTS, LATEST
from mae3d.weights.files import MODEL_FILE, model_metadata
from mae3d.weights.tensors import stream_tensors

logger = logging.getLogger(__name__)

MANIFEST, STATE = "manifest.json", "state.json"
STAGED = ".staged-"
SEEN_S = 60.0  # that a file of another node may take until it is seen: NFS keeps what it knows of a folder for as long
_LEFTOVER = re.compile(re.escape(STAGED) + r"(old-)?step-\d{8,}\S*")
# The files of a checkpoint, whole or half-written; a folder that holds any other is never removed.
_FILE = re.compile(
    r"(\.tmp-\S+-)?(rank-\d+\.safetensors|" + "|".join(map(re.escape, (MODEL_FILE, STATE, MANIFEST))) + ")"
)

_ONLY_OURS = (MANIFEST, "rank-")  # of these one is in each; other programs have model.safetensors as well

Entries = dict[str, dict[str, Any]]  # of a manifest: a file's name ─► its bytes and sha256


class CheckpointError(ValueError):
    """An error because a checkpoint is damaged or does not fit; the message names the file and the remedy."""


@dataclass(frozen=True)
class Slice:
    """Elements start ... stop of a flattened parameter, and kind -> 1-D tensor: master, exp_avg, exp_avg_sq, ema."""

    name: str
    start: int
    stop: int
    tensors: Mapping[str, Tensor]


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def staging_folder(run: Path, step: int) -> Path:
    """Return the folder in which a step's checkpoint is put together."""
    return run / CHECKPOINTS / f"{STAGED}step-{step:08d}"


def write_rank(staging: Path, rank: int, slices: Iterable[Slice]) -> Entries:
    """Write one rank's slices, which lie on the CPU or are copied there one by one.

    Returns:
        The file's entry for the manifest.

    Raises:
        OSError: the disk is full or read-only; earlier checkpoints are as they were.
    """
    staging.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{kind}|{piece.name}|{piece.start}|{piece.stop}": tensor
        for piece in slices
        for kind, tensor in piece.tensors.items()
    }
    path = staging / f"rank-{rank:05d}.safetensors"
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    return _entry(path, stream_tensors(shapes, lambda key: tensors[key].cpu(), path))


def finish(
    run: Path,
    step: int,
    *,
    shapes: Mapping[str, torch.Size],
    config: MAEConfig | ClassifierConfig,
    state: dict[str, Any],
    written: Entries | None = None,
    kind: str = "master",
) -> Path:
    """Complete a staged checkpoint: weights, state, manifest, rename, `latest`. One rank does it, after all.

    Args:
        run: the run's folder.
        step: whose slices were staged.
        shapes: every parameter's shape.
        config: the model's.
        state: JSON values: at least `step` and `optimizer_step`.
        written: what `write_rank` gave on all ranks; None reads their files again.
        kind: which of the slices' tensors are the weights to use: "master" or "ema".

    Returns:
        The finished folder.

    Raises:
        OSError: the disk is full or read-only, or a rank's file cannot be seen from here.
    """
    staging, final = staging_folder(run, step), step_folder(run, step)
    if written is None:
        written = {}
        for path in sorted(staging.glob("rank-*.safetensors")):
            written |= _entry(path, sha256_of(path))
    _wait_until_seen([staging / name for name in written])
    reader, model = SliceReader(staging), staging / MODEL_FILE
    digest = stream_tensors(shapes, lambda name: reader.whole(name, kind), model, metadata=model_metadata(config))
    write_text(staging / STATE, json.dumps(state, indent=1, sort_keys=True))
    manifest = {**written, **_entry(model, digest), **_entry(staging / STATE, sha256_of(staging / STATE))}
    write_text(staging / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    put_in_place(staging, final)
    write_text(run / CHECKPOINTS / LATEST, final.name + "\n")
    return final


def _wait_until_seen(paths: Iterable[Path]) -> None:
    """Wait for files of other nodes; FileNotFoundError if one does not come."""
    end = time.monotonic() + SEEN_S
    for path in paths:
        while not path.is_file():
            if time.monotonic() > end:
                why = "written by another process, and not to be seen by the first one"
                raise FileNotFoundError(errno.ENOENT, f"{why}: is run.dir on storage that all share?", str(path))
            time.sleep(0.1)
            any(path.parent.iterdir())  # when a folder is opened, NFS looks at the server's


def put_in_place(staging: Path, final: Path) -> None:
    """Rename a folder that is complete."""
    sync(staging)
    aside = None
    if final.exists():  # a step that is saved again after a rollback: the old one goes aside, for two renames only
        if why := foreign(final):
            raise FileExistsError(errno.EEXIST, f"in the way of a checkpoint: {why}; move it away", str(final))
        aside = Path(tempfile.mkdtemp(prefix=f"{STAGED}old-{final.name}-", dir=final.parent))
        final.rename(aside)  # onto the empty folder
    staging.rename(final)
    sync(final.parent)
    if aside:
        remove(aside)


def _entry(path: Path, sha256: str) -> Entries:
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256}}


class SliceReader:
    """A reader of parameter ranges from the rank files of a folder, in which they may be cut otherwise."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        self._files = {path: safe_open(path, framework="pt") for path in sorted(folder.glob("rank-*.safetensors"))}
        for path, file in self._files.items():
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, name, start, stop = key.split("|")
                self._pieces.setdefault((kind, name), []).append((int(start), int(stop), path, key))
        for pieces in self._pieces.values():
            pieces.sort()

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Return elements start ... stop of a parameter: (stop - start,) float32.

        Raises:
            CheckpointError: they are not all there.
        """
        parts, at = [], start
        for first, last, path, key in self._pieces.get((kind, name), ()):
            if first <= at < last and at < stop:
                parts.append(self._files[path].get_slice(key)[at - first : min(stop, last) - first])
                at = min(stop, last)
        if at < stop:
            raise CheckpointError(
                f"{self._folder}: elements {at} to {stop} of {name} ({kind}) are missing: is it another model's?"
            )
        return torch.cat(parts)

    def whole(self, name: str, kind: str) -> Tensor:
        """Return a complete parameter, flat."""
        pieces = self._pieces.get((kind, name))
        if not pieces:
            raise CheckpointError(f"{self._folder}: no {kind} of {name}; does it belong to another model?")
        return self.read(name, kind, 0, max(stop for _, stop, _, _ in pieces))


def newest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, every file verified; damaged ones are skipped with a warning.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be taken: a run never starts afresh silently.
    """
    folder, failures = run / CHECKPOINTS, []
    candidates = up_to_latest(run)
    if not candidates and (others := sorted(path.name for path in folder.glob("step-*"))):
        raise CheckpointError(
            f"{folder / LATEST} names {pointed(run, LATEST)!r}, and there is no checkpoint so old: "
            f"write the name of another into it ({', '.join(others)})"
        )
    for path in reversed(candidates):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
            failures.append(str(error))
    if failures:
        raise CheckpointError(
            f"no checkpoint of {run} is whole: {'; '.join(failures)}. Restore one, or give another run.dir"
        )
    return None


def up_to_latest(run: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first, up to the one that `latest` names.

    Later ones are of a course that was left, because they were damaged or a person wrote an older name into `latest`.
    """
    complete = sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir() and is_name(path.name))
    latest = pointed(run, LATEST)
    return [path for path in complete if latest is None or path.name <= latest]


def verify(folder: Path, *, full: bool = True) -> None:
    """Check every file of a checkpoint against its manifest; unless `full`, names and sizes only.

    Raises:
        CheckpointError: a file is missing, foreign or damaged.
    """
    try:
        manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST} cannot be read ({error})") from error
    for name, written in manifest.items():
        if damage := damage_of(folder / name, written, full=full):
            raise CheckpointError(f"{folder / name}: {damage}")


def damage_of(path: Path, written: Mapping[str, Any], *, full: bool) -> str:
    """Describe how a file differs from its entry in the manifest; empty if it does not."""
    try:
        return _difference(path, written, full=full)
    except OSError as error:
        if error.errno != errno.EIO:  # of the disk below this file; others are of the whole storage
            raise
        return "cannot be read: " + str(error.strerror)


def _difference(path: Path, written: Mapping[str, Any], *, full: bool) -> str:
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != written["bytes"]:
        return f"{size} bytes, not the {written['bytes']} that were written"
    return "not the bytes that were written" if full and sha256_of(path) != written["sha256"] else ""


def parse_manifest(text: str) -> Entries:
    """Parse a manifest's entries.

    Raises:
        ValueError: it is none, or names files outside of its folder.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict) or not all(
        Path(name).name == name and isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"}
        for name, entry in entries.items()
    ):
        raise ValueError("not a manifest of ours")
    return entries


def is_name(name: str) -> bool:
    """Return whether this is a checkpoint's name."""
    return re.fullmatch(r"step-\d{8,}", name) is not None


def is_own_file(name: str) -> bool:
    """Return whether this is the name of a file of a checkpoint, whole or half-written."""
    return _FILE.fullmatch(name) is not None


def read_state(folder: Path) -> dict[str, Any]:
    """Read the JSON state of a verified checkpoint."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def step_of(name: str) -> int:
    """Return the step in a checkpoint's name."""
    return int(name.removeprefix("step-"))


def pointed(run: Path, pointer: str) -> str | None:
    """Return the name that `latest` or `best` holds; None if there is no such file."""
    path = run / CHECKPOINTS / pointer
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def leftovers(run: Path) -> list[Path]:
    """Return the folders of checkpoints that were being written or removed when their process was killed."""
    return [path for path in (run / CHECKPOINTS).glob(f"{STAGED}*") if _LEFTOVER.fullmatch(path.name)]


def foreign(folder: Path) -> str:
    """Return why a folder that has a checkpoint's name is none of ours, or holds more than one; "" if it is ours."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder"
    paths = list(folder.iterdir())
    if others := sorted(path.name for path in paths if not is_own_file(path.name) or not path.is_file()):
        return f"{others[0]} is no file of a checkpoint"
    if folder.name.startswith(STAGED) or not paths or any(path.name.startswith(_ONLY_OURS) for path in paths):
        return ""
    return f"it has neither {MANIFEST} nor slices of ranks"


def remove(folder: Path) -> None:
    """Remove a checkpoint, whole or half-written, or log why it stays.

    Only a folder that holds nothing but a checkpoint's files is removed. It is renamed first, so that a killed removal
    leaves no folder that looks like a checkpoint.
    """
    try:
        if why := foreign(folder):
            logger.warning("%s stays: %s", folder, why)
            return
        doomed = folder
        if not folder.name.startswith(STAGED):
            doomed = Path(tempfile.mkdtemp(prefix=f"{STAGED}old-{folder.name}-", dir=folder.parent))
            folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        logger.warning("%s could not be removed (%s)", folder, error)
