"""A training's state ─► checkpoints of its run, and back: when the loop says so, on all processes together.

saver = Saver(run, world, model_config=config, keep_last=2, keep_every=0)
state = saver.resume(engine)                         # None, or what was saved with the newest checkpoint
saver.save(engine, {"loader": {...}}, step=500)
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae3d import checkpoint
from mae3d.config import ClassifierConfig, MAEConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.run import Run

logger = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one run."""

    def __init__(
        self, run: Run, world: World, *, model_config: MAEConfig | ClassifierConfig, keep_last: int, keep_every: int
    ):
        """Reads and writes nothing yet.

        Args:
            run: where everything is written.
            world: all processes.
            model_config: stored with the weights.
            keep_last: newest checkpoints that are kept.
            keep_every: checkpoints at multiples of this many steps are kept for good; 0 for none.
        """
        self._run, self._world, self._model_config = run, world, model_config
        self._keep_last, self._keep_every = keep_last, keep_every

    def resume(self, engine: Engine) -> dict[str, Any] | None:
        """Loads the newest whole checkpoint; what was saved with it and `step`, or None without one.

        Raises:
            CheckpointError: no checkpoint of the run is whole.
        """
        if self._world.is_first:
            checkpoint.sweep(self._run.folder)
        folder = self._newest()
        if self._world.is_first and folder is None:
            self._run.cut_metrics(0)
        if folder is None:
            return None
        state = self._load(engine, folder)
        if self._world.is_first:
            if "score" in state:  # the run was killed between the checkpoint and the pointer
                checkpoint.keep_best(self._run.folder, folder, score=state["score"])
            logger.info("resumed from %s", folder)
        return state

    def go_back(self, engine: Engine) -> dict[str, Any] | None:
        """As `resume`, in a run that goes on: weights and moments of the newest whole checkpoint."""
        folder = self._newest()
        return None if folder is None else self._load(engine, folder)

    def save(self, engine: Engine, state: Mapping[str, Any], *, step: int, score: float | None = None) -> None:
        """Writes a checkpoint, and keeps it for good if its score, the greater the better, is the best so far.

        Args:
            engine: the model and its optimizer.
            state: JSON values to be given back by `resume`.
            step: steps taken.
            score: of a validation of these weights.

        Raises:
            OSError: it cannot be written.
        """
        run, world = self._run.folder, self._world
        checkpoint.write_rank(checkpoint.staging_folder(run, step), world.place.rank, engine.slices())
        state = {**state, "step": step, "optimizer_step": engine.optimizer_step}
        if score is not None:
            state["score"] = score
        world.barrier()  # every rank's slices lie there
        if world.is_first:
            folder = checkpoint.finish(
                run, step, shapes=engine.shapes, config=self._model_config, state=state, kind=engine.kind
            )
            if score is not None:
                checkpoint.keep_best(run, folder, score=score)
            checkpoint.prune(run, keep_last=self._keep_last, keep_every=self._keep_every)
        world.barrier()

    def _newest(self) -> Path | None:
        error, folder = None, None
        if self._world.is_first:
            try:
                folder = checkpoint.newest(self._run.folder)
            except checkpoint.CheckpointError as caught:
                error = str(caught)
        error, folder = self._world.share((error, folder))
        if error:
            raise checkpoint.CheckpointError(error)
        return folder

    def _load(self, engine: Engine, folder: Path) -> dict[str, Any]:
        state = checkpoint.read_state(folder)
        engine.load(checkpoint.SliceReader(folder), optimizer_step=state["optimizer_step"])
        if self._world.is_first:
            self._run.cut_metrics(state["step"])
        return state
