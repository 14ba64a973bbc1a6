"""Checkpoints of a training are saved and resumed, on all ranks together, when the loop says so.

with Saver(run, world, model_config=config, keep_last=2, keep_every=0) as saver:
    state = saver.resume(engine)                         # None, or what was saved with the newest checkpoint
    saver.save(engine, {"loader": {...}}, step=500)      # copies the state; a thread writes it

At most one checkpoint is being written: a caller that needs the next, or an older one, waits for it. The threads of all
ranks agree over a process group of their own: in the training's groups the order of collectives must be the same on all
ranks, and threads keep to no order. They do not agree through files, because a full disk takes no message.
"""

import copy
import datetime
import errno
import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, wait
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


Outcome = Exception | None  # of writing a checkpoint; the same on every rank


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
    """The checkpoints of one run.

    Every public method but `finished` is a collective: all ranks call it, in the same order. `_write_in_background`
    runs on the thread, and its collectives use the threads' group.
    """

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
        """Keep the settings; nothing is read or written yet.

        Args:
            run: where everything is written.
            world: all ranks.
            model_config: stored with the weights.
            keep_last: newest checkpoints that are kept.
            keep_every: checkpoints at multiples of this many steps are kept for good; 0 for none.
            remote: a URL that rank 0 mirrors them to.
        """
        self._run, self._world, self._model_config = run, world, model_config
        self._keep_last, self._keep_every = keep_last, keep_every
        self._threads = replace(world, control=dist.new_group(backend="gloo", timeout=_SLOWEST))
        self._snapshot = Snapshot()
        self._pending: Future[Outcome] | None = None
        self._last: Outcome = None
        self._num_failed = self._failed_in_a_row = 0
        self._finished: deque[Path] = deque()  # the thread appends, the loop takes away
        self._remote = remote
        self._mirror: Mirror | None = None
        if remote and world.is_first:
            self._mirror = Mirror(run.folder, remote, keep_last=keep_last, keep_every=keep_every, rules=run.rules)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the pending checkpoint; the ranks leave together, because launchers end those that are slower."""
        try:
            if kind is None:
                self.wait()
                if self._mirror is not None:
                    self._mirror.finish()
                self._world.barrier()
            elif self._pending is not None:
                wait([self._pending], timeout=_LEFT_S)
        finally:
            if self._pending is None or self._pending.done():
                self._snapshot.close()

    def resume(self, engine: Engine) -> dict[str, Any] | None:
        """Load the newest complete checkpoint; return what was saved with it and `step`, or None without one.

        Raises:
            CheckpointError: no checkpoint of the run is complete.
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
            self._mirror.push()  # the rest of an earlier part of the run; warns early if the URL cannot be reached
        return state

    def go_back(self, engine: Engine) -> dict[str, Any] | None:
        """Load weights and moments of the newest complete checkpoint into a run that goes on; return as `resume`."""
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
        """Copy a checkpoint, which a thread writes, and which is kept for good if its score is the best so far.

        A checkpoint that cannot be written costs a warning, and training goes on; the third in a row raises.

        Args:
            engine: the model and its optimizer.
            state: JSON values to be given back by `resume`.
            step: steps taken.
            score: of a validation of these weights, the greater the better.
            final: the last one: wait for it, and try again if it fails.

        Raises:
            OSError: it cannot be written, or those before it could not.
        """
        self.wait()
        state = {**copy.deepcopy(dict(state)), "step": step, "optimizer_step": engine.optimizer_step}
        if score is not None:
            state["score"] = score
        slices = self._snapshot.take(engine.slices())
        job = _Job(step, slices, state, engine.shapes, engine.kind, final)
        last_chance = self._failed_in_a_row == FAILURES - 1
        self._start(job)
        if final:
            for seconds in BACK_OFF_S:
                if self._await_pending() is None:
                    break
                time.sleep(seconds)
                self._start(job)
            if (error := self._await_pending()) is not None:
                raise error
        elif last_chance:
            self.wait()

    def wait(self) -> None:
        """Wait until no checkpoint is pending.

        Raises:
            OSError: none could be written for the third time in a row.
        """
        error = self._await_pending()
        if error is not None and self._failed_in_a_row >= FAILURES:
            raise error

    def counts(self) -> dict[str, int]:
        """Return the counts of failures in this part of the run, to be summed over all ranks."""
        counts = {"failed_saves": self._num_failed}
        return counts | {"failed_mirrors": self._mirror.failures if self._mirror else 0} if self._remote else counts

    def finished(self) -> list[Path]:
        """Return the checkpoints that have become whole since the last call, oldest first; on rank 0 alone."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def _start(self, job: _Job) -> None:
        """Begin to write on a thread, a daemon: a disk that hangs does not keep the process from leaving."""
        self._pending = Future()
        Thread(target=self._write_in_background, args=(job, self._pending), name="checkpoint", daemon=True).start()

    def _await_pending(self) -> Outcome:
        """Wait for the pending checkpoint, count a failure, and return how the last one ended.

        Raises:
            Exception: any but an OSError: another rank is gone, or our own code failed.
        """
        if self._pending is not None:
            self._last = self._pending.result()
            self._pending = None
            self._failed_in_a_row = self._failed_in_a_row + 1 if self._last else 0
            if self._last is not None and not isinstance(self._last, OSError):
                raise self._last
        return self._last

    def _write_in_background(self, job: _Job, pending: "Future[Outcome]") -> None:
        """Write a checkpoint, on the thread. A rank that fails still takes part in agreeing on the outcome."""
        try:
            gathered = self._threads.gather(self._write_local_slices(job))
            error = next((error for error, _ in gathered if error is not None), None)
            if self._world.is_first:
                written = {name: entry for _, entries in gathered for name, entry in entries.items()}
                error = self._finalize_on_rank0(job, written) if error is None else error
                self._report_failure_on_rank0(job, error)
            outcome = self._threads.share(error)
        except Exception as lost:  # another rank is gone: the training's own collectives fail as well
            outcome = lost
        pending.set_result(outcome)

    def _write_local_slices(self, job: _Job) -> tuple[Outcome, checkpoint.Entries]:
        try:
            self._snapshot.wait()
            staging = checkpoint.staging_folder(self._run.folder, job.step)
            return None, checkpoint.write_rank(staging, self._world.ranks.rank, job.slices)
        except Exception as error:
            return _portable_error(error), {}

    def _finalize_on_rank0(self, job: _Job, written: checkpoint.Entries) -> Outcome:
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
            return _portable_error(error)
        self._finished.append(folder)
        if self._mirror is not None:
            self._mirror.push()
        return None

    def _report_failure_on_rank0(self, job: _Job, error: Outcome) -> None:
        """Log and count a failure, for all ranks."""
        if not isinstance(error, OSError):
            return
        self._num_failed += 1
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
                error = _portable_error(caught)
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


def _portable_error(error: Exception) -> Exception:
    """Return an error that can travel to the other ranks."""
    if isinstance(error, OSError):
        return OSError(error.errno or errno.EIO, error.strerror or str(error), str(error.filename or ""))
    return RuntimeError(f"writing a checkpoint failed: {type(error).__name__}: {error}")


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there, or give a smaller run.keep_last"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make that folder writable"
    return "see to that storage"
