"""An engine, a loader and a loss ─► a trained model: the one loop, with its log, its checkpoints and its stop.

finished = fit(engine, loader, loss_of, plan=plan, run=Run("out/run"), world=world, model_config=config)
finished = fit(..., validation=Validation(every=steps_per_epoch, scores=validate, best="top1"))     # keeps the best
"""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from mae3d import checkpoint
from mae3d.config import ClassifierConfig, MAEConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.metrics import Meter
from mae3d.run import DONE, STOPPED, Run

logger = logging.getLogger(__name__)

_HOURS_AFTER = 10  # steps after which the rest of the run can be foretold


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
    log_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int


@dataclass(frozen=True)
class Validation:
    """What the loop asks for between steps; the scores join the step's line in metrics.jsonl, as `val_<name>`.

    Attributes:
        every: steps between validations; the last step always has one, and with 0 it is the only one.
        scores: name -> number, the same on every process; all of them call it.
        best: the score by which a checkpoint is kept for good, the greater the better.
    """

    every: int
    scores: Callable[[], dict[str, float]]
    best: str


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; the loop asks at each step's end.

    After an agreed stop they are ignored for good: a launcher ends the slower processes when the first one has left.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.agreed else handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


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
    step = _resume(engine, loader, meter, run=run, world=world)
    console = Console(world.is_first, first_step=step, plan=plan)
    with StopRequest() as stop:
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
            if validation and (last or (validation.every and step % validation.every == 0)):
                with meter.pausing():
                    scores = validation.scores()
            if step % plan.log_every == 0 or last or scores:
                _log(engine, loader, meter, console, scores, step=step, lr=lr, plan=plan, run=run, world=world)
            console.stepped(step)
            # Every process must have seen the request before any saves: signals reach them one after the other.
            stop.agreed = world.any(stop.requested) if world.place.size > 1 else stop.requested
            if step % plan.checkpoint_every == 0 or last or scores or stop.agreed:
                _save(
                    engine,
                    loader,
                    meter,
                    score=scores[validation.best] if validation and scores else None,
                    step=step,
                    plan=plan,
                    run=run,
                    world=world,
                    model_config=model_config,
                )
            if stop.agreed and not last:
                _end(run, world, STOPPED, f"stopped on request after step {step}")
                return False
    console.close()
    _end(run, world, DONE, f"{step} steps")
    return True


def _resume(engine: Engine, loader: BatchLoader, meter: Meter, *, run: Run, world: World) -> int:
    """Loads the newest whole checkpoint; returns its step, 0 without one."""
    error, folder = None, None
    if world.is_first:
        checkpoint.sweep(run.folder)
        try:
            folder = checkpoint.newest(run.folder)
        except checkpoint.CheckpointError as caught:
            error = str(caught)
    error, folder = world.share((error, folder))
    if error:
        raise checkpoint.CheckpointError(error)
    if folder is None:
        if world.is_first:
            run.cut_metrics(0)
        return 0
    state = checkpoint.read_state(folder)
    engine.load(checkpoint.SliceReader(folder), optimizer_step=state["optimizer_step"])
    loader.load_state_dict(state["loader"])
    meter.load_state_dict(state["meter"], counts=state.get("counts", {}))
    if world.is_first:
        if "score" in state:  # the run was killed between the checkpoint and the pointer
            checkpoint.keep_best(run.folder, folder, score=state["score"])
        run.cut_metrics(state["step"])
        logger.info("resumed from %s", folder)
    return int(state["step"])


def _save(
    engine: Engine,
    loader: BatchLoader,
    meter: Meter,
    *,
    score: float | None,
    step: int,
    plan: Plan,
    run: Run,
    world: World,
    model_config: MAEConfig | ClassifierConfig,
) -> None:
    checkpoint.write_rank(checkpoint.staging_folder(run.folder, step), world.place.rank, engine.slices())
    state = {
        "step": step,
        "optimizer_step": engine.optimizer_step,
        "loader": loader.state_dict(),
        "meter": meter.state_dict(),
        "counts": meter.totals(loader.counts()),
    } | ({} if score is None else {"score": score})
    world.barrier()  # every rank's slices lie there
    if world.is_first:
        shapes = {name: parameter.shape for name, parameter in engine.module.named_parameters()}
        folder = checkpoint.finish(run.folder, step, shapes=shapes, config=model_config, state=state, kind=engine.kind)
        if score is not None:
            checkpoint.keep_best(run.folder, folder, score=score)
        checkpoint.prune(run.folder, keep_last=plan.keep_last, keep_every=plan.keep_every)
    world.barrier()


def _log(
    engine: Engine,
    loader: BatchLoader,
    meter: Meter,
    console: "Console",
    scores: dict[str, float],
    *,
    step: int,
    lr: float,
    plan: Plan,
    run: Run,
    world: World,
) -> None:
    measured, counts = meter.row(), meter.totals(loader.counts())
    row = {
        "step": step,
        "epoch": loader.epoch,
        "loss": measured.pop("loss"),
        "lr": lr,
        "grad_norm": engine.grad_norm,
        **measured,
        "skipped_steps": engine.skipped_steps,
        **counts,
        **{f"val_{name}": score for name, score in scores.items()},
    }
    if world.is_first:
        run.write_metrics(row)
        console.show(row)
    if not math.isfinite(row["loss"]):
        raise TrainingError(
            f"the loss is {row['loss']} at step {step}. The checkpoints before it are untouched: lower optim.blr, "
            "or set a smaller optim.clip_grad, and start again"
        )
    loader.judge(counts)  # the same sums on every process: all stop together


def _end(run: Run, world: World, marker: str, text: str) -> None:
    if world.is_first:
        run.end(marker, text)
    world.barrier()


class Console:
    """A bar on a terminal, one plain line a log interval anywhere else; silent on all processes but the first."""

    def __init__(self, enabled: bool, *, first_step: int, plan: Plan):
        self._enabled, self._first_step, self._plan = enabled, first_step, plan
        self._start = time.perf_counter()
        on_terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=plan.total_steps, initial=first_step, unit="step") if on_terminal else None

    def stepped(self, step: int) -> None:
        """Moves the bar; after ten steps tells how long the run will take."""
        if self._bar is not None:
            self._bar.update()
        if self._enabled and step - self._first_step == _HOURS_AFTER:
            self._say(f"time: {_hours(self._left(step))} to go at this pace")

    def show(self, row: dict[str, Any]) -> None:
        """The row of a log interval."""
        text = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['clips_per_s']:.1f} clips/s  "
            f"data wait {row['data_wait']:.0%}"
        )
        text += "".join(f"  {name} {value:.4f}" for name, value in row.items() if name.startswith("val_"))
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            return
        total = self._plan.total_steps
        self._say(f"step {row['step']}/{total}  {text}  ETA {_hours(self._left(row['step']))}")

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> float:
        done = max(step - self._first_step, 1)
        return (time.perf_counter() - self._start) / done * (self._plan.total_steps - step)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
