"""Skipped steps and loss spikes lead to a decision, the same on every rank: go on, go back, or give up.

guard = AnomalyGuard(max_skipped=10, max_rollbacks=3)
if guard.stepped(engine.applied, origin=(epoch, position)):  # too many in a row: restore the last checkpoint
    ...
spikes = guard.judge(losses, step=step)                     # at a log step
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_RECENT = 100  # steps that a loss is compared with
_ENOUGH = 30  # of them, before any is called a spike
_DEVIATIONS = 6


class TrainingError(RuntimeError):
    """An error because training cannot go on; the message says since when."""


@dataclass(frozen=True)
class Spike:
    """A step whose loss is far above those before it, and the samples that it was made of.

    Attributes:
        step: counted from 1.
        loss: its loss.
        usual: mean loss of the steps before it.
        epoch: of its samples.
        position: of its first sample in the epoch's order.
    """

    step: int
    loss: float
    usual: float
    epoch: int
    position: int


class AnomalyGuard:
    """A counter of steps that DeepSpeed skipped for a gradient that is not finite, and a watch on the losses.

    The optimizer leaves such a step out on all processes, whichever had the bad gradient: the weights stay as they were
    and the data goes on.
    """

    def __init__(self, *, max_skipped: int, max_rollbacks: int):
        """Start without any history.

        Args:
            max_skipped: steps left out in a row after which the last checkpoint must be restored.
            max_rollbacks: how often that is done in a run.
        """
        self._max_skipped, self._max_rollbacks = max_skipped, max_rollbacks
        self.skipped = 0  # in the whole run
        self.rollbacks = 0
        self.in_a_row = 0
        self._applied: int | None = None  # optimizer steps, as they must be
        self._origins: list[tuple[int, int]] = []  # where the samples of the interval's steps began
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def start(self, optimizer_step: int) -> None:
        """Set the optimizer's steps as training starts, or goes on from a checkpoint."""
        self._applied = optimizer_step

    def stepped(self, applied: bool, *, origin: tuple[int, int]) -> bool:
        """Count a step.

        Args:
            applied: whether the optimizer took it.
            origin: epoch and position of its first sample.

        Returns:
            Whether the last checkpoint must be restored; then `went_back` is called.

        Raises:
            TrainingError: it has been restored often enough.
        """
        self._origins.append(origin)
        if applied:
            self.in_a_row = 0
            self._applied = None if self._applied is None else self._applied + 1
            return False
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row < self._max_skipped:
            return False
        epoch, position = origin
        if self.rollbacks >= self._max_rollbacks:
            raise TrainingError(
                f"{self.in_a_row} steps in a row had a gradient that is not finite, the last one at position "
                f"{position} of epoch {epoch}, after {self.rollbacks} restored checkpoints, which are whole. Lower "
                "optim.blr, set a smaller optim.clip_grad, or use train.precision fp32 or autocast, in another run.dir"
            )
        return True

    def went_back(self, optimizer_step: int) -> None:
        """Record that the last checkpoint has been restored."""
        self.rollbacks += 1
        self.in_a_row = 0
        self._origins = []
        self.start(optimizer_step)

    def check(self, optimizer_step: int) -> None:
        """Compare the optimizer's count with the steps that DeepSpeed reports.

        Raises:
            TrainingError: steps were left out without a word (DeepSpeed#8415).
        """
        if self._applied is not None and optimizer_step != self._applied:
            raise TrainingError(
                f"DeepSpeed told of {self._applied} optimizer steps, AdamW counts {optimizer_step}: steps were left "
                "out silently (DeepSpeed#8415). Use train.precision fp32, or another train.zero_stage"
            )

    def judge(self, losses: Sequence[float], *, step: int) -> list[Spike]:
        """Return the spikes of an interval; start the next one.

        Args:
            losses: of its steps, means over all processes.
            step: its last step.
        """
        spikes = []
        for i, (loss, (epoch, position)) in enumerate(zip(losses, self._origins, strict=True)):
            if not math.isfinite(loss):
                continue
            if len(self._recent) >= _ENOUGH:
                usual = statistics.fmean(self._recent)
                if loss > usual + _DEVIATIONS * statistics.pstdev(self._recent, usual):
                    spikes.append(Spike(step - len(losses) + 1 + i, loss, usual, epoch, position))
            self._recent.append(loss)
        self._origins = []
        return spikes

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "in_a_row": self.in_a_row,
            "places": list(self._origins),
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s values."""
        self.skipped, self.rollbacks, self.in_a_row = state["skipped"], state["rollbacks"], state["in_a_row"]
        self._origins = [(epoch, position) for epoch, position in state["places"]]
        self._recent = deque(state["recent"], maxlen=_RECENT)
