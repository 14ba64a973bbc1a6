"""An engine, a loader and a loss become a trained model: the one loop, with its log, checkpoints and stop.

finished = TrainingLoop(engine, loader, loss_of, schedule, Run("out/run"), world, model_config=config).run()
finished = TrainingLoop(..., validation=Validation(every=epoch, scores=validate, best="top1")).run()  # keeps the best
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from mae3d.distributed import World, is_lost_peer
from mae3d.io.console import one_line
from mae3d.io.random import Stream, philox
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.tracking.config import LogConfig
from mae3d.tracking.progress import ProgressLogger
from mae3d.tracking.run_dir import DONE, SPIKES, STOP, STOPPED, Run
from mae3d.training.anomalies import AnomalyGuard, TrainingError
from mae3d.training.engine import Engine
from mae3d.training.metrics import Meter
from mae3d.training.observers import Observers, StepView
from mae3d.training.saver import Saver
from mae3d.training.stop_request import Interrupted, StopRequest

logger = logging.getLogger(__name__)


class BatchLoader(Protocol):
    """The loader that the loop needs: batches, a position that a checkpoint can hold, and counts of faults.

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


class Ownership(Protocol):
    """The hold of this run on the folder and the URL that it alone writes; ranks but the first hold nothing.

    `check` raises if another start has taken it over; `end_soon` lets the next start wait for the end of this one.
    """

    def check(self) -> None: ...
    def end_soon(self) -> None: ...


class Unguarded:
    """The ownership of a folder that nobody else knows of."""

    def check(self) -> None:
        """Do nothing."""

    def end_soon(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class TrainSchedule:
    """The length, the rates and the sizes of a training, fixed before the first step."""

    total_steps: int
    accumulation: int
    clips_per_step: int  # over all processes
    flops_per_clip: float
    lr: Callable[[int], float]  # of the step that is about to be taken, counted from 0
    log: LogConfig
    checkpoint_every: int
    keep_last: int
    keep_every: int
    max_skipped: int = 10
    max_rollbacks: int = 3
    time_limit: float | None = None  # minutes
    remote: str = ""  # URL that the run is mirrored to
    rate: Mapping[str, float] = field(default_factory=dict)  # what lr is made of, kept with every checkpoint
    hooks: Mapping[str, str] = field(default_factory=dict)  # the user's code that it depends on, likewise


@dataclass(frozen=True)
class Validation:
    """The hook between steps; its scores join the step's line in metrics.jsonl, as `<prefix>_<name>`.

    Attributes:
        every: steps between validations; the last step always has one, and with 0 it is the only one.
        scores: `scores(step, stopping)` ─► name -> number, the same on every rank; a collective. It may take long:
            all ranks call `stopping()` now and then, and raise `Interrupted` if it is true.
        best: the score by which a checkpoint is kept for good.
        lower_is_better: of that score.
        prefix: of the scores' names in metrics.jsonl.
    """

    every: int
    scores: Callable[[int, Callable[[], bool]], dict[str, float]]
    best: str
    lower_is_better: bool = False
    prefix: str = "val"

    def due(self, step: int) -> bool:
        """Return whether there is a validation after this step, which is not the last."""
        return bool(self.every) and step % self.every == 0

    def named(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores under their names in metrics.jsonl."""
        return {f"{self.prefix}_{name}": score for name, score in scores.items()}

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Return the score that selects the best checkpoint, the greater the better."""
        return -scores[self.best] if self.lower_is_better else scores[self.best]


@dataclass
class TrainingLoop:
    """A training with its engine, loader, log and saver.

    Attributes:
        engine: the model.
        loader: endless micro-batches, `schedule.accumulation` of them per step.
        loss_of: `loss_of(engine, batch, step=, micro=)` ─► scalar loss; `micro` counts the batches of a step.
        schedule: lengths, rates, intervals.
        folder: where everything is written.
        world: all ranks.
        model_config: stored with the weights.
        validation: what to score the model by, and when.
        ownership: guards the folder.
        observers: the user's metrics and callbacks.
    """

    engine: Engine
    loader: BatchLoader
    loss_of: Callable[..., Tensor]
    schedule: TrainSchedule
    folder: Run
    world: World
    model_config: MAEConfig | ClassifierConfig
    validation: Validation | None = None
    ownership: Ownership = field(default_factory=Unguarded)
    observers: Observers | None = None

    def __post_init__(self) -> None:
        schedule, world = self.schedule, self.world
        self.observed = self.observers or Observers(world)
        self.step_loss: Tensor | None = None
        self.last_step = 0
        self.meter = Meter(world, clips_per_step=schedule.clips_per_step, flops_per_clip=schedule.flops_per_clip)
        self.guard = AnomalyGuard(max_skipped=schedule.max_skipped, max_rollbacks=schedule.max_rollbacks)
        self.saver = Saver(
            self.folder,
            world,
            model_config=self.model_config,
            keep_last=schedule.keep_last,
            keep_every=schedule.keep_every,
            remote=schedule.remote,
        )
        self.stop = StopRequest(
            world, file=self.folder.folder / STOP, minutes=schedule.time_limit, announce=self.ownership.end_soon
        )

    def run(self) -> bool:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns:
            True at the last step; False after an agreed stop, with a checkpoint written.

        Raises:
            CheckpointError: no checkpoint of the run is whole.
            TrainingError: too many steps in a row were not finite, the memory is too small, or another rank is gone.
            Locked: another start has taken the run over, because this one seemed dead.
            OSError: a checkpoint or the log cannot be written.
        """
        try:
            with contextlib.ExitStack() as failing:
                failing.push(self.announce_failure)
                return self.take_steps()
        except torch.OutOfMemoryError as error:
            raise TrainingError(out_of_memory(one_line(error))) from error
        except RuntimeError as error:
            if isinstance(error, TrainingError) or not is_lost_peer(error):
                raise
            raise TrainingError(
                f"another process is gone or hangs ({one_line(error)}). "
                f"{self.folder.describe_heartbeats()} Its own "
                "output, above or on its node, says why; the same command goes on from the last checkpoint"
            ) from error

    def take_steps(self) -> bool:
        """Take all steps that are left; return as `run` does."""
        schedule, step = self.schedule, self.resume()
        self.last_step = step
        if self.world.is_first:
            again = f"resumed after step {step}" if step else "started"
            self.folder.write_event(step, f"{again}, {self.world.ranks.size} rank(s)")
        self.progress = ProgressLogger(
            self.folder, self.world, first_step=step, total_steps=schedule.total_steps, log=schedule.log
        )
        with self.progress, self.stop, self.saver:
            self.observed.start(self.view(step))
            if self.validation_pending and not self.end_step(step, taken=False):
                return False
            while step < schedule.total_steps:
                skipped = self.engine.skipped_steps
                origin = self.take_step(step)
                self.last_step = step = step + 1
                self.folder.heartbeat(self.world.ranks.rank, step)
                if self.guard.stepped(self.engine.skipped_steps == skipped, origin=origin):
                    step = self.go_back(step)
                elif not self.end_step(step):
                    return False
            self.end(DONE, f"{step} steps", step=step)
        return True

    def end_step(self, step: int, *, taken: bool = True) -> bool:
        """Do the work between two steps; return False after an agreed stop.

        `taken` is False for a step of an earlier part of the run."""
        self.ownership.check()
        last = step == self.schedule.total_steps
        scores = self.score(step)
        row: Mapping[str, Any] = {}
        if taken and (step % self.schedule.log.every == 0 or last):
            row = self.log(step, scores)
        elif scores:  # between two lines, whose losses it leaves as they are
            row = {"step": step, "epoch": self.loader.epoch, **self.named(scores)}
            self.progress.write(row)
        self.progress.stepped(step)
        if self.observed.has_callbacks:
            self.observed.stepped(self.view(step, row), self.named(scores), self.saver.finished(), taken=taken)
        stopping = self.stop.agree() and not (last and (scores or not self.validation))
        # Weights that the next steps cannot use are no good checkpoint: then the one before is restored.
        due = step % self.schedule.checkpoint_every == 0 and not self.guard.in_a_row
        if last:
            self.ownership.end_soon()
        if due or last or scores or stopping:
            self.save(step, scores, final=last or stopping)
        if stopping:
            self.end(STOPPED, f"stopped by {self.stop.reason} after step {step}", step=step)
        return not stopping

    def resume(self) -> int:
        """Resume from the newest checkpoint, if there is one; return the step."""
        state = self.saver.resume(self.engine)
        self.guard.start(self.engine.optimizer_step)
        self.validation_pending = False
        if state is None:
            return 0
        self.loader.load_state_dict(state["loader"])
        self.meter.load_state_dict(state["meter"], counts=state["counts"])
        self.guard.load_state_dict(state["guard"])
        step = int(state["step"])
        self.validation_pending = self.is_validated(step) and "score" not in state  # stopped before or amid these
        return step

    def is_validated(self, step: int) -> bool:
        """Return whether there is a validation after this step."""
        return self.validation is not None and (step == self.schedule.total_steps or self.validation.due(step))

    def take_step(self, step: int) -> tuple[int, int]:
        """Take one optimizer step; return the epoch and position of its first sample."""
        at, lr = self.loader.state_dict(), self.schedule.lr(step)
        for micro in range(self.schedule.accumulation):
            with self.meter.waiting():
                batch = next(self.loader)
            loss = self.loss_of(self.engine, batch, step=step, micro=micro)
            self.engine.backward(loss)
            self.meter.add(loss)
            self.engine.step(lr)
        self.step_loss = self.meter.stepped()
        return at["epoch"], at["position"]

    def go_back(self, step: int) -> int:
        """Restore the last checkpoint, and leave the data at its position: the samples that caused this are over."""
        state = self.saver.go_back(self.engine)
        if state is None:
            raise TrainingError(
                f"the first {step} steps had no finite gradient: lower optim.blr, lengthen optim.warmup_epochs, or "
                "look at the data (`mae3d preview`)"
            )
        self.guard.went_back(self.engine.optimizer_step)
        self.meter.restart([])
        if self.world.is_first:
            logger.warning(
                "%d steps in a row had a gradient that is not finite: back from step %d to the checkpoint of step %d; "
                "the data goes on where it is",
                self.schedule.max_skipped, step, state["step"],
            )  # fmt: skip
        return int(state["step"])

    def score(self, step: int) -> dict[str, float]:
        """Return the scores, if a validation is due; none if the run is to stop: the next start has them."""
        if self.validation is None or not self.is_validated(step) or self.stop.agree():
            return {}
        with self.meter.pausing(), contextlib.suppress(Interrupted):
            return self.validation.scores(step, self.stop.agree)
        return {}

    def named(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores under their names in metrics.jsonl."""
        return self.validation.named(scores) if self.validation else {}

    def log(self, step: int, scores: Mapping[str, float]) -> Mapping[str, Any]:
        """Log a line of metrics.jsonl, the same on every rank, check for anomalies, and return the line."""
        measured, losses = self.meter.row()
        self.guard.check(self.engine.optimizer_step)
        counts = self.counts()
        row = {
            "step": step,
            "epoch": self.loader.epoch,
            "loss": measured.pop("loss"),
            "lr": self.schedule.lr(step - 1),
            "grad_norm": self.engine.grad_norm,
            **measured,
            "skipped_steps": self.guard.skipped,
            "rollbacks": self.guard.rollbacks,
            **counts,
            **self.named(scores),
        }
        with self.meter.pausing():
            row |= self.observed.figures(self.view(step, row), taken=row)
        self.progress.write(row)
        for spike in self.guard.judge(losses, step=step):
            if self.world.is_first:
                self.folder.write_spike(asdict(spike))
                logger.warning(
                    "the loss leapt to %.4f at step %d (usually %.4f): samples from position %d of epoch %d on; see %s",
                    spike.loss, spike.step, spike.usual, spike.position, spike.epoch, self.folder.folder / SPIKES,
                )  # fmt: skip
        self.loader.judge(counts)  # the same sums on every process: all stop together
        return row

    def view(self, step: int, row: Mapping[str, Any] = MappingProxyType({})) -> StepView:
        """Return what metrics and callbacks see after a step."""
        return StepView(
            step=step,
            total_steps=self.schedule.total_steps,
            epoch=self.loader.epoch,
            lr=self.schedule.lr(max(step - 1, 0)),
            row=MappingProxyType(dict(row)),
            model=self.engine.module,
            folder=self.folder.folder,
            rank=self.world.ranks.rank,
            world_size=self.world.ranks.size,
            rng=philox(0, Stream.OBSERVE, position=step),
            weights=self.engine.weights,
            step_loss=self.step_loss,
        )

    def announce_failure(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Let callbacks know of an error that ends the run."""
        if error is not None and self.observed.has_callbacks:
            self.observed.ended(self.view(self.last_step), [], f"failed: {type(error).__name__}: {error}")

    def save(self, step: int, scores: Mapping[str, float], *, final: bool) -> None:
        """Save a checkpoint of everything that the next step depends on."""
        state = {
            "loader": self.loader.state_dict(),
            "meter": self.meter.state_dict(),
            "counts": self.counts(),
            "guard": self.guard.state_dict(),
            "rate": dict(self.schedule.rate),
            "hooks": dict(self.schedule.hooks),
        }
        score = self.validation.selection_score(scores) if self.validation and scores else None
        self.saver.save(self.engine, state, step=step, score=score, final=final)

    def counts(self) -> dict[str, int]:
        """Return the counts of faults, over all ranks and since the run's first start."""
        return self.meter.totals(self.loader.counts() | self.saver.counts())

    def end(self, marker: str, text: str, *, step: int) -> None:
        """Write DONE or STOPPED, when all ranks have arrived."""
        if self.world.is_first:
            self.progress.flush()
            self.folder.write_event(step, "done" if marker == DONE else text)
            self.folder.end(marker, text)
        if self.observed.has_callbacks:
            reason = f"finished: {text}" if marker == DONE else text
            self.observed.ended(self.view(self.last_step), self.saver.finished(), reason)
        self.world.barrier()


def out_of_memory(message: str) -> str:
    """Return the advice for a step that needs more memory than there is."""
    return (
        f"{message} The step needs more memory than the device has: give more micro-batches a step "
        "(train.accumulation, the losses stay the same), train.grad_checkpointing true, train.zero_stage 2 or 3, a "
        "smaller train.global_batch or data.repeat_aug, or fewer model.num_frames"
    )
