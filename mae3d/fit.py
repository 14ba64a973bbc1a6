"""An engine, a loader and a loss ─► a trained model: the one loop, with its log, its checkpoints and its stop.

finished = fit(engine, loader, loss_of, plan=plan, run=Run("out/run"), world=world, model_config=config)
finished = fit(..., validation=Validation(every=steps_per_epoch, scores=validate, best="top1"))     # keeps the best
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mae3d.config import ClassifierConfig, MAEConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.journal import Journal
from mae3d.metrics import Meter
from mae3d.run import DONE, STOPPED, Run
from mae3d.saver import Saver
from mae3d.stopping import StopRequest
from mae3d.train_config import LogConfig


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since when."""


class BatchLoader(Protocol):
    """What the loop needs of a loader: batches, a position that a checkpoint can hold, and what went wrong so far.

    `epoch` is the position as a number: passes over the data.
    `judge` raises if there is too much of it, given the sums over all processes and parts of the run.
    """

    @property
    def epoch(self) -> float: ...
    def __next__(self) -> Any: ...
    def counts(self) -> dict[str, int]: ...
    def judge(self, counts: dict[str, int]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first step."""

    total_steps: int
    accumulation: int
    clips_per_step: int  # over all processes
    flops_per_clip: float
    lr: Callable[[int], float]  # of the step that is about to be taken, counted from 0
    log: LogConfig
    checkpoint_every: int
    keep_last: int
    keep_every: int


@dataclass(frozen=True)
class Validation:
    """What the loop asks for between steps; the scores join the step's line in metrics.jsonl, as `<prefix>_<name>`.

    Attributes:
        every: steps between validations; the last step always has one, and with 0 it is the only one.
        scores: the steps taken -> name -> number, the same on every process; all of them call it.
        best: the score by which a checkpoint is kept for good.
        lower_is_better: of that score.
        prefix: of the scores' names in metrics.jsonl.
    """

    every: int
    scores: Callable[[int], dict[str, float]]
    best: str
    lower_is_better: bool = False
    prefix: str = "val"

    def due(self, step: int) -> bool:
        """Whether there is one after this step, which is not the last."""
        return bool(self.every) and step % self.every == 0

    def named(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The scores as metrics.jsonl has them."""
        return {f"{self.prefix}_{name}": score for name, score in scores.items()}

    def merit(self, scores: Mapping[str, float]) -> float:
        """The score that decides, the greater the better."""
        return -scores[self.best] if self.lower_is_better else scores[self.best]


def fit(
    engine: Engine,
    loader: BatchLoader,
    loss_of: Callable[..., Tensor],
    *,
    plan: Plan,
    run: Run,
    world: World,
    model_config: MAEConfig | ClassifierConfig,
    validation: Validation | None = None,
) -> bool:
    """Trains to the last step, from the newest checkpoint if there is one.

    Args:
        engine: the model.
        loader: endless micro-batches, `plan.accumulation` of them a step.
        loss_of: `loss_of(engine, batch, step=, micro=)` ─► scalar loss; `micro` counts the batches of a step.
        plan: lengths, rates, intervals.
        run: where everything is written.
        world: all processes.
        model_config: stored with the weights.
        validation: what to score the model by, and when.

    Returns:
        True at the last step; False after an agreed stop, with a checkpoint written.

    Raises:
        CheckpointError: no checkpoint of the run is whole.
        TrainingError: the loss is not finite.
        OSError: a checkpoint or the log cannot be written.
    """
    meter = Meter(world, clips_per_step=plan.clips_per_step, flops_per_clip=plan.flops_per_clip)
    saver = Saver(run, world, model_config=model_config, keep_last=plan.keep_last, keep_every=plan.keep_every)
    step = saver.resume(engine, loader, meter)
    journal = Journal(run, world, first_step=step, total_steps=plan.total_steps, log=plan.log)
    with journal, StopRequest() as stop:
        while step < plan.total_steps:
            lr = plan.lr(step)
            for micro in range(plan.accumulation):
                with meter.waiting():
                    batch = next(loader)
                loss = loss_of(engine, batch, step=step, micro=micro)
                engine.backward(loss)
                meter.add(loss)
                engine.step(lr)
            step += 1
            meter.stepped()
            last = step == plan.total_steps
            scores: dict[str, float] = {}
            if validation and (last or validation.due(step)):
                with meter.pausing():
                    scores = validation.scores(step)
            named = validation.named(scores) if validation else {}
            if named and step % plan.log.every and not last:  # between two lines, whose losses it leaves as they are
                journal.write({"step": step, "epoch": loader.epoch, **named})
            if step % plan.log.every == 0 or last:
                row = _row(engine, loader, meter, named, step=step, lr=lr)
                journal.write(row)
                _judge(row)
                loader.judge({name: row[name] for name in loader.counts()})  # the same sums on every process
            journal.stepped(step)
            # Every process must have seen the request before any saves: signals reach them one after the other.
            stop.agreed = world.any(stop.requested) if world.place.size > 1 else stop.requested
            if step % plan.checkpoint_every == 0 or last or scores or stop.agreed:
                score = validation.merit(scores) if validation and scores else None
                saver.save(engine, loader, meter, step=step, score=score)
            if stop.agreed and not last:
                _end(run, world, STOPPED, f"stopped on request after step {step}")
                return False
    _end(run, world, DONE, f"{step} steps")
    return True


def _row(
    engine: Engine, loader: BatchLoader, meter: Meter, scores: dict[str, float], *, step: int, lr: float
) -> dict[str, Any]:
    """A line of metrics.jsonl; every process makes it, the sums are over all of them."""
    measured = meter.row()
    return {
        "step": step,
        "epoch": loader.epoch,
        "loss": measured.pop("loss"),
        "lr": lr,
        "grad_norm": engine.grad_norm,
        **measured,
        "skipped_steps": engine.skipped_steps,
        **meter.totals(loader.counts()),
        **scores,
    }


def _judge(row: dict[str, Any]) -> None:
    if not math.isfinite(row["loss"]):
        raise TrainingError(
            f"the loss is {row['loss']} at step {row['step']}. The checkpoints before it are untouched: lower "
            "optim.blr, or set a smaller optim.clip_grad, and start again"
        )


def _end(run: Run, world: World, marker: str, text: str) -> None:
    if world.is_first:
        run.end(marker, text)
    world.barrier()
