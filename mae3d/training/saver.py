"""A training's state ─► checkpoints of its run, and back: when the loop says so, on all processes together.

with Saver(run, world, model_config=config, keep_last=2, keep_every=0) as saver:
    state = saver.resume(engine)                         # None, or what was saved with the newest checkpoint
    saver.save(engine, {"loader": {...}}, step=500)      # copies the state; a thread writes it

One checkpoint is on its way at most: whoever needs the next, or an older one, waits for it. The threads of all
processes agree over a process group of their own: in the training's groups the order of collectives must be the same on
all processes, and threads keep to no order. They do not agree through files, for a full disk takes no message.
"""

import copy
import datetime
import errno
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.format import Slice
from mae3d.checkpoints.mirror import Mirror
from mae3d.checkpoints.snapshot import Snapshot
from mae3d.distributed import World
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.tracking.run_dir import Run
from mae3d.training.engine import Engine

logger = logging.getLogger(__name__)

FAILURES = 3  # checkpoints in a row that could not be written, after which the run stops
BACK_OFF_S = (1, 2, 4, 8)  # before the last checkpoint is tried again
_SLOWEST = datetime.timedelta(minutes=30)  # to write its slices
_LEFT_S = 60  # for a checkpoint on its way when the training fails


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be written."""

    step: int
    slices: list[Slice]
    state: dict[str, Any]
    shapes: Mapping[str, torch.Size]
    kind: str
    final: bool


class Saver:
    """The checkpoints of one run."""

    def __init__(
        self,
        run: Run,
        world: World,
        *,
        model_config: MAEConfig | ClassifierConfig,
        keep_last: int,
        keep_every: int,
        remote: str = "",
    ):
        """Reads and writes nothing yet; all processes make theirs together.

        Args:
            run: where everything is written.
            world: all processes.
            model_config: stored with the weights.
            keep_last: newest checkpoints that are kept.
            keep_every: checkpoints at multiples of this many steps are kept for good; 0 for none.
            remote: a URL that the first process mirrors them to.
        """
        self._run, self._world, self._model_config = run, world, model_config
        self._keep_last, self._keep_every = keep_last, keep_every
        self._threads = replace(world, control=dist.new_group(backend="gloo", timeout=_SLOWEST))
        self._snapshot = Snapshot()
        self._job: _Job | None = None
        self._thread: Thread | None = None
        self._error: Exception | None = None  # of the last checkpoint; the same on every process
        self._failed = self._in_a_row = 0
        self._remote = remote
        self._mirror: Mirror | None = None
        if remote and world.is_first:
            self._mirror = Mirror(run.folder, remote, keep_last=keep_last, keep_every=keep_every)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is on its way; the processes leave together, for launchers end those that are slower."""
        try:
            if kind is None:
                self.wait()
                if self._mirror is not None:
                    self._mirror.finish()
                self._world.barrier()
            elif self._thread is not None:
                self._thread.join(_LEFT_S)
        finally:
            if self._thread is None or not self._thread.is_alive():
                self._snapshot.close()

    def resume(self, engine: Engine) -> dict[str, Any] | None:
        """Loads the newest whole checkpoint; what was saved with it and `step`, or None without one.

        Raises:
            CheckpointError: no checkpoint of the run is whole.
        """
        if self._world.is_first:
            retention.sweep(self._run.folder)
        folder = self._newest()
        if self._world.is_first and folder is None:
            self._run.cut_metrics(0)
        state = None if folder is None else self._load(engine, folder)
        if self._world.is_first and folder is not None and state is not None:
            if "score" in state:  # the run was killed between the checkpoint and the pointer
                retention.keep_best(self._run.folder, folder, score=state["score"])
            logger.info("resumed from %s", folder)
        if self._mirror is not None:
            self._mirror.push()  # what an earlier part of the run left to be mirrored; tells early if nothing can be
        return state

    def go_back(self, engine: Engine) -> dict[str, Any] | None:
        """As `resume`, in a run that goes on: weights and moments of the newest whole checkpoint."""
        self.wait()
        folder = self._newest()
        return None if folder is None else self._load(engine, folder)

    def save(
        self,
        engine: Engine,
        state: Mapping[str, Any],
        *,
        step: int,
        score: float | None = None,
        final: bool = False,
    ) -> None:
        """Copies a checkpoint, to be written by a thread, and kept for good if its score is the best so far.

        One that cannot be written costs a warning, and training goes on; the third in a row raises.

        Args:
            engine: the model and its optimizer.
            state: JSON values to be given back by `resume`.
            step: steps taken.
            score: of a validation of these weights, the greater the better.
            final: nothing comes after it: waits for it, and tries several times.

        Raises:
            OSError: it cannot be written, or those before it could not.
        """
        self.wait()
        state = {**copy.deepcopy(dict(state)), "step": step, "optimizer_step": engine.optimizer_step}
        if score is not None:
            state["score"] = score
        slices = self._snapshot.take(engine.slices())
        self._job = _Job(step, slices, state, engine.shapes, engine.kind, final)
        last_chance = self._in_a_row == FAILURES - 1  # asked before the thread, which counts, may be done
        self._start()
        if final:
            for seconds in BACK_OFF_S:
                self._join()
                if self._error is None:
                    break
                time.sleep(seconds)
                self._start()
            self._join()
            if self._error is not None:
                raise self._error
        elif last_chance:
            self.wait()

    def wait(self) -> None:
        """Until no checkpoint is on its way; all processes wait together.

        Raises:
            OSError: none could be written for the third time in a row.
        """
        self._join()
        if self._error is not None and self._in_a_row >= FAILURES:
            raise self._error

    def counts(self) -> dict[str, int]:
        """What went wrong in this part of the run, to be summed over all processes."""
        counts = {"failed_saves": self._failed}
        return counts | {"failed_mirrors": self._mirror.failures if self._mirror else 0} if self._remote else counts

    def _start(self) -> None:
        self._thread = Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._error is not None and not isinstance(self._error, OSError):
                raise self._error

    def _write(self) -> None:
        """What the thread does. However it ends on one process, it takes part in agreeing on how it ended on all."""
        assert self._job is not None
        try:
            error, entries = self._written(self._job)
            told = self._threads.gather((error, entries))
            error = next((each for each, _ in told if each is not None), None)
            if self._world.is_first:
                written = {name: entry for _, entries in told for name, entry in entries.items()}
                error = self._finished(self._job, written) if error is None else error
                self._tell(self._job, error)
            self._error = self._threads.share(error)
        except Exception as lost:  # another process is gone: the training's own collectives tell as well
            self._error = lost
        self._in_a_row = self._in_a_row + 1 if self._error else 0

    def _written(self, job: _Job) -> tuple[Exception | None, checkpoint.Entries]:
        try:
            self._snapshot.wait()
            staging = checkpoint.staging_folder(self._run.folder, job.step)
            return None, checkpoint.write_rank(staging, self._world.place.rank, job.slices)
        except Exception as error:
            return _told(error), {}

    def _finished(self, job: _Job, written: checkpoint.Entries) -> Exception | None:
        run = self._run.folder
        try:
            folder = checkpoint.finish(
                run,
                job.step,
                shapes=job.shapes,
                config=self._model_config,
                state=job.state,
                kind=job.kind,
                written=written,
            )
            if "score" in job.state:
                retention.keep_best(run, folder, score=job.state["score"])
            in_use = self._mirror.in_use if self._mirror else ()
            retention.prune(run, keep_last=self._keep_last, keep_every=self._keep_every, in_use=in_use)
        except Exception as error:
            return _told(error)
        if self._mirror is not None:
            self._mirror.push()
        return None

    def _tell(self, job: _Job, error: Exception | None) -> None:
        """A failure is told and counted by the first process, for all."""
        if not isinstance(error, OSError):
            return
        self._failed += 1
        newest = None
        with suppress(OSError):
            retention.sweep(self._run.folder)  # a full disk needs the space; nobody writes now
            newest = checkpoint.pointed(self._run.folder, checkpoint.LATEST)
        logger.warning(
            "the checkpoint of step %d could not be written (%s: %s): %s. %s; the newest is %s",
            job.step,
            error.filename,
            error.strerror,
            _remedy(error),
            "It is tried again" if job.final else "Training goes on, the next one is tried",
            newest or "none yet",
        )

    def _newest(self) -> Path | None:
        error: Exception | None = None
        folder = None
        if self._world.is_first:
            try:
                folder = checkpoint.newest(self._run.folder)
            except checkpoint.CheckpointError as caught:
                error = checkpoint.CheckpointError(str(caught))
            except OSError as caught:
                error = _told(caught)
        error, folder = self._world.share((error, folder))
        if error is not None:
            raise error
        return folder

    def _load(self, engine: Engine, folder: Path) -> dict[str, Any]:
        state = checkpoint.read_state(folder)
        engine.load(checkpoint.SliceReader(folder), optimizer_step=state["optimizer_step"])
        if self._world.is_first:
            self._run.cut_metrics(state["step"])
        return state


def _told(error: Exception) -> Exception:
    """An error as it can travel to the other processes."""
    if isinstance(error, OSError):
        return OSError(error.errno or errno.EIO, error.strerror or str(error), str(error.filename or ""))
    return RuntimeError(f"writing a checkpoint failed: {type(error).__name__}: {error}")


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there, or give a smaller run.keep_last"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make that folder writable"
    return "see to that storage"
