"""A training's state ─► checkpoints of its run, and back: when the loop says so, on all processes together.

saver = Saver(run, world, model_config=config, keep_last=2, keep_every=0)
step = saver.resume(engine, loader, meter)
saver.save(engine, loader, meter, step=500)
"""

import logging
from typing import TYPE_CHECKING, Any

from mae3d import checkpoint
from mae3d.config import ClassifierConfig, MAEConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.metrics import Meter
from mae3d.run import Run

if TYPE_CHECKING:
    from mae3d.fit import BatchLoader

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

    def resume(self, engine: Engine, loader: "BatchLoader", meter: Meter) -> int:
        """Loads the newest whole checkpoint; returns its step, 0 without one.

        Raises:
            CheckpointError: no checkpoint of the run is whole.
        """
        error, folder = None, None
        if self._world.is_first:
            checkpoint.sweep(self._run.folder)
            try:
                folder = checkpoint.newest(self._run.folder)
            except checkpoint.CheckpointError as caught:
                error = str(caught)
        error, folder = self._world.share((error, folder))
        if error:
            raise checkpoint.CheckpointError(error)
        if folder is None:
            if self._world.is_first:
                self._run.cut_metrics(0)
            return 0
        state = checkpoint.read_state(folder)
        engine.load(checkpoint.SliceReader(folder), optimizer_step=state["optimizer_step"])
        loader.load_state_dict(state["loader"])
        meter.load_state_dict(state["meter"], counts=state.get("counts", {}))
        if self._world.is_first:
            if "score" in state:  # the run was killed between the checkpoint and the pointer
                checkpoint.keep_best(self._run.folder, folder, score=state["score"])
            self._run.cut_metrics(state["step"])
            logger.info("resumed from %s", folder)
        return int(state["step"])

    def save(
        self, engine: Engine, loader: "BatchLoader", meter: Meter, *, step: int, score: float | None = None
    ) -> None:
        """Writes a checkpoint, and keeps it for good if its score, the greater the better, is the best so far.

        Raises:
            OSError: it cannot be written.
        """
        run, world = self._run.folder, self._world
        checkpoint.write_rank(checkpoint.staging_folder(run, step), world.place.rank, engine.slices())
        state: dict[str, Any] = {
            "step": step,
            "optimizer_step": engine.optimizer_step,
            "loader": loader.state_dict(),
            "meter": meter.state_dict(),
            "counts": meter.totals(loader.counts()),
        } | ({} if score is None else {"score": score})
        world.barrier()  # every rank's slices lie there
        if world.is_first:
            shapes = {name: parameter.shape for name, parameter in engine.module.named_parameters()}
            folder = checkpoint.finish(
                run, step, shapes=shapes, config=self._model_config, state=state, kind=engine.kind
            )
            if score is not None:
                checkpoint.keep_best(run, folder, score=score)
            checkpoint.prune(run, keep_last=self._keep_last, keep_every=self._keep_every)
        world.barrier()
